"""The short version of scripts/bench_agreement.py: the same pairs, fewer of them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

SCRIPT = Path(__file__).parents[3] / "scripts" / "bench_agreement.py"


def test_agrees_with_every_tool_that_is_installed() -> None:
    spec = importlib.util.spec_from_file_location("bench_agreement", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    worst = bench.agreement(list(bench.make_pairs(60, seed=1)))
    assert {"MONAI", "counting"} <= {tool for tool, _ in worst}
    for (tool, metric), difference in worst.items():
        assert difference <= (0 if tool == "counting" else 1e-5), (tool, metric)

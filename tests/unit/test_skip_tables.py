"""The short version of ``bench_skips.py --adapt`` and ``--laboratory``: two steps on small discs."""

from __future__ import annotations

import importlib
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

from medseg.device import choose_profile

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module


@pytest.fixture
def options(scripts: Any, tmp_path: Path) -> Namespace:
    budget = scripts("_skip_bench").Budget(1.0, steps=2)
    return Namespace(output=tmp_path, tasks=["discs"], seeds=[0, 1], limit=None, lr=1e-3, budget=budget, base=budget)


def discs(scripts: Any) -> Any:
    def case(number: int) -> tuple[str, torch.Tensor, torch.Tensor]:
        rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
        label = ((rows - 8).square() + (columns - 4 - number % 8).square() < 16).to(torch.uint8)[None]
        return f"case{number}", label - label.float().mean(), label

    domains = {"own": [case(n) for n in range(4)], "other": [case(n) for n in range(9)]}
    return scripts("_skip_data").Task("discs", 2, 1, {"background": 0, "disc": 1}, domains["own"], domains)


def test_every_way_to_adapt_is_measured_once(scripts: Any, options: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    module = scripts("_skip_adapt")
    monkeypatch.setattr(module, "load", lambda *_: discs(scripts))
    text = module.adaptation(options, choose_profile("cpu"))
    lines = [line.split(" | ") for line in text.splitlines()[2:]]
    assert [line[2] for line in lines] == list(module.METHODS)
    trained = {line[2]: int(line[4].replace(",", "")) for line in lines}
    assert trained["frozen"] == trained["skip_scale"] == 0 < trained["head"] < trained["skip_tuner"]
    assert trained["skip_tuner"] < trained["decoder"] < trained["all"]
    monkeypatch.setattr(module, "adapt_once", None)  # a second call reads the rows that the first kept
    assert module.adaptation(options, choose_profile("cpu")) == text
    assert len(list(options.output.glob("discs_2steps_*.ckpt"))) == 2


def test_families_are_compared_on_every_domain(
    scripts: Any, options: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, few = scripts("_skip_laboratory"), ("concat", "add")
    monkeypatch.setattr(module, "load", lambda *_: discs(scripts))
    monkeypatch.setattr(module, "FAMILIES", few)
    monkeypatch.setattr(module, "PAIRS", 1)
    monkeypatch.setattr(module, "matched", lambda *_, **__: dict.fromkeys(few, 6))
    text = module.laboratory(options, choose_profile("cpu"))
    lines = text.splitlines()[2:]
    assert [line.split(" | ")[1:4] for line in lines] == [
        [by, name, "6"] for by in ("parameters", "latency") for name in few
    ]
    assert all("own 0." in line and "other 0." in line for line in lines)
    assert ["(" in line.rpartition("own")[2] for line in lines] == [False, True] * 2, "p of add against concat"

"""Free memory of the machine and of the control group."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from medseg.errors import InputRefused
from medseg.io.memory import free_memory, require_memory


def test_without_a_control_group_the_machine_counts(tmp_path: Path) -> None:
    assert free_memory(tmp_path) == pytest.approx(psutil.virtual_memory().available, rel=0.2)


@pytest.mark.parametrize(
    ("limit", "use", "statistics", "cache"),
    [
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
    ],
)
def test_a_control_groups_limit_counts(tmp_path: Path, limit: str, use: str, statistics: str, cache: str) -> None:
    (tmp_path / "memory").mkdir()
    (tmp_path / limit).write_text("5000\n")
    (tmp_path / use).write_text("3000\n")
    (tmp_path / statistics).write_text(f"anon 7\n{cache} 500\n")
    assert free_memory(tmp_path) == 2500
    (tmp_path / limit).write_text("max\n")
    assert free_memory(tmp_path) > 1_000_000


def test_too_much_is_refused_with_both_numbers() -> None:
    require_memory(1)
    with pytest.raises(InputRefused, match=r"need 1048576\.0 GiB of memory, .* GiB are free"):
        require_memory(2**50)

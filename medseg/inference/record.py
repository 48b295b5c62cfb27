"""What became of each case of a run: ``predictions.json`` beside the segmentations, and a table of seconds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseg.errors import MedsegError, UnreadableFile
from medseg.inference.segmentation import Segmentation
from medseg.io import read_json, write_json
from medseg.text import for_terminal

if TYPE_CHECKING:
    from rich.table import Table

STEPS = ("read", "preprocess", "network", "restore", "postprocess", "write")


def record_path(output: Path, shard: str | None) -> Path:
    """``predictions.json``; shards of a job write into one folder, so each has a file of its own."""
    return output / ("predictions.json" if shard is None else f"predictions_{str(shard).replace('/', '_of_')}.json")


class Record:
    """Files, seconds, warnings and errors by case.

    Args:
        path: of the JSON file; what it says of cases that are not predicted again is kept. None: not written.

    Attributes:
        cases: case -> ``file``, ``seconds`` by step, ``memory``, ``warnings`` and, of probabilities, the label
            values of each of their ``channels``; or ``error`` and ``exit_code``.
        errors: case -> error, of this run.

    Raises:
        UnreadableFile: the file is there and damaged.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.errors: dict[str, MedsegError] = {}
        self.cases: dict[str, dict[str, Any]] = {}
        self._before = _read(path) if path is not None and path.exists() else {}

    def add(self, case: str, file: Path, outcome: Segmentation | MedsegError) -> None:
        """Take down what became of a case."""
        if isinstance(outcome, MedsegError):
            self.errors[case] = outcome
            self.cases[case] = {"error": str(outcome), "exit_code": outcome.exit_code}
            return
        seconds = {step: round(spent, 3) for step, spent in outcome.seconds.items()}
        facts: dict[str, Any] = {"seconds": seconds, "memory": outcome.memory, "warnings": list(outcome.warnings)}
        if outcome.probabilities is not None:
            facts["channels"] = [list(values) for values in outcome.channels]
        self.cases[case] = {"file": file.name, **facts}

    def save(self) -> None:
        """Write the JSON file, atomically; nothing if no case was taken down.

        Raises:
            ResourceError: it cannot be written.
        """
        if self.path is not None and self.cases:
            write_json(self.path, {"cases": {**self._before, **self.cases}})

    def print(self) -> None:
        """Print where the time of every case went, and its memory beside what was predicted."""
        from rich.console import Console

        done = {case: facts for case, facts in self.cases.items() if "seconds" in facts}
        console = Console()
        console.print(_seconds({case: facts["seconds"] for case, facts in done.items()}))
        console.print(_memory({case: facts["memory"] for case, facts in done.items()}))


def _seconds(cases: Mapping[str, Mapping[str, float]]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table("case", *STEPS, "sum", title="seconds", box=box.SIMPLE)
    for case, seconds in cases.items():
        spent = [seconds.get(step, 0.0) for step in STEPS]
        table.add_row(for_terminal(case), *(f"{s:.2f}" for s in (*spent, sum(spent))))
    totals = [sum(seconds.get(step, 0.0) for seconds in cases.values()) for step in STEPS]
    whole = sum(totals)
    table.add_section()
    table.add_row("all", *(f"{s:.1f}" for s in (*totals, whole)))
    table.add_row("share", *(f"{s / max(whole, 1e-9):.0%}" for s in totals))
    return table


def _memory(cases: Mapping[str, Mapping[str, Any]]) -> Table:
    """Predicted (with the image of the next case, if that was read meanwhile) and measured, in GiB."""
    from rich import box
    from rich.table import Table

    table = Table("case", "predicted", "measured", "error", "fallbacks", title="memory in GiB", box=box.SIMPLE)
    for case, memory in cases.items():
        expected, measured = memory["predicted"] + memory["beside"], memory["measured"]
        found = ("", "") if measured is None else (f"{measured / 2**30:.2f}", f"{memory['error']:+.0%}")
        table.add_row(for_terminal(case), f"{expected / 2**30:.2f}", *found, ", ".join(memory["fallbacks"]))
    return table


def _read(path: Path) -> dict[str, Any]:
    found = read_json(path)
    if not isinstance(found, dict) or not isinstance(found.get("cases"), dict):
        raise UnreadableFile("holds no 'cases'", path=path, fix="remove it; it is made again")
    return dict(found["cases"])

"""What became of each case of a run: ``predictions.json`` beside the segmentations, and a table of seconds."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseg.data.outputs import real_path
from medseg.errors import MedsegError, UnreadableFile, UsageError
from medseg.inference.segmentation import Segmentation
from medseg.io import read_json, write_json
from medseg.tables import print_table
from medseg.text import for_terminal

if TYPE_CHECKING:
    from rich.table import Table

ENDS = 64 * 2**10  # bytes at either end of a file that tell it from another of its size
STEPS = ("read", "preprocess", "network", "restore", "postprocess", "write")


def record_path(output: Path, shard: str | None) -> Path:
    """``predictions.json``; shards of a job write into one folder, so each has a file of its own."""
    return output / ("predictions.json" if shard is None else f"predictions_{str(shard).replace('/', '_of_')}.json")


class Record:
    """Files, seconds, warnings and errors by case.

    Args:
        path: of the JSON file; what it says of cases that are not predicted again is kept. None: not written.

    Attributes:
        cases: case -> ``file``, ``images`` that it was made from, ``seconds`` by step, ``memory``, ``warnings`` and,
            of probabilities, the label values of each of their ``channels``; or ``error`` and ``exit_code``.
        errors: case -> error, of this run.
        todo: cases that this run is to predict.

    Raises:
        UnreadableFile: the file is there and damaged.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.errors: dict[str, MedsegError] = {}
        self.cases: dict[str, dict[str, Any]] = {}
        self.todo = 0
        self._before = _read(path) if path is not None and path.exists() else {}
        self._images_before = dict(_images_before(path.parent)) if path is not None else {}

    @property
    def done(self) -> int:
        """Cases of this run whose files are written."""
        return len(self.cases) - len(self.errors)

    def add(self, case: str, images: Sequence[Path], file: Path, outcome: Segmentation | MedsegError) -> None:
        """Take down what became of a case."""
        if isinstance(outcome, MedsegError):
            self.errors[case] = outcome
            self.cases[case] = {"error": str(outcome), "exit_code": outcome.exit_code}
            return
        seconds = {step: round(spent, 3) for step, spent in outcome.seconds.items()}
        facts: dict[str, Any] = {"seconds": seconds, "memory": outcome.memory, "warnings": list(outcome.warnings)}
        if outcome.probabilities is not None:
            facts["channels"] = [list(values) for values in outcome.channels]
        self.cases[case] = {"file": file.name, "images": [_described(image) for image in images], **facts}

    def save(self) -> None:
        """Write the JSON file, atomically; nothing if no case was taken down.

        Raises:
            ResourceError: it cannot be written.
        """
        if self.path is not None and self.cases:
            write_json(self.path, {"cases": {**self._before, **self.cases}})

    def refuse_other_images(self, case: str, images: Sequence[Path], file: Path) -> None:
        """Refuse to take a segmentation that was made from other images of the same name for this case's.

        Raises:
            UsageError: both the paths and the contents of the images are others.
        """
        if case not in self._images_before or not os.path.exists(file):
            return
        before = self._images_before[case]
        if [entry["path"] for entry in before] == [_place(image) for image in images]:
            return
        if [entry["sha256_of_ends"] for entry in before] != [_ends(image) for image in images]:
            problem = f"was made from {before[0]['path']}, this case is {images[0]}"
            raise UsageError(problem, case=case, path=file, fix="choose another output folder, or rename the images")

    def print(self) -> None:
        """Print where the time of every case went, and its memory beside what was predicted."""
        done = {case: facts for case, facts in self.cases.items() if "seconds" in facts}
        print_table(_seconds({case: facts["seconds"] for case, facts in done.items()}))
        print_table(_memory({case: facts["memory"] for case, facts in done.items()}))


def _seconds(cases: Mapping[str, Mapping[str, float]]) -> Table:
    from rich import box
    from rich.table import Column, Table

    numbers = (Column(step, justify="right") for step in (*STEPS, "sum"))
    table = Table("case", *numbers, title="seconds", box=box.SIMPLE, padding=0)
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
    from rich.table import Column, Table

    numbers = (Column(name, justify="right") for name in ("predicted", "measured", "error"))
    table = Table("case", *numbers, "fallbacks", title="memory in GiB", box=box.SIMPLE)
    for case, memory in cases.items():
        expected, measured = memory["predicted"] + memory["beside"], memory["measured"]
        found = ("", "") if measured is None else (f"{measured / 2**30:.2f}", f"{memory['error']:+.0%}")
        table.add_row(for_terminal(case), f"{expected / 2**30:.2f}", *found, ", ".join(memory["fallbacks"]))
    return table


def _read(path: Path) -> dict[str, Any]:
    found = read_json(path)
    cases = found.get("cases") if isinstance(found, dict) else None
    if not isinstance(cases, dict) or not all(isinstance(facts, dict) for facts in cases.values()):
        raise UnreadableFile("holds no 'cases'", path=path, fix="remove it; it is made again")
    return cases


def _images_before(folder: Path) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Case -> its images, from the records of all shards."""
    for path in sorted(folder.glob("predictions*.json")):
        try:
            cases = _read(path)
        except MedsegError:  # of another shard
            continue
        yield from ((case, facts["images"]) for case, facts in cases.items() if facts.get("images"))


def _described(image: Path) -> dict[str, str | None]:
    return {"path": _place(image), "sha256_of_ends": _ends(image)}


def _place(image: Path) -> str:
    return str(real_path(image.expanduser()))


def _ends(image: Path) -> str | None:
    """SHA-256 over size and both ends of a file, or of all files of a folder; None if it cannot be read (any more)."""
    found = hashlib.sha256()
    try:
        for path in sorted(file for file in image.rglob("*") if file.is_file()) if image.is_dir() else [image]:
            size = path.stat().st_size
            found.update(f"{size} ".encode())
            with path.open("rb") as file:
                found.update(file.read(ENDS))
                file.seek(max(0, size - ENDS))
                found.update(file.read(ENDS))
    except OSError:
        return None
    return found.hexdigest()

"""Reading of the next case beside the network of this one: one case ahead, and only while both fit into memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from medseg.data.preprocess import Preprocessed
from medseg.errors import MedsegError
from medseg.inference.memory import MemoryNeed, free_room
from medseg.inference.stopwatch import Stopwatch
from medseg.io import Geometry

Item = TypeVar("Item", contravariant=True)
Result = TypeVar("Result")


@dataclass(frozen=True)
class PreparedCase:
    """A case on the grids of all members, ready for their networks.

    Attributes:
        geometry: of the file.
        arrays: per member (C, *P) float32, and what leads back to the file's grid.
        need: bytes that it takes in all.
        probabilities: whether they are to be returned.
        spill: folder for logits that do not fit into memory.
        warnings: where the case lies outside of what the model was trained on.
        clock: seconds so far.
        mask: (*S) bool in canonical orientation, where there can be anything; None: everywhere.
        sources: the files that it was read from; empty for arrays and volumes.
        beside: bytes of the images of cases that were read while this one was in work.
    """

    geometry: Geometry
    arrays: Sequence[tuple[np.ndarray, Preprocessed]]
    need: MemoryNeed
    probabilities: bool
    spill: Path | None
    warnings: tuple[str, ...]
    clock: Stopwatch
    mask: np.ndarray | None = None
    sources: tuple[Path, ...] = ()
    beside: list[int] = field(default_factory=list)


class Prepare(Protocol[Item]):
    """Reads and preprocesses; calls the gate with what the case will need before it takes it."""

    def __call__(self, source: Item, /, *, gate: Callable[[MemoryNeed], None]) -> PreparedCase: ...


def overlapped(
    prepare: Prepare[Item], segment: Callable[[PreparedCase], Result], sources: Iterable[Item], max_ram: int | None
) -> Generator[Result | MedsegError]:
    """``segment(prepare(source))`` of every source in order, the next ``prepare`` running beside ``segment``.

    Args:
        prepare: runs in a thread of its own.
        segment: runs in the caller's thread.
        sources: taken one by one.
        max_ram: bytes that the process may hold; None: what is free.

    Yields:
        Results, and in its place the error of a case that the user must repair. Our own bugs are raised.
    """
    queue = iter(sources)
    with ThreadPoolExecutor(1, thread_name_prefix="medseg-read") as reader:

        def ahead(gate: Callable[[MemoryNeed], None]) -> Future[PreparedCase] | None:
            return next((reader.submit(prepare, source, gate=gate) for source in queue), None)

        upcoming = ahead(_open_gate)
        while upcoming is not None:
            finished = threading.Event()
            try:
                try:
                    case = upcoming.result()
                except MedsegError as error:
                    upcoming = ahead(_open_gate)
                    yield error
                    continue
                upcoming = ahead(_Gate(case, finished, max_ram))
                outcome = _guarded(segment, case)
                del case
                yield outcome
                del outcome
            finally:
                finished.set()


@dataclass(frozen=True)
class _Gate:
    """Lets the next case in at once if it fits beside the one in work, else when that one is done with."""

    running: PreparedCase
    finished: threading.Event
    max_ram: int | None

    def __call__(self, need: MemoryNeed) -> None:
        if need.total + self.running.need.total > free_room(self.max_ram):
            self.finished.wait()
        else:
            self.running.beside.append(need.image)


def _open_gate(need: MemoryNeed) -> None:
    """Nothing else is in work."""


def _guarded(segment: Callable[[PreparedCase], Result], case: PreparedCase) -> Result | MedsegError:
    try:
        return segment(case)
    except MedsegError as error:
        return error

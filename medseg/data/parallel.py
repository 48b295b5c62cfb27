"""Do one thing for every case, in this process or in several, and know which case was at fault."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, TypeVar

from medseg.errors import MedsegError, ResourceError
from medseg.io import free_memory

if TYPE_CHECKING:
    from medseg.data.dataset import Case

Result = TypeVar("Result")
Outcome = tuple["Case", "Result | MedsegError"]

SMALL_JOB_BYTES = 100 * 2**20
MEMORY_PER_FILE_BYTE = 40


def choose_workers(workers: int | str | None, cases: Sequence[Case]) -> int:
    """Number of processes for a pass over the cases: as asked, or chosen for None and "auto"; 0 is this process.

    A worker costs about three seconds to start, so a job of less than 100 MiB of files is done here. Otherwise one
    worker per core that this process may use, as far as memory allows: a case in work is taken to need 40 times its
    (compressed) size on disk.
    """
    if workers not in (None, "auto"):
        return max(0, int(workers))  # type: ignore[arg-type]
    sizes = [sum(path.stat().st_size for path in case.images if path.exists()) for case in cases]
    if sum(sizes) < SMALL_JOB_BYTES:
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    fitting = free_memory() // (MEMORY_PER_FILE_BYTE * max(sizes) + 1)
    return int(max(1, min(cores, fitting, len(cases))))


def map_cases(
    function: Callable[[Case], Result], cases: Sequence[Case], *, workers: int, title: str, progress: bool = True
) -> Iterator[Outcome[Result]]:
    """Yield ``(case, result)`` in order of completion; a case that the user must repair yields its error instead.

    Args:
        function: picklable; takes one case.
        cases: what to work on.
        workers: processes; 0 works in this one.
        title: shown beside the progress bar.
        progress: show a bar on stderr.

    Raises:
        ResourceError: a worker process died; the case that killed it is named.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not progress) as bar:
        task = bar.add_task(title, total=len(cases))
        for outcome in _outcomes(function, cases, workers):
            bar.advance(task)
            yield outcome


def _outcomes(function: Callable[[Case], Result], cases: Sequence[Case], workers: int) -> Iterator[Outcome[Result]]:
    if workers == 0:
        yield from ((case, _guarded(function, case)) for case in cases)
        return
    done: set[str] = set()
    try:
        for outcome in _pooled(function, cases, workers):
            done.add(outcome[0].id)
            yield outcome
    except BrokenProcessPool:
        # A broken pool does not say which case broke it: the unfinished ones run again, each alone.
        yield from (_alone(function, case) for case in cases if case.id not in done)


def _pooled(function: Callable[[Case], Result], cases: Sequence[Case], workers: int) -> Iterator[Outcome[Result]]:
    # Spawned, not forked: a fork copies the locks of torch's threads and can hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_one_thread_each)
    try:
        futures = {pool.submit(_guarded, function, case): case for case in cases}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _one_thread_each() -> None:
    """Runs before torch is imported in the worker: the processes share the cores, their threads must not."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def _alone(function: Callable[[Case], Result], case: Case) -> Outcome[Result]:
    try:
        return next(_pooled(function, [case], 1))
    except BrokenProcessPool as error:
        problem = "the worker process died on this case (killed, out of memory, or a crash in a library)"
        raise ResourceError(problem, case=case.id, fix="check the file, or free memory") from error


def _guarded(function: Callable[[Case], Result], case: Case) -> Result | MedsegError:
    """Errors of the data become values, named by their case; our own bugs stay exceptions."""
    try:
        return function(case)
    except MedsegError as error:
        error.case = error.case or case.id
        return error
    except Exception as error:
        error.add_note(f"while working on case {case.id}")
        raise

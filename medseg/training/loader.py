"""Training batches without end, decided by the step alone; a lost worker is reported with the case it was reading."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import count
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate, get_worker_info

from medseg.data.sampling import PatchDataset
from medseg.data.views import ViewDataset
from medseg.errors import MedsegError, ResourceError
from medseg.io import free_memory
from medseg.training.signals import ignore_stop_signals

WORKER_BYTES = 2**30  # what a worker needs at most: its imports and a few patches; the arrays are memory-mapped
LOOKS = 10  # of the watch for hung workers, within their timeout


class StepStream(Sampler[list[int]]):
    """Indices of batch after batch without end; those of step s are the same in every run.

    Args:
        batch_size: per process.
        first_step: asked when iteration starts, so a resumed run continues where it stopped.
        rank: of this process.
        world_size: number of processes; each takes its own part of every step.
    """

    def __init__(self, batch_size: int, first_step: Callable[[], int], *, rank: int = 0, world_size: int = 1) -> None:
        self.batch_size, self.first_step, self.rank, self.world_size = batch_size, first_step, rank, world_size

    def __iter__(self) -> Iterator[list[int]]:
        for step in count(self.first_step()):
            start = (step * self.world_size + self.rank) * self.batch_size
            yield list(range(start, start + self.batch_size))


class TrainingData(pl.LightningDataModule):
    """Serves a `PatchDataset` or `ViewDataset` to Lightning.

    Args:
        dataset: indexed without end.
        workers: processes that cut and augment patches; 0 does it in the training process.
        timeout: seconds after which a worker counts as hung.
        accumulate: batches per optimiser step.
    """

    def __init__(
        self, dataset: PatchDataset | ViewDataset, *, workers: int, timeout: float, accumulate: int = 1
    ) -> None:
        super().__init__()
        self.dataset, self.workers, self.timeout, self.accumulate = dataset, workers, timeout, accumulate
        self.watch = CaseWatch(dataset.ids, workers)
        dataset.announce = self.watch.announce

    def train_dataloader(self) -> DataLoader:
        """Lightning hook."""
        assert self.trainer is not None
        trainer = self.trainer
        stream = StepStream(
            self.dataset.batch_size,
            lambda: trainer.global_step * self.accumulate,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
        )
        several: dict[str, Any] = {"prefetch_factor": 4, "worker_init_fn": _serve} if self.workers else {}
        # Its own generator: drawing the workers' seed from the global one would shift dropout after a resume.
        return WatchedLoader(
            ErrorsAsSamples(self.dataset),
            watch=self.watch,
            timeout=self.timeout,
            batch_sampler=stream,
            num_workers=self.workers,
            collate_fn=_collate,
            generator=torch.Generator(),
            **several,
        )

    @contextmanager
    def name_lost_workers(self) -> Iterator[None]:
        """Turn what torch says of dead and hung workers into one line that names the case; none outlives the block."""
        try:
            yield
        except Exception as error:
            if not self.watch.hung and not str(error).startswith("DataLoader worker"):
                raise
            state = "hung" if self.watch.hung else "died (killed, or out of memory)"
            raise ResourceError(
                f"a data worker {state} while reading case {' or '.join(self.watch.current())}",
                fix="check that case, free memory, or set data.loader_workers=0; then go on with resume=true",
                written="The last checkpoint is kept.",
            ) from error
        finally:
            self.watch.end_workers()
            for worker in self.watch.workers:
                worker.join()


class WatchedLoader(DataLoader):
    """A loader that raises what went wrong with a case, and ends workers that keep it waiting too long.

    torch's own timeout does not see a worker that stops after it has announced a batch: receiving that batch asks the
    worker for it, and waits without end.
    """

    def __init__(self, *args: Any, watch: CaseWatch, timeout: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.watch, self.patience = watch, timeout

    def __iter__(self) -> Any:
        """Batches, as the loader makes them."""
        others = set(multiprocessing.active_children())  # of the process that medseg runs in
        batches = super().__iter__()
        self.watch.workers += set(multiprocessing.active_children()) - others
        with self.watch.patience(self.patience) if self.num_workers else nullcontext(nullcontext) as waiting:
            while True:
                with waiting():
                    batch = next(batches, None)
                if isinstance(batch, MedsegError):
                    raise batch
                if batch is None:
                    return
                yield batch


class ErrorsAsSamples(Dataset[Any]):
    """A dataset whose refusals are values: a worker would hand them over as a page of text."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> Any:
        """The sample, or the error."""
        try:
            return self.dataset[index]
        except MedsegError as error:
            return error


def _collate(samples: list[Any]) -> Any:
    return next((sample for sample in samples if isinstance(sample, MedsegError)), None) or default_collate(samples)


def _serve(worker: int) -> None:
    ignore_stop_signals()


class CaseWatch:
    """Shared memory in which each worker notes the case that it is about to read, and an eye on how long it takes.

    Attributes:
        hung: a batch did not come in time, and the workers were ended.
        workers: the processes.
    """

    def __init__(self, ids: Sequence[str], workers: int) -> None:
        self.ids, self.hung = list(ids), False
        self.workers: list[multiprocessing.process.BaseProcess] = []
        self._slots = multiprocessing.Array("q", [-1] * max(1, workers), lock=False)

    def announce(self, case_id: str) -> None:
        """Called by the dataset before it reads a case."""
        worker = get_worker_info()
        self._slots[worker.id if worker else 0] = self.ids.index(case_id)

    def current(self) -> list[str]:
        """The cases that the workers last began."""
        return [self.ids[i] for i in self._slots if i >= 0] or ["(none yet)"]

    def end_workers(self) -> None:
        """Kill the workers: no other signal reaches one that was stopped, and there is nothing to lose."""
        for worker in self.workers:
            worker.kill()

    @contextmanager
    def patience(self, seconds: float) -> Iterator[Callable[[], Any]]:
        """Give a context for waits in the block; where one of them lasts longer than that, all workers are ended."""
        since: float | None = None
        over = threading.Event()

        def look() -> None:
            while not over.wait(min(1.0, seconds / LOOKS)):
                began = since
                if began is not None and time.monotonic() - began > seconds:
                    self.hung = True
                    self.end_workers()

        @contextmanager
        def waiting() -> Iterator[None]:
            nonlocal since
            since = time.monotonic()
            try:
                yield
            finally:
                since = None

        threading.Thread(target=look, daemon=True).start()
        try:
            yield waiting
        finally:
            over.set()


def choose_loader_workers(requested: int | str | None, device: str) -> int:
    """Processes for loading: as asked, else one beside a CPU training (which needs the cores itself), more for a GPU.

    Never more than the free memory of the control group holds.
    """
    if requested not in (None, "auto"):
        return max(0, int(requested))  # type: ignore[arg-type]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = 1 if device == "cpu" else min(8, max(1, cores - 1))
    return int(min(wanted, free_memory() // WORKER_BYTES))

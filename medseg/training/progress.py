"""How training goes: a bar in a terminal, a line now and then elsewhere, and the share of time spent waiting."""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as pl
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn

from medseg.training.task import TrainingTask

LINE_SECONDS = 30.0  # between two lines where the output is not a terminal


class ProgressReport(pl.Callback):
    """Loss, Dice, patches per second, waiting for data, and the time left.

    Args:
        batch_size: patches per step.
        shown: False keeps quiet but still measures ``data_wait``.
    """

    def __init__(self, batch_size: int, shown: bool = True) -> None:
        self.batch_size, self.shown = batch_size, shown
        self.waited = self.worked = 0.0
        self.steps = 0
        self.bar: Progress | None = None
        self.task_id = TaskID(0)

    @property
    def data_wait(self) -> float:
        """Share of the time spent waiting for the next batch, 0..1; the first batch, which starts workers, aside."""
        return self.waited / max(self.waited + self.worked, 1e-9)

    @property
    def seconds_per_step(self) -> float:
        """Mean time of a step, waiting included."""
        return (self.waited + self.worked) / max(self.steps - 1, 1)

    def state_dict(self) -> dict[str, float]:
        """Facts about this start of the run, kept in its checkpoints."""
        return {"seconds_per_step": round(self.seconds_per_step, 4), "data_wait": round(self.data_wait, 4)}

    def on_train_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        """Open the bar."""
        assert isinstance(task, TrainingTask)
        self.mark = self.printed = task.step_ended = time.monotonic()
        console = Console(stderr=True)
        if self.shown and trainer.is_global_zero and console.is_terminal:
            columns = (TextColumn("train"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[status]}"))
            self.bar = Progress(*columns, console=console)
            self.task_id = self.bar.add_task("train", total=1.0, status="")
            self.bar.start()

    def on_train_batch_start(self, trainer: pl.Trainer, task: pl.LightningModule, *_: Any) -> None:
        """What passed since the last step and everything around it ended was waiting for data."""
        assert isinstance(task, TrainingTask)
        self.mark = time.monotonic()
        self.waited += self.mark - task.step_ended if self.steps else 0.0

    def on_train_batch_end(self, trainer: pl.Trainer, task: pl.LightningModule, *_: Any) -> None:
        """Update the bar, or print a line."""
        assert isinstance(task, TrainingTask)
        now = time.monotonic()
        self.worked += now - self.mark if self.steps else 0.0
        self.steps += 1
        if self.bar:
            self.bar.update(self.task_id, completed=task.progress, status=self._status(trainer, task))
        elif self.shown and trainer.is_global_zero and (now - self.printed >= LINE_SECONDS or trainer.should_stop):
            self.printed = now
            print(f"train {task.progress:4.0%} {self._status(trainer, task)}", flush=True)

    def teardown(self, trainer: pl.Trainer, task: pl.LightningModule, stage: str) -> None:
        """Close the bar, however training ended."""
        if self.bar:
            self.bar.stop()
            self.bar = None

    def _status(self, trainer: pl.Trainer, task: TrainingTask) -> str:
        loss, dice = (trainer.callback_metrics.get(name) for name in ("train/loss", "val/dice"))
        elapsed, progress = task.budget.elapsed(), task.progress
        left = elapsed / progress * (1 - progress) if progress else 0.0
        speed = self.batch_size / max(self.seconds_per_step, 1e-9)
        scored = "" if dice is None else f"  Dice {float(dice):.3f}"
        return (
            f"step {trainer.global_step}  loss {float(loss or 0.0):#.3g}{scored}  {speed:.1f} patches/s"
            f"  waiting {self.data_wait:.0%}  {elapsed / 60:.1f} min, {left / 60:.1f} left"
        )

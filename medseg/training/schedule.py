"""How far training is, in steps or in wall-clock time, and the learning rate that follows from it."""

from __future__ import annotations

import math
import re
import time
from dataclasses import dataclass, field
from datetime import timedelta

from medseg.errors import UsageError, nearest

_MAX_TIME = re.compile(r"(\d+):(\d\d):(\d\d):(\d\d)")


def parse_max_time(text: str | None) -> float | None:
    """``"DD:HH:MM:SS"`` -> seconds; None stays None. Raises UsageError for anything else."""
    if text is None:
        return None
    match = _MAX_TIME.fullmatch(str(text))
    if not match or not any(map(int, match.groups())):
        raise UsageError(f"trainer.max_time is {text!r} (expected DD:HH:MM:SS, more than zero, e.g. 00:00:30:00)")
    days, hours, minutes, seconds = map(int, match.groups())
    return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds).total_seconds()


@dataclass
class Budget:
    """What training may spend: steps, seconds, or both; the first that runs out ends it.

    Attributes:
        max_steps: optimiser steps; None when only time limits.
        max_seconds: wall-clock seconds from the first step on, validation included; None when only steps limit.
        spent: seconds spent before this process, from a checkpoint.
    """

    max_steps: int | None = None
    max_seconds: float | None = None
    spent: float = 0.0
    _started: float | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not self.max_steps and not self.max_seconds:
            raise UsageError("training has no end", fix="set trainer.max_epochs or trainer.max_time")

    def start(self) -> None:
        """Start the clock."""
        self._started = time.monotonic()

    def elapsed(self) -> float:
        """Seconds of training so far, over all processes that worked on this run."""
        return self.spent + (0.0 if self._started is None else time.monotonic() - self._started)

    def progress(self, step: int) -> float:
        """Share of the budget that is spent after `step` steps, 0..1. Depends on steps alone if time is unlimited."""
        by_step = step / self.max_steps if self.max_steps else 0.0
        by_time = self.elapsed() / self.max_seconds if self.max_seconds else 0.0
        return min(1.0, max(by_step, by_time))


def _poly(progress: float) -> float:
    return (1 - progress) ** 0.9


def _cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


def _step(progress: float) -> float:
    return 0.9 ** int(50 * progress + 1e-9)  # 1e-9: 0.58 * 50 is 28.999999999999996


SCHEDULES = {"poly": _poly, "cosine": _cosine, "step": _step, "constant": lambda progress: 1.0}


def learning_rate_factor(progress: float, schedule: str, warmup: float) -> float:
    """Factor on the base learning rate.

    Args:
        progress: share of training done, 0..1.
        schedule: ``"poly"`` ((1 - progress)^0.9, nnU-Net's), ``"cosine"``, ``"step"`` (times 0.9 after every fiftieth
            of training, HybridGNet's) or ``"constant"``.
        warmup: share of training in which the factor also rises linearly from 0.

    Raises:
        UsageError: for an unknown schedule.
    """
    if schedule not in SCHEDULES:
        raise UsageError(f"unknown optimizer.schedule '{schedule}': {nearest(schedule, SCHEDULES)}")
    rising = min(1.0, (progress + 1e-3) / warmup) if warmup > 0 else 1.0
    return rising * SCHEDULES[schedule](progress)

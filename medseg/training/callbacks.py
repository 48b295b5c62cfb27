"""What happens around the steps: checkpoints, validation on whole images, and telling the user how it goes."""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from medseg.data.prepared import PreparedDataset
from medseg.evaluation import evaluate_arrays
from medseg.inference.whole import segment_array
from medseg.io import save_model
from medseg.models.slices import without_slices
from medseg.training.checkpoints import RunPart
from medseg.training.signals import StopRequest
from medseg.training.task import SegmentationTask, TrainingTask

VALIDATION_SHARE = 0.05  # of the training time, where the user sets no interval


class Checkpoints(pl.Callback):
    """Save the full state before the first step, every so many minutes, at the end, and when a signal asks to stop.

    Args:
        part: of the run: where to save.
        minutes: between two checkpoints.
        stop: the signal that was caught, if any.
    """

    def __init__(self, part: RunPart, minutes: float, stop: StopRequest) -> None:
        self.part, self.path, self.seconds, self.stop = part, part.folder.checkpoint, minutes * 60, stop
        self.saved = time.monotonic()

    def on_train_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        """The first checkpoint; from here on a signal is noted, whatever Lightning does with it."""
        self.stop.listen()
        if trainer.global_step == 0:
            self._save(trainer)
            if trainer.is_global_zero:
                self.part.begun()
        self._end_if_asked(trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, task: pl.LightningModule, *_: Any) -> None:
        """Save if it is time; end the run if the budget is spent or a signal came."""
        assert isinstance(task, TrainingTask)
        if not task.stepped:  # between two optimiser steps there are gradients that no checkpoint holds
            return
        stopping = any_process(trainer, self.stop.signum is not None)
        trainer.should_stop = trainer.should_stop or task.progress >= 1
        if stopping or trainer.should_stop or any_process(trainer, time.monotonic() - self.saved >= self.seconds):
            self._save(trainer)
        self._end_if_asked(trainer)

    def _save(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self.path)
        self.saved = time.monotonic()

    def _end_if_asked(self, trainer: pl.Trainer) -> None:
        if any_process(trainer, self.stop.signum is not None):
            self.stop.signum = self.stop.signum or signal.SIGTERM  # another process of the group was told
            raise self.stop.error()


def any_process(trainer: pl.Trainer, here: bool) -> bool:
    """Whether something holds in any process, so that all of them act together."""
    return bool(trainer.strategy.reduce_boolean_decision(here, all=False)) if trainer.world_size > 1 else here


class Validation(pl.Callback):
    """Dice on the whole validation images with the averaged weights; the best are kept as a model folder.

    Args:
        prepared: the preprocessed cases.
        ids: the validation cases.
        best: folder of the best model.
        description: of the model, for that folder.
        settings: ``val_every`` epochs between two validations (None spends at most 5 % of the training time on
            them) and ``steps_per_epoch``.
        stop: asked between two images whether to leave the rest for the next start.
    """

    def __init__(
        self,
        prepared: PreparedDataset,
        ids: Sequence[str],
        best: Path,
        description: Mapping[str, Any],
        settings: Mapping[str, Any],
        stop: StopRequest | None = None,
    ) -> None:
        self.stop = stop or StopRequest()
        self.prepared, self.ids, self.folder, self.description = prepared, list(ids), best, dict(description)
        self.every, self.steps_per_epoch = settings["val_every"], settings["steps_per_epoch"]
        self.best, self.cost, self.finished, self.due = -1.0, 0.0, 0.0, False

    def state_dict(self) -> dict[str, Any]:
        """Kept over a resume."""
        return {"best": self.best, "due": self.due}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore."""
        self.best, self.due = state["best"], state["due"]

    def on_train_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        """Do what a signal interrupted."""
        assert isinstance(task, SegmentationTask)
        if self.due and trainer.is_global_zero:
            self._validate(trainer, task)

    def on_train_batch_end(self, trainer: pl.Trainer, task: pl.LightningModule, *_: Any) -> None:
        """Validate at the end of an epoch, if it is due."""
        assert isinstance(task, SegmentationTask)
        epoch, rest = divmod(trainer.global_step, self.steps_per_epoch)
        if rest or not task.stepped or not self.ids or not trainer.is_global_zero or not self._due(task, epoch):
            return
        self._validate(trainer, task)

    def _validate(self, trainer: pl.Trainer, task: SegmentationTask) -> None:
        self.due, start = True, time.monotonic()
        scores = self.dice(task)
        if scores is None:
            return
        self.due, self.finished, self.cost = False, time.monotonic(), time.monotonic() - start
        mean = float(np.nanmean(scores))
        named = {f"val/dice_{name}": value for name, value in zip(task.target.classes, scores, strict=True)}
        metrics = {"val/dice": mean, **named, "minutes": task.budget.elapsed() / 60}
        trainer.callback_metrics["val/dice"] = torch.tensor(mean)
        for logger in trainer.loggers:
            logger.log_metrics({key: value for key, value in metrics.items() if value == value}, trainer.global_step)
        if mean > self.best:
            self.best = mean
            description = {**self.description, "metrics": {"val/dice": mean, "step": trainer.global_step}}
            save_model(self.folder, without_slices(task.final_network).state_dict(), description)

    def _due(self, task: SegmentationTask, epoch: int) -> bool:
        if self.every:
            return epoch % self.every == 0
        if not self.cost:
            return task.progress >= 0.1
        return time.monotonic() - self.finished >= self.cost / VALIDATION_SHARE

    @torch.no_grad()
    def dice(self, task: SegmentationTask) -> list[float] | None:
        """Mean Dice per class or region over the cases that have it in label or prediction; NaN if none has.

        None where it was asked to stop before the last image.
        """
        classes = task.target.classes
        network, training = task.final_network, task.final_network.training
        network.eval()
        scores = np.full((len(self.ids), len(classes)), np.nan)
        for row, case in zip(scores, self.ids, strict=True):
            if self.stop.signum is not None:
                break
            image = torch.from_numpy(np.array(self.prepared.image(case)))
            run = partial(task.profile.run, network)
            predicted = segment_array(run, task.target, image, self.description["plan"]["patch_size"]).numpy()
            found = evaluate_arrays(
                predicted,
                np.asarray(self.prepared.labels(case)),
                spacing=self.description["plan"]["spacing"],
                labels=classes,
                metrics=["dice"],
                ignore_label=self.description["target"].get("ignore_label"),
            )
            row[:] = [np.nan if score["dice"] is None else score["dice"] for score in found.values()]
        network.train(training)
        if self.stop.signum is not None:
            return None
        seen = ~np.isnan(scores).all(axis=0)
        return [float(np.nanmean(column)) if ok else float("nan") for column, ok in zip(scores.T, seen, strict=True)]

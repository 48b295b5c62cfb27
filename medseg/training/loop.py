"""The loop of a training: made ready while it may still be refused, and then turned until the budget is spent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch.multiprocessing.spawn import ProcessRaisedException

from medseg.errors import UnreadableFile
from medseg.training.callbacks import Checkpoints
from medseg.training.checkpoints import RunPart, read_own
from medseg.training.loader import TrainingData
from medseg.training.pretrained import mismatches
from medseg.training.progress import ProgressReport
from medseg.training.setup import make_trainer
from medseg.training.signals import StopRequest, catch_stop_signals
from medseg.training.task import TrainingTask


class TrainingLoop:
    """A training that nothing refuses any more; nothing is written before `run`.

    Args:
        settings: ``trainer`` of the config.
        part: of the run: receives checkpoints and logs.
        task: what is trained.
        data: its batches.
        more: callbacks that act before a checkpoint is saved.
        stop: notes the signal that asks to stop.
        resumed: go on with the part's newest checkpoint, if it has begun.

    Raises:
        UsageError: settings of optimiser, schedule or trainer that cannot be.
        UnsafeArtefact, UnreadableFile: checkpoints that cannot be used, as `RunPart.newest_checkpoint`.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        part: RunPart,
        task: TrainingTask,
        data: TrainingData,
        more: Sequence[pl.Callback] = (),
        stop: StopRequest | None = None,
        *,
        resumed: bool,
    ) -> None:
        self.part, self.task, self.data = part, task, data
        self.checkpoint = part.newest_checkpoint() if resumed else None
        if self.checkpoint:
            require_fit(self.checkpoint, part, task)
        task.check_settings()
        self.stop = stop or StopRequest()
        self.progress = ProgressReport(data.dataset.batch_size, settings["progress"])
        callbacks = [self.progress, *more, Checkpoints(part, settings["checkpoint_minutes"], self.stop)]
        self.trainer = make_trainer(settings, part, task.profile, callbacks)

    def run(self) -> dict[str, Any]:
        """Train until the budget is spent; returns the facts of the training.

        Raises:
            Interrupted: after a signal; the step was finished and the state saved.
        """
        try:
            with catch_stop_signals(self.stop), self.data.name_lost_workers():
                self.trainer.fit(self.task, self.data, ckpt_path=self.checkpoint)
        except ProcessRaisedException:  # of a spawned process, which was told to stop
            if self.stop.signum is None:
                raise
        if self.stop.signum is not None:
            raise self.stop.error()
        # Processes that were spawned leave their counts in the checkpoint only.
        state = read_own(self.part.folder.checkpoint, self.part.identity, mmap=True)
        facts = {"steps": state["global_step"], "seconds": round(state["elapsed"], 1)}
        return {**facts, **state["callbacks"][self.progress.state_key]}


def require_fit(checkpoint: Path, part: RunPart, task: TrainingTask) -> None:
    """Refuse a checkpoint whose tensors are not those of the network. Raises UnreadableFile."""
    wrong = mismatches(read_own(checkpoint, part.identity, mmap=True)["state_dict"], task.state_dict())
    if wrong:
        problem = f"does not fit the network: {'; '.join(wrong[:4])}"
        fix = "go on with the version of medseg that began the run, or choose another run_dir="
        raise UnreadableFile(problem, path=checkpoint, fix=fix)

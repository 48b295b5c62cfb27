"""The folder of a run: one process at a time, checkpoints that survive a kill, and where everything lies."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pytorch_lightning.plugins.io import CheckpointIO

from medseg.errors import MedsegError, ResourceError, UsageError
from medseg.io import load_checkpoint, save_checkpoint


class RunFolder:
    """Paths of one run.

    Args:
        path: the folder; created with its parents.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ResourceError(
                f"the run folder cannot be created: {error.strerror}", path=self.path, fix="choose another run_dir="
            ) from error
        self.config = self.path / "config.json"
        self.plan = self.path / "plan.json"
        self.splits = self.path / "splits_final.json"
        self.checkpoint = self.path / "checkpoints" / "last.ckpt"
        self.best = self.path / "best"
        self.validation = self.path / "validation"
        self.curve = self.path / "progress.png"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Refuse a second run in the same folder; the lock goes with the process, however it ends."""
        with open(self.path / ".lock", "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                fix = "wait for it, or choose another run_dir="
                raise UsageError("another run is using this folder", path=self.path, fix=fix) from error
            yield

    def newest_checkpoint(self, resume: bool) -> Path | None:
        """The checkpoint to go on from.

        The one before it is taken, with a notice, if the newest is damaged.

        Raises:
            UsageError: a checkpoint is there but `resume` is not set, so that it would be overwritten.
        """
        found = [path for path in (self.checkpoint, previous(self.checkpoint)) if path.exists()]
        if found and not resume:
            fix = "add resume=true to go on with it, or choose another run_dir="
            raise UsageError("the run folder holds a checkpoint already", path=self.path, fix=fix)
        for path in found:
            try:
                load_checkpoint(path)
                return path
            except MedsegError as error:
                print(f"medseg: {error} Trying the checkpoint before it.")
        return None


def previous(checkpoint: Path) -> Path:
    """Where the checkpoint before the newest is kept."""
    return checkpoint.with_name("previous.ckpt")


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's checkpoints through medseg's doors: written atomically, loaded without unpickling code."""

    def save_checkpoint(self, checkpoint: Mapping[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Keep the old file as ``previous.ckpt`` and write the new one."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            os.replace(path, previous(path))
        save_checkpoint(path, dict(checkpoint))

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: Any = True) -> dict[str, Any]:
        """Plain data and tensors only."""
        return load_checkpoint(path)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete it."""
        Path(path).unlink(missing_ok=True)

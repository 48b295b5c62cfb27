"""Checkpoints of a run: two of them, of which the older is given up only for one that was read and is of this run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytorch_lightning.plugins.io import CheckpointIO

from medseg.errors import MedsegError, UnreadableFile
from medseg.io import load_checkpoint
from medseg.io.checkpoint import save_checkpoint
from medseg.training.run_folder import OTHER_FOLDER, RunFolder
from medseg.training.run_record import RunRecord, has_begun, note_begun

RUN = "medseg_run"  # key of the run's identity in a checkpoint
NEEDED = ("state_dict", "optimizer_states", "loops", "callbacks", "global_step", "elapsed", "random_state")


def read_own(path: Path, identity: str, *, mmap: bool = False) -> dict[str, Any]:
    """A checkpoint of one run.

    Args:
        path: of the file.
        identity: of the run, see `RunPart.identity`.
        mmap: as for `medseg.io.load_checkpoint`.

    Raises:
        UnsafeArtefact: it holds what could run code.
        UnreadableFile: missing or damaged; `ForeignCheckpoint` if it is sound, but of another run.
    """
    state = load_checkpoint(path, mmap=mmap)
    if state.get(RUN) != identity:
        fix = f"put the run's own checkpoint there, remove this one to go on with the other, or {OTHER_FOLDER}"
        raise ForeignCheckpoint("is no checkpoint of this run", path=path, fix=fix)
    return state


class ForeignCheckpoint(UnreadableFile):
    """A checkpoint of another run, or a file of torch that is no checkpoint."""


@dataclass(frozen=True)
class RunPart:
    """One training of a run: all of it, or a fold in a folder of its own.

    Attributes:
        run: the folder of the run.
        record: what its checkpoints are bound to.
        name: of the fold's folder; empty for the run itself.
    """

    run: RunFolder
    record: RunRecord
    name: str = ""

    @property
    def folder(self) -> RunFolder:
        """Where checkpoints, logs and the model go."""
        return RunFolder(self.run.path / self.name) if self.name else self.run

    @property
    def identity(self) -> str:
        """What its checkpoints carry."""
        return self.record.identity(self.name)

    def begun(self) -> None:
        """Take down that the first checkpoint is on the disk."""
        note_begun(self.run, self.name)

    def newest_checkpoint(self) -> Path | None:
        """The checkpoint to go on from: the newest, or with a notice the one before it if the newest is damaged.

        Returns:
            None where this training has not begun.

        Raises:
            UnsafeArtefact: one of them holds what could run code.
            UnreadableFile: none of those that are there can be read, all are gone, or one is of another run.
        """
        paths = (self.folder.checkpoint, self.folder.previous)
        refused: list[str] = []
        for path in filter(os.path.lexists, paths):
            try:
                state = read_own(path, self.identity, mmap=True)
                if lacking := [key for key in NEEDED if key not in state]:
                    raise UnreadableFile(f"lacks {', '.join(lacking)}", path=path)
            except ForeignCheckpoint:
                raise
            except UnreadableFile as error:
                refused.append(f"{path.name} {error.problem}")
                continue
            for reason in refused:
                print(f"medseg: {reason}; going on with {path.name}, the checkpoint before it", flush=True)
            return path
        if refused or has_begun(self.run, self.name):
            problem = f"no checkpoint of the run can be read: {'; '.join(refused) or 'they are gone'}"
            fix = f"bring one back from a copy, or {OTHER_FOLDER}"
            raise UnreadableFile(problem, path=paths[0].parent, fix=fix)
        return None


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's checkpoints through medseg's doors: written atomically, loaded without unpickling code.

    Args:
        part: whose checkpoints they are.
    """

    def __init__(self, part: RunPart) -> None:
        self.newest, self.previous, self.identity = part.folder.checkpoint, part.folder.previous, part.identity

    def save_checkpoint(self, checkpoint: Mapping[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write the new file whole, then keep the old one as ``previous.ckpt`` if it can be read, then exchange them.

        Raises:
            ResourceError: it cannot be written; both old checkpoints are as they were.
        """
        rotate = self._rotate if Path(path) == self.newest else lambda: None  # Lightning keeps other files, too
        save_checkpoint(path, {**checkpoint, RUN: self.identity}, before_exchange=rotate)

    def _rotate(self) -> None:
        try:
            read_own(self.newest, self.identity, mmap=True)
        except MedsegError:  # missing or damaged: the one before it is the better one
            return
        os.replace(self.newest, self.previous)

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: Any = True) -> dict[str, Any]:
        """Plain data and tensors only, of this run."""
        return read_own(Path(path), self.identity)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete it."""
        Path(path).unlink(missing_ok=True)

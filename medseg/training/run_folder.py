"""The folder of a run: one process at a time, and where everything lies."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from medseg.data.outputs import check_outputs
from medseg.errors import ResourceError, UsageError
from medseg.io.model_folder import DESCRIPTION

OTHER_FOLDER = "choose another run_dir="
_OPEN = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a link or a pipe is not followed


class RunFolder:
    """Paths of one run; nothing is made before `lock`.

    Args:
        path: the folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        self.record = self.path / "run.json"
        self.config = self.path / "config.json"
        self.plan = self.path / "plan.json"
        self.splits = self.path / "splits_final.json"
        self.checkpoint = self.path / "checkpoints" / "last.ckpt"
        self.best = self.path / "best"
        self.validation = self.path / "validation"
        self.curve = self.path / "progress.png"

    @property
    def previous(self) -> Path:
        """The checkpoint before the newest."""
        return self.checkpoint.with_name("previous.ckpt")

    def occupied(self) -> Path | None:
        """The first thing in the folder that a run would write over, if there is any."""
        own = ("model.json", "model.safetensors", "crossval.json", "encoder", "adapter", "logs", "tensorboard")
        paths = [self.checkpoint, self.previous, self.record, self.config, self.plan, self.splits, self.best]
        paths += [self.validation, self.curve, *(self.path / name for name in (*own, "before.json", "after.json"))]
        return next((path for path in (*paths, *self.path.glob("fold_*")) if os.path.lexists(path)), None)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Make the folder, and refuse a second run in it; the lock goes with the process, however it ends.

        Where no run was begun, neither the lock nor folders that were made for it stay.

        Raises:
            UsageError: another run holds it, or its lock is no file of ours.
            ResourceError: it cannot be made or written.
        """
        lock = self.path / ".lock"
        made = [path for path in (lock, self.path, *self.path.absolute().parents) if not path.exists()]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            handle = self._hold(lock)
        except OSError as error:
            problem = f"the run folder cannot be written: {error.strerror}"
            raise ResourceError(problem, path=self.path, fix=OTHER_FOLDER) from error
        try:
            yield
        finally:
            if lock in made and not self.record.exists():
                with contextlib.suppress(OSError):  # a folder that is not empty stays
                    lock.unlink()
                    for folder in made[1:]:
                        folder.rmdir()
            os.close(handle)

    def _hold(self, path: Path) -> int:
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise UsageError(
                "the lock of a run folder is no file of ours", path=path, fix=f"remove it, or {OTHER_FOLDER}"
            )
        while True:
            handle = os.open(path, _OPEN, 0o666)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                os.close(handle)
                fix = f"wait for it, or {OTHER_FOLDER}"
                raise UsageError("another run is using this folder", path=self.path, fix=fix) from error
            if path.exists() and os.path.samestat(os.fstat(handle), path.lstat()):
                return handle
            os.close(handle)  # its owner removed it between the two calls


def check_run_dir(run_dir: str | Path, *read: str | Path | None) -> None:
    """Refuse a run in what it reads, or among a dataset's files; what a run's folder holds is its record's to judge.

    Args:
        run_dir: as given.
        read: dataset, and models that it begins with; None are passed over.

    Raises:
        UsageError, ResourceError: as `medseg.data.outputs.check_outputs`.
    """
    check_outputs(run_dir, [DESCRIPTION], read, ours_only=False)

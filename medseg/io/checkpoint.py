"""Training checkpoints: tensors and plain data, written atomically, read without running code."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from medseg.errors import UnreadableFile, UnsafeArtefact
from medseg.io.atomic import atomic_path, sync
from medseg.io.memory import out_of_memory

DOS_DIRECTORY = 0x10  # bit of an entry's external attributes


def save_checkpoint(
    path: str | Path, state: Mapping[str, Any], *, before_exchange: Callable[[], None] = lambda: None
) -> None:
    """Write tensors and plain data (no numpy numbers, no paths, no objects: `load_checkpoint` would refuse them).

    Args:
        path: of the file.
        state: what to keep.
        before_exchange: called when the new file is whole and on the disk, before it takes the place of the old one.

    Raises:
        ResourceError: it cannot be written; the old checkpoint is intact.
    """
    import torch

    with atomic_path(path) as temporary:
        with temporary.open("wb") as file:
            torch.save(dict(state), file)
        sync(temporary)
        before_exchange()


def load_checkpoint(path: str | Path, *, mmap: bool = False) -> dict[str, Any]:
    """Read a checkpoint to the CPU.

    Args:
        path: of the file.
        mmap: leave the tensors in the file until they are used.

    Raises:
        UnsafeArtefact: it holds objects that could run code; there is no unsafe fallback.
        UnreadableFile: missing, truncated or damaged.
    """
    import torch

    path = Path(path)
    _check_archive(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        first = str(error).split("WeightsUnpickler error:")[-1].strip().splitlines()[0]
        problem = f"holds more than tensors and plain data, which could run code: {first[:200]}"
        raise UnsafeArtefact(problem, path=path, fix="use only checkpoints that you made with this program") from None
    except Exception as error:  # whatever a reader of archives says of bytes that nobody wrote
        if out_of_memory(error):
            raise
        raise _damaged(path, str(error) or type(error).__name__) from None
    if not isinstance(state, dict):
        raise UnreadableFile(
            f"holds a {type(state).__name__}, no checkpoint", path=path, fix="use a checkpoint of ours"
        )
    return state


def _check_archive(path: Path) -> None:
    """A checkpoint is a zip with checksums: compare them, and refuse a bare pickle."""
    try:
        with path.open("rb") as file:
            start = file.read(4)
        if start[:1] == b"\x80":
            raise UnsafeArtefact("is a bare pickle, which could run code", path=path, fix="use a checkpoint of ours")
        with zipfile.ZipFile(path) as archive:
            wrong = archive.testzip()
            empty = [entry.filename for entry in archive.infolist() if _torch_reads_nothing(entry)]
    except OSError as error:
        raise UnreadableFile(f"cannot be read: {error.strerror or error}", path=path) from None
    except UnsafeArtefact:
        raise
    except Exception as error:  # zipfile meets damaged directories with half a dozen kinds of errors
        if out_of_memory(error):
            raise
        raise _damaged(path, str(error) or type(error).__name__) from None
    if wrong:
        raise _damaged(path, f"the checksum of '{wrong}' is wrong")
    if empty:
        raise _damaged(path, f"'{empty[0]}' is marked as a folder or as empty")


def _torch_reads_nothing(entry: zipfile.ZipInfo) -> bool:
    """Whether torch would take an entry for a folder, or for empty, and leave its tensor as memory happened to be."""
    folder = entry.is_dir() or bool(entry.external_attr & DOS_DIRECTORY)
    return folder or (entry.file_size > 0 and entry.compress_size == 0)


def _damaged(path: Path, reason: str) -> UnreadableFile:
    return UnreadableFile(f"is truncated or damaged: {reason.splitlines()[0][:200]}", path=path, fix="use an older one")

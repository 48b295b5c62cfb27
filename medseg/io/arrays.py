"""Plain .npy arrays: written atomically, read without pickle, memory-mapped."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medseg.errors import UnreadableFile, UnsafeArtefact
from medseg.io.atomic import atomic_path

_MAGIC = b"\x93NUMPY"


def save_array(path: str | Path, array: np.ndarray) -> None:
    """Write an array of numbers as .npy, atomically.

    Raises:
        ResourceError: it cannot be written; the old file is intact.
        ValueError: the array holds Python objects.
    """
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def load_array(path: str | Path, mmap: bool = True) -> np.ndarray:
    """Read a .npy file.

    Args:
        path: written by `save_array`.
        mmap: True: read-only pages of the file, nothing is loaded before it is used.

    Raises:
        UnreadableFile: missing, truncated or not .npy.
        UnsafeArtefact: it holds pickled objects.
    """
    try:
        with Path(path).open("rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                raise UnreadableFile("is not a .npy array", path=path, fix="remove it; it is made again")
        return np.load(path, mmap_mode="r" if mmap else None, allow_pickle=False)
    except OSError as error:
        raise UnreadableFile(f"cannot be read: {error.strerror or error}", path=path) from None
    except (ValueError, EOFError) as error:
        if "object" in str(error).lower():
            raise UnsafeArtefact("holds pickled objects, which could run code", path=path) from None
        raise UnreadableFile(f"is damaged: {error}", path=path, fix="remove it; it is made again") from None

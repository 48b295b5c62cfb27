"""A folder of DICOM slices as one volume, read in a process of its own with limits on memory and time."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from medseg.errors import UnreadableFile
from medseg.io.dicom_child import CHILD
from medseg.io.dicom_mark import DIRECTORY, bears_mark
from medseg.io.endings import KNOWN_ENDINGS
from medseg.io.memory import require_memory
from medseg.io.volume import Geometry

logger = logging.getLogger(__name__)

_BYTES_PER_VALUE = 8  # the volume, and the copy that is handed on


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM does; a DICOMDIR, which holds no image, does not count.

    Raises:
        UnreadableFile: it cannot be opened.
    """
    if path.name.startswith(".") or path.name.upper() == DIRECTORY or not path.is_file():
        return False
    try:
        return bears_mark(path)
    except OSError as error:
        problem = f"cannot be read: {error.strerror or error}"
        raise UnreadableFile(problem, path=path, fix="check its permissions") from None


def holds_dicom(folder: Path) -> bool:
    """Whether DICOM files lie directly in a folder; one that cannot be opened counts, so that reading names it."""
    return folder.is_dir() and any(map(_may_be_slice, sorted(folder.iterdir())))


def _may_be_slice(path: Path) -> bool:
    try:
        return is_dicom(path)
    except OSError:
        return not path.name.lower().endswith(KNOWN_ENDINGS)


def read_geometry(folder: Path) -> Geometry:
    """The grid, from the headers of all slices.

    Raises:
        UnreadableFile, BadGeometry, BadVoxels: see `medseg.io.dicom_series`.
    """
    with CHILD.asked(folder, voxels=False) as (head, _):
        return _geometry(head)


def read(folder: Path) -> tuple[np.ndarray, Geometry]:
    """Voxels (1, columns, rows, slices) float32, every slice's own slope and intercept applied, and their grid.

    Raises:
        UnreadableFile, BadGeometry, BadVoxels: see `medseg.io.dicom_series`.
        InputRefused: more voxels than the memory holds, or a decoder that crashed or found no end.
    """
    with CHILD.asked(folder, voxels=True) as (head, slices):
        geometry = _geometry(head)
        if head["left_out"]:
            reasons = "; ".join(f"{name} {reason}" for name, reason in head["left_out"].items())
            logger.warning("%s: what is no slice was left out: %s", folder, reasons)
        require_memory(_BYTES_PER_VALUE * int(np.prod(geometry.shape)))
        voxels = np.empty(geometry.shape[::-1], np.float32)  # (slices, rows, columns)
        for plane, content in zip(voxels, slices, strict=True):
            plane[:] = np.frombuffer(content, np.float32).reshape(plane.shape)
    return voxels.T[None], geometry


def _geometry(head: Mapping[str, Any]) -> Geometry:
    source = {"format": "dicom", "files": head["files"], "left_out": head["left_out"]}
    return Geometry(tuple(head["shape"]), np.array(head["affine"]), source)

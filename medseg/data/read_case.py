"""Read a training case's image and label map, and refuse what would train on nonsense."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from medseg.data.case import Case
from medseg.data.color import COLOR_FIX, in_color
from medseg.errors import BadGeometry, BadLabels, BadVoxels, InputRefused
from medseg.io import Geometry, Volume, read_channels, read_labels


def read_case_image(case: Case, color: str) -> Volume:
    """The image of a case (C, *S), pictures in the dataset's kind of colour, see `medseg.data.color.in_color`.

    Raises:
        InputRefused: as `read_channels`.
    """
    try:
        return in_color(read_channels(case.images, case=case.id), color)
    except BadVoxels as error:
        error.fix = "run medseg check fix=true for a copy with 0 there, or repair the file"
        raise


def check_image(case: Case, volume: Volume, channels: int, spatial_dims: int) -> None:
    """Refuse an image (C, *S) that is not of the dataset's kind. Raises InputRefused."""
    check_dimensions(case, volume, spatial_dims)
    if len(volume.array) != channels:
        is_picture = volume.ndim == 2 and {len(volume.array), channels} == {1, 3}
        kinds = {1: "grey (1 channel)", 3: "in colour (3 channels)"} if is_picture else {}
        found, wanted = (kinds.get(n, f"of {n} channel(s)") for n in (len(volume.array), channels))
        fix = COLOR_FIX if is_picture else "correct dataset.json or the files"
        raise InputRefused(f"the image is {found} (expected {wanted})", case=case.id, path=case.images[0], fix=fix)


def check_dimensions(case: Case, volume: Volume, spatial_dims: int) -> None:
    """Refuse a picture among volumes, or a volume among pictures. Raises InputRefused."""
    if volume.ndim != spatial_dims:
        problem = f"the image is {volume.ndim}D (expected {spatial_dims}D, as the dataset's first image)"
        raise InputRefused(problem, case=case.id, path=case.images[0], fix="keep 2D and 3D images in datasets apart")


def read_case_labels(case: Case, geometry: Geometry, known: Collection[int]) -> Volume:
    """The labels of a case, in the grid of its image and with known values only.

    Args:
        case: must have a label file.
        geometry: of the case's image.
        known: label values that may occur: background, classes, the ignore label.

    Raises:
        InputRefused: as `read_label_file` and `check_labels`.
    """
    labels = read_label_file(case)
    check_labels(case, labels, geometry, known)
    return labels


def read_label_file(case: Case) -> Volume:
    """The labels of a case (1, *S). Raises InputRefused: no label file, or as `medseg.io.read_labels`."""
    if case.label is None:
        raise InputRefused("the case has no label file", case=case.id, fix="add it or leave the case out")
    return read_labels(case.label, case=case.id, coding=case.coding)


def check_labels(case: Case, labels: Volume, geometry: Geometry, known: Collection[int]) -> None:
    """Refuse labels (1, *S) that do not fit the image.

    Raises:
        BadGeometry: the label map is on another grid (over half a voxel apart).
        BadLabels: unknown values; they are listed with their numbers of voxels.
    """
    difference = geometry.difference(labels.geometry)
    if difference:
        problem = f"image and label are on different grids: {difference}"
        raise BadGeometry(problem, case=case.id, path=case.label, fix="run medseg check")
    values, counts = np.unique(labels.array, return_counts=True)
    unknown = {int(v): int(n) for v, n in zip(values, counts, strict=True) if int(v) not in known}
    if unknown:
        found = ", ".join(f"{value} ({count} voxels)" for value, count in unknown.items())
        problem = f"label values {found} are not in the dataset (expected {sorted(known)})"
        raise BadLabels(problem, case=case.id, path=case.label, fix="correct the labels in dataset.json or the file")

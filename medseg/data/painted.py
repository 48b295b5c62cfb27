"""Images that have landmarks and no masks, as HybridGNet's authors publish theirs: masks are painted from the points.

They are painted once, into the user's cache, and read there as any other label file; the dataset stays as it is.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from medseg.data.case import Case
from medseg.data.case_files import group_images, image_files
from medseg.data.keys import case_key, digest, user_cache
from medseg.data.landmark_files import LandmarkLayout, find_landmarks, read_case_landmarks
from medseg.data.layouts import IMAGES, Layout, find_layout, subfolder, with_labels, with_labels_of
from medseg.errors import BadDataset, MedsegError
from medseg.io import read_geometry, write_labels


def known_layout(root: Path, *, strict: bool = True) -> Layout | None:
    """Cases of images and masks, or of images and landmarks; None where there are neither. Errors as `paint_layout`."""
    return find_layout(root) or paint_layout(root, strict=strict)


def paint_layout(root: Path, *, strict: bool = True) -> Layout | None:
    """Cases of ``images`` beside landmarks, each with a painted mask; None where there are not both.

    Structures become classes in the order of landmarks.json, or have the values that it gives them.

    Args:
        root: the dataset's folder.
        strict: refuse points that are wrong; ``medseg check``, which lists them all, gets an empty mask instead.

    Raises:
        BadDataset: no landmarks.json says what the points belong to.
        UnreadableFile, BadLabels: as `medseg.data.landmark_files.read_case_landmarks`.
        ResourceError: the cache cannot be written.
    """
    images = subfolder(root, IMAGES)
    if images is None:
        return None
    found = find_landmarks(root)
    grouped = group_images(image_files(images), found.files, suffixed=False)
    cases = [case for case in with_labels(grouped, {}, 1) if case.id in found.files]
    if not cases:
        return None
    if found.layout is None:
        fix = 'write landmarks.json, e.g. {"structures": {"right lung": 44, "left lung": 50}}'
        raise BadDataset("there are landmarks and no masks, and nothing names the structures", path=root, fix=fix)
    labels = _labels(found.layout)
    located = [Case(case.id, case.images, None, landmarks=found.files[case.id]) for case in cases]
    folder = _painted(located, found.layout, labels, strict)
    return Layout(tuple(with_labels_of(images, folder)), {}, labels=labels)


def _labels(layout: LandmarkLayout) -> dict[str, int]:
    """Class names of the structures' values; structures that share a value share a class."""
    values = layout.values or {name: value for value, name in enumerate(layout.structures, start=1)}
    names: dict[int, list[str]] = {}
    for name, value in values.items():
        names.setdefault(int(value), []).append(name)
    return {"background": 0, **{" and ".join(members): value for value, members in sorted(names.items())}}


def _painted(cases: list[Case], layout: LandmarkLayout, labels: Mapping[str, int], strict: bool) -> Path:
    """The folder of the masks, ``CASE.png``; made where no earlier call with the same files made it."""
    key = digest([[case_key(case) for case in cases], layout.to_dict(), strict])
    folder = user_cache() / "painted" / key[:16]
    if folder.is_dir():
        return folder
    from medseg.targets import Landmarks  # torch: seconds
    from medseg.targets.contours import paint

    structures = Landmarks(labels=dict(labels), **layout.to_dict()).structures
    scratch = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        for case in cases:
            geometry = read_geometry(case.images[0])
            points = _points(case, geometry.shape, layout, strict)
            mask = np.zeros(geometry.shape, np.int32) if points is None else paint(points, structures, geometry.shape)
            write_labels(scratch / f"{case.id}.png", mask, geometry)
        scratch.rename(folder)
    except OSError:
        if not folder.is_dir():  # another process may have been faster
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _points(case: Case, shape: Sequence[int], layout: LandmarkLayout, strict: bool) -> np.ndarray | None:
    """The landmarks of a case; None for wrong ones that are not refused."""
    count = sum(layout.structures.values())
    try:
        return read_case_landmarks(case.landmarks, case.id, shape, count, layout)
    except MedsegError:
        if strict:
            raise
        return None

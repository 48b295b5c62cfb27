"""Folders of images and masks without a dataset.json of nnU-Net or the Decathlon: which file is whose, on which side.

Known are ``images`` beside ``masks``, ``labels``, ``annotations`` or the like; ``train``, ``val`` and ``test`` above or
below them; and one folder in which ``x_mask.png`` or ``x_segmentation.png`` is the mask of ``x.jpg``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from medseg.data.case import Case
from medseg.data.case_files import (
    LABEL_SUFFIX,
    channel_paths,
    group_images,
    image_files,
    label_files,
    labels_by_case,
    stem,
)
from medseg.errors import BadDataset

Side = Literal["train", "val", "test"]
SIDE_NAMES: dict[Side, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
IMAGES = ("imagestr", "images", "image", "imgs", "img")
INSTANCES = "instances"
LABELS = (
    *("labelstr", "labels", "label", "masks", "mask", "annotations", "annotation", "segmentations"),
    *("segmentation", "ground_truth", "groundtruth", "gt", INSTANCES),
)
LAYOUTS = f"images ({', '.join(IMAGES)}) beside masks ({', '.join(LABELS)}), or x_mask.png beside x.png"


@dataclass(frozen=True)
class Layout:
    """What folders or a list hold.

    Attributes:
        cases: with labels or without.
        sides: case -> the side of the split that the folders or the list say it is on.
        instances: the labels lie in a folder called ``instances``.
        labels: name -> value, where something but the label files says so.
    """

    cases: tuple[Case, ...]
    sides: Mapping[str, Side]
    instances: bool = False
    labels: Mapping[str, int] | None = None


def find_layout(root: Path) -> Layout | None:
    """Cases of a folder by the names of its folders and files; None if it has no known layout. No file is opened.

    Raises:
        BadDataset: one name on two sides, which would be one case.
    """
    cases: list[Case] = []
    sides: dict[str, Side] = {}
    for side in SIDE_NAMES:
        _join(cases, sides, _side(root, side, _suffixed(cases)), side, root)
    if not set(sides.values()) & {"train", "val"}:
        cases = [*_pairs(root), *cases]
        folders = (subfolder(root, (name,)) for name in ("imagests", "labelsts"))
        _join(cases, sides, with_labels_of(*folders, suffixed=_suffixed(cases)), "test", root)
    if not any(case.label for case in cases):
        return None
    in_instances = all(INSTANCES in _folders(case.label, root) for case in cases if case.label)
    return Layout(tuple(cases), sides, in_instances)


def _join(cases: list[Case], sides: dict[str, Side], found: Sequence[Case], side: Side, root: Path) -> None:
    """Add the cases of a side."""
    twice = next((case.id for case in found if case.id in sides), None)
    if twice is not None:
        problem = f"two cases are called '{twice}', one of {sides[twice]} and one of {side}"
        raise BadDataset(problem, path=root, fix="name the files apart")
    cases += found
    sides |= {case.id: side for case in found}


def _suffixed(cases: Sequence[Case]) -> bool:
    """Whether the files of cases are called ``CASE_0000``, so that those of others are, too."""
    return any(stem(file) != case.id for case in cases for file in case.images)


def with_labels_of(images: Path | None, labels: Path | None, *, suffixed: bool = False) -> list[Case]:
    """The images of a folder, each with the label of its name if there is one.

    Args:
        images: folder.
        labels: folder.
        suffixed: ``img_0005`` is channel 5 of ``img``; else it is where a label tells so, of it or of another image.
    """
    known, files = label_files(labels) if labels else {}, image_files(images) if images else []
    cases = with_labels(group_images(files, known, suffixed=suffixed), known, 1)
    if suffixed or not _suffixed(cases):
        return cases
    return with_labels(group_images(files, known), known, 1)


def with_labels(grouped: Mapping[str, Mapping[int, Path]], labels: Mapping[str, Path], channels: int) -> list[Case]:
    """Cases of files grouped by name and channel."""
    one_file_each = all(set(found) == {0} for found in grouped.values())  # RGB or 4D: all channels in it
    count = 1 if one_file_each else channels
    return [Case(name, channel_paths(found, name, count), labels.get(name)) for name, found in sorted(grouped.items())]


def _side(root: Path, side: Side, suffixed: bool) -> list[Case]:
    """``train/images`` with ``train/masks``, ``images/train`` with ``masks/train``, or both in ``train``."""
    folder = subfolder(root, SIDE_NAMES[side])
    found = _pairs(folder) if folder else []
    if not found:
        images, labels = (subfolder(subfolder(root, names), SIDE_NAMES[side]) for names in (IMAGES, LABELS))
        found = with_labels_of(images, labels, suffixed=suffixed) if images and (labels or side == "test") else []
    if not found and folder and side == "test":
        found = with_labels_of(subfolder(folder, IMAGES) or folder, None, suffixed=suffixed)
    return found


def _pairs(root: Path) -> list[Case]:
    images, labels = subfolder(root, IMAGES), subfolder(root, LABELS)
    if images and labels:
        return with_labels_of(images, labels)
    files = image_files(root)
    masks = labels_by_case(
        (LABEL_SUFFIX.sub("", stem(file)), file) for file in files if LABEL_SUFFIX.search(stem(file))
    )
    others = [file for file in files if file not in masks.values()]
    return with_labels(group_images(others, masks, suffixed=False), masks, 1) if masks else []


def describe_unpaired(root: Path) -> tuple[str, str]:
    """Why a folder is none of images and masks (names that differ, or no two such folders), and what helps."""
    images, labels = subfolder(root, IMAGES), subfolder(root, LABELS)
    first = [next(iter(image_files(folder)), None) if folder else None for folder in (images, labels)]
    if images and labels and all(first):
        names = " and ".join(f"{file.parent.name}/{file.name}" for file in first if file)
        return f"no mask is named as its image, capitals included (there are {names})", "name images and masks alike"
    fix = f"name the folders so, or add a dataset.json: {LAYOUTS}"
    return "no folder of images beside one of masks", fix


def subfolder(root: Path | None, names: Sequence[str]) -> Path | None:
    """The first folder of one of these names, in any case of letters."""
    if root is None or not root.is_dir():
        return None
    there = {path.name.lower(): path for path in sorted(root.iterdir()) if path.is_dir()}
    return next((there[name] for name in names if name in there), None)


def _folders(file: Path, root: Path) -> set[str]:
    return {part.lower() for part in file.relative_to(root).parts[:-1]}

"""Images without labels for pretraining: which files a folder holds, and a plan for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from medseg.data.case import Case
from medseg.data.case_files import CHANNEL
from medseg.data.color import COLOR_FIX, checked_color, in_color
from medseg.data.landmark_files import find_landmarks
from medseg.data.layouts import LABELS, find_layout
from medseg.data.own_split import matching
from medseg.data.parallel import choose_workers, map_cases
from medseg.data.plan import Plan
from medseg.data.plan_choices import choose_network
from medseg.data.plan_rules import scheme_of
from medseg.errors import BadDataset, InputRefused, MedsegError
from medseg.io import KNOWN_ENDINGS, file_ending, read_channels

Z_SCORE = {"scheme": "zscore", "nonzero": False}
NOT_IMAGES = {*LABELS, "labelsts", "imagests", "test"}  # labels, and the images that a test is made of


def is_labelled(root: Path) -> bool:
    """Whether a path is a dataset that training knows; its images and folds are then those of training."""
    described = not root.is_dir() or (root / "dataset.json").exists()
    return described or find_layout(root) is not None or bool(find_landmarks(root).files)


def find_images(root: Path, *, test: str | None = None) -> list[Case]:
    """Every image file at any depth, as a case named after its path; folders of labels and of test images are skipped.

    Args:
        root: the folder.
        test: pattern of ids that must not be used, e.g. ``"site_b_*"``.

    Raises:
        BadDataset: fewer than two images are left.
        UsageError: no image matches `test`.
    """
    cases = []
    for file in sorted(root.rglob("*")):
        inner = file.relative_to(root)
        hidden = any(part.startswith(".") for part in inner.parts)
        if (
            hidden
            or NOT_IMAGES & {part.lower() for part in inner.parts}
            or not file.name.lower().endswith(KNOWN_ENDINGS)
        ):
            continue
        cases.append(Case(inner.as_posix()[: -len(file_ending(file))], (file,)))
    if test:
        apart = {case.id for case in matching([replace(case, id=case.id.rpartition("/")[2]) for case in cases], test)}
        cases = [case for case in cases if case.id.rpartition("/")[2] not in apart]
    return at_least_two(cases, root)


def at_least_two(cases: list[Case], root: Path) -> list[Case]:
    """The cases. Raises BadDataset where there are fewer than two: no batch could be made of them."""
    if len(cases) < 2:
        fix = "give a folder of images (at any depth), or check data.split_file"
        raise BadDataset(f"{len(cases)} images to pretrain on (expected at least 2)", path=root, fix=fix)
    return cases


def source_ids(name: str) -> set[str]:
    """The ids by which a dataset may know an image: its file name without folders, and without channel number."""
    last = name.rpartition("/")[2]
    match = CHANNEL.fullmatch(last)
    return {last, match["case"]} if match else {last}


def plan_images(
    cases: Sequence[Case], name: str, *, workers: int | None, device: str, given: Mapping[str, Any], color: str = "keep"
) -> Plan:
    """Read every image once and plan the views: size, strides and the scale of colours by training's rules, z-scores.

    Raises:
        InputRefused: an image that cannot be read, is not 2D, or has other channels than the first.
        UsageError: an unknown color.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    highest = 0.0
    look = partial(_shape_and_highest, color=checked_color(color))
    for case, found in map_cases(look, cases, workers=choose_workers(workers, cases), title="read images"):
        if isinstance(found, MedsegError):
            raise found
        shapes[case.id], highest = found[0], max(highest, found[1])
    channels = shapes[cases[0].id][0]
    for case in cases:
        if shapes[case.id][0] != channels:
            problem = f"has {shapes[case.id][0]} channel(s) ({cases[0].images[0].name} has {channels})"
            raise InputRefused(problem, case=case.id, path=case.images[0], fix=COLOR_FIX)
    spacing, wanted = (1.0, 1.0), {key: value for key, value in given.items() if value is not None}
    median = np.median([shape[1:] for shape in shapes.values()], axis=0)
    network, reasons = choose_network(median, spacing, None, device, wanted)
    plan = Plan(
        dataset=name,
        spatial_dims=2,
        channel_names=("R", "G", "B") if channels == 3 else tuple(f"channel_{n}" for n in range(channels)),
        labels={"background": 0, "foreground": 1},
        ignore_label=None,
        spacing=spacing,
        normalization=tuple(
            scheme_of("imagenet", channel, channels, {}, highest) if channels == 3 else Z_SCORE
            for channel in range(channels)
        ),
        crop_nonzero=False,
        mirror_axes=(0, 1),
        mirror_swaps={},
        reasons=reasons,
        color=color,
        **network,
    )
    return plan.override(**wanted)


def _shape_and_highest(case: Case, color: str) -> tuple[tuple[int, ...], float]:
    volume = in_color(read_channels(case.images, case=case.id), color)
    if volume.ndim != 2:
        raise InputRefused("is a volume (pretraining takes 2D images)", path=case.images[0])
    return volume.array.shape, float(volume.array.max())

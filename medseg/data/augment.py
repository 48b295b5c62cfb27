"""Augmentation by name. Parameters are drawn first, then applied purely: a sample's generator decides everything.

The recipe is nnU-Net's (Isensee et al. 2021, supplementary note 4) with an elastic part; 3D in ``augment3d`` (torch and
MONAI), 2D in ``augment2d`` (albumentations). Rotation is in mm and, in anisotropic volumes, only within the plane.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch

from medseg.data.augment_settings import PRESETS, AugmentationSettings, Sample, Transform
from medseg.data.plan import Plan
from medseg.errors import UsageError, nearest

ANISOTROPY = 3.0
MARGIN = 1.25  # rotation and zoom draw from a patch a quarter wider, so that its corners are not empty


@dataclass(frozen=True)
class Augmentation:
    """Steps in order; ``input_size`` is what the sampler should cut, the result has the plan's patch size."""

    steps: tuple[Transform, ...]
    input_size: tuple[int, ...]

    def draw(self, rng: np.random.Generator) -> list[tuple[int, Any]]:
        """(number of the step, its parameters) of the steps that happen; replay them with `apply`."""
        return [(i, step.draw(rng)) for i, step in enumerate(self.steps) if rng.random() < step.probability]

    def apply(self, sample: Sample, drawn: Sequence[tuple[int, Any]]) -> Sample:
        """Apply what was drawn."""
        for i, params in drawn:
            sample = self.steps[i].apply(sample, params)
        return sample

    def __call__(self, rng: np.random.Generator, sample: Sample) -> Sample:
        return self.apply(sample, self.draw(rng))


@dataclass(frozen=True)
class CentreCrop:
    """Cut the patch out of the wider input; a sample that already has the patch's size passes."""

    size: tuple[int, ...]
    probability: float = 1.0

    def draw(self, rng: np.random.Generator) -> None:
        """Nothing is random here."""

    def apply(self, sample: Sample, params: None) -> Sample:
        """(C, *wider) -> (C, *size)."""
        shape = sample["image"].shape[1:]
        box = [slice((wide - n) // 2, (wide - n) // 2 + n) for wide, n in zip(shape, self.size, strict=True)]
        image, label = (sample[name][(slice(None), *box)] for name in ("image", "label"))
        cut = {**sample, "image": image, "label": label}
        if "points" in sample:
            cut["points"] = sample["points"] - torch.tensor([float(part.start) for part in box[::-1]])
        return cut


@dataclass(frozen=True)
class Mirror:
    """Flip each allowed axis with probability one half; labels that name a side change places."""

    axes: tuple[int, ...]
    swaps: Mapping[str, Sequence[Sequence[int]]]
    axis_probability: float = 0.5
    probability: float = 1.0

    def draw(self, rng: np.random.Generator) -> tuple[int, ...]:
        """The axes to flip."""
        return tuple(axis for axis in self.axes if rng.random() < self.axis_probability)

    def apply(self, sample: Sample, params: tuple[int, ...]) -> Sample:
        """Flip image and label along spatial axes `params`."""
        dims = [1 + axis for axis in params]
        label = torch.flip(sample["label"], dims)
        for axis in params:
            label = swap_labels(label, self.swaps.get(str(axis), ()))
        return {**sample, "image": torch.flip(sample["image"], dims), "label": label}


def swap_labels(label: torch.Tensor, pairs: Sequence[Sequence[int]]) -> torch.Tensor:
    """Exchange label values, e.g. left and right kidney; any shape."""
    swapped = label.clone() if pairs else label
    for left, right in pairs:
        swapped[label == left] = right
        swapped[label == right] = left
    return swapped


def make_augmentation(name: str, spatial_dims: int, plan: Plan, **options: Any) -> Augmentation:
    """Build an augmentation: "none", "light", "default", "landmarks" for images seen as a whole, or a "list".

    Args:
        name: of the preset; "list" takes one option, ``transforms``, see `medseg.data.augment_list.listed_steps`.
        spatial_dims: 2 or 3.
        plan: patch size, spacing and mirroring are used.
        options: fields of `AugmentationSettings` that replace the preset's.

    Raises:
        UsageError: an unknown name or option; the nearest one is told.
    """
    if name == "list":
        return _listed(spatial_dims, plan, **options)
    if name not in ("none", *PRESETS):
        raise UsageError(f"there is no augmentation '{name}'", fix=nearest(name, ("none", "list", *PRESETS)))
    known = [field.name for field in fields(AugmentationSettings)]
    for option in options:
        if option not in known:
            raise UsageError(f"augmentation has no option '{option}'", fix=nearest(option, known))
    if name == "none":
        return Augmentation((), plan.patch_size)
    given: dict[str, Any] = {
        option: tuple(value) if isinstance(value, list) else value for option, value in options.items()
    }
    settings = replace(PRESETS[name], **given)
    axes = movable_axes(plan)
    wider = settings.spatial_probability > 0 and not settings.keep_inside
    size = wider_size(plan.patch_size, axes) if wider else plan.patch_size
    crop = CentreCrop(plan.patch_size)
    mirror = Mirror(plan.mirror_axes, plan.mirror_swaps, settings.mirror_probability)
    spatial, *intensity = _steps(spatial_dims, settings, plan, axes)
    if spatial_dims == 2 and len(axes) < 2:  # slices across a volume: turning them would mix coarse and fine
        return Augmentation((mirror, *intensity), plan.patch_size)
    return Augmentation((spatial, crop, mirror, *intensity), size)


def _listed(spatial_dims: int, plan: Plan, **options: Any) -> Augmentation:
    if unknown := sorted(options.keys() - {"transforms"}):
        raise UsageError(f"a list of transforms has no option '{unknown[0]}'", fix="put it into transforms")
    if spatial_dims != 2:
        raise UsageError(
            "a list of albumentations transforms is for 2D images", fix="use augmentation=light or default"
        )
    from medseg.data.augment_list import listed_steps

    return Augmentation(listed_steps(options.get("transforms", ()), plan), plan.patch_size)


def _steps(spatial_dims: int, settings: AugmentationSettings, plan: Plan, axes: Sequence[int]) -> tuple[Transform, ...]:
    """The spatial step, then the intensity steps. MONAI and albumentations take seconds to import: only here."""
    if settings.keep_inside and spatial_dims != 2:
        raise UsageError("augmentation with keep_inside is for 2D images", fix="use augmentation=light")
    if spatial_dims == 2:
        from medseg.data.augment2d import steps_2d

        return steps_2d(settings)
    from medseg.data.augment3d import steps_3d

    return steps_3d(settings, plan, axes)


def movable_axes(plan: Plan) -> tuple[int, ...]:
    """Spatial axes that rotation, zoom and elastic deformation may move.

    One over three times coarser than another, or a patch over three times thinner, stays fixed: rotation through thick
    slices would invent anatomy (nnU-Net's "dummy 2D" rule).
    """
    fine, wide = min(plan.spacing), max(plan.patch_size)
    return tuple(
        axis
        for axis, (mm, n) in enumerate(zip(plan.spacing, plan.patch_size, strict=True))
        if mm <= ANISOTROPY * fine and n * ANISOTROPY >= wide
    )


def wider_size(patch: Sequence[int], axes: Sequence[int]) -> tuple[int, ...]:
    """The patch with its margin on the movable axes; the difference is even, so both have the same centre."""
    margins = [math.ceil(n * (MARGIN - 1) / 2) if axis in axes else 0 for axis, n in enumerate(patch)]
    return tuple(n + 2 * margin for n, margin in zip(patch, margins, strict=True))

"""3D augmentation on torch tensors: one resampling for all spatial parts; intensities in ``intensity3d``.

Measured on one core, 40x56x40, image and label: MONAI's RandAffined 5.0 ms; its Rand3DElastic (sigma 5 to 8, image
alone) 228 ms. Here rotation, zoom, shear share one grid with the elastic part, which adds 0.7 ms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.transforms.utils import create_rotate

from medseg.data.augment_settings import AugmentationSettings, Sample, Transform
from medseg.data.intensity3d import Blur, Brightness, Contrast, Gamma, LowResolution, Noise
from medseg.data.plan import Plan

CONTROL_POINTS = 6
SMOOTH_LABELS = 8


def steps_3d(settings: AugmentationSettings, plan: Plan, axes: Sequence[int]) -> tuple[Transform, ...]:
    """The spatial step, then the intensity steps in nnU-Net's order."""
    s = settings
    return (
        Spatial(s, plan.patch_size, plan.spacing, tuple(axes), s.spatial_probability),
        Noise(s.noise_std, s.noise_probability),
        Blur(s.blur_sigma, s.blur_probability),
        Brightness(s.brightness, s.brightness_probability),
        Contrast(s.contrast, s.contrast_probability),
        LowResolution(s.low_resolution, s.low_resolution_probability),
        Gamma(s.gamma, s.gamma_probability),
    )


@dataclass(frozen=True)
class Spatial:
    """Rotation, zoom and shear about the patch's centre, in mm, and elastic deformation: one resampling in all.

    The image is interpolated linearly, and so is the mask of every label, of which the largest share wins (as in
    nnU-Net v2; nearest neighbours would leave steps on every boundary). Outside of the input both are 0.
    """

    settings: AugmentationSettings
    size: tuple[int, ...]
    spacing: tuple[float, ...]
    axes: tuple[int, ...]
    probability: float

    def draw(self, rng: np.random.Generator) -> dict[str, Any]:
        """``matrix`` (3, 3), output to input voxels about the centre; ``elastic`` (3, 6, 6, 6) voxels, or None."""
        s, moves = self.settings, np.isin(range(3), self.axes)
        turns = np.array([np.delete(moves, axis).all() for axis in range(3)])  # a turn about one axis moves the others
        angles = np.deg2rad(rng.uniform(-s.rotation_degrees, s.rotation_degrees, 3)) * turns
        shear = np.eye(3) + rng.uniform(-s.shear, s.shear, (3, 3)) * np.outer(moves, moves) * (1 - np.eye(3))
        zoom = np.where(moves, 1 / rng.uniform(*s.scale), 1.0)
        in_mm = create_rotate(3, tuple(angles))[:3, :3] @ shear @ np.diag(zoom)
        elastic = None
        if rng.random() < s.elastic_probability:
            elastic = rng.uniform(-s.elastic_voxels, s.elastic_voxels, (3, *[CONTROL_POINTS] * 3)).astype(np.float32)
            elastic *= moves[:, None, None, None]
        spacing = np.asarray(self.spacing)
        return {"matrix": in_mm * spacing[None, :] / spacing[:, None], "elastic": elastic}

    def apply(self, sample: Sample, params: dict[str, Any]) -> Sample:
        """(C, *input) -> (C, *size) for image and label."""
        grid = sampling_grid(params["matrix"], params["elastic"], sample["image"].shape[1:], self.size)
        image = F.grid_sample(sample["image"][None], grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        return {**sample, "image": image[0], "label": sample_labels(sample["label"], grid)}


def sample_labels(label: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """Labels (1, *input) at the points of a grid (1, *target, 3): the one with the largest share of linear weights.

    With more than `SMOOTH_LABELS` of them in the patch the nearest voxel decides, since time grows with their number.
    """
    values = label.unique()
    values = values[values != 0]
    if len(values) > SMOOTH_LABELS:
        nearest = F.grid_sample(label[None].float(), grid, mode="nearest", padding_mode="zeros", align_corners=False)
        return nearest[0].to(label.dtype)
    masks = (label == values.view(-1, 1, 1, 1)).float()
    shares = F.grid_sample(masks[None], grid, mode="bilinear", padding_mode="zeros", align_corners=False)[0]
    background = 1 - shares.sum(0, keepdim=True)
    winner = torch.cat([background, shares]).argmax(0, keepdim=True)
    return torch.cat([values.new_zeros(1), values])[winner]


def sampling_grid(
    matrix: np.ndarray, elastic: np.ndarray | None, source: Sequence[int], target: Sequence[int]
) -> torch.Tensor:
    """(1, *target, 3) grid for ``F.grid_sample``: where each output voxel is read in the input, about both centres.

    ``grid_sample`` counts from -1 to 1 over the whole extent and takes the last axis first.
    """
    relative = matrix * np.asarray(target)[None, :] / np.asarray(source)[:, None]
    theta = torch.zeros(1, 3, 4)
    theta[0, :, :3] = torch.from_numpy(relative[::-1, ::-1].copy())
    grid = F.affine_grid(theta, [1, 1, *target], align_corners=False)
    if elastic is None:
        return grid
    shift = torch.from_numpy(elastic * 2 / np.asarray(source, np.float32)[:, None, None, None])
    for n in target:  # separable: each product takes the first spatial axis away and appends it at full size
        shift = torch.tensordot(shift, spline_basis(n), dims=([1], [1]))
    return grid + shift.flip(0).permute(1, 2, 3, 0)[None]


@lru_cache(maxsize=32)
def spline_basis(n: int) -> torch.Tensor:
    """(n, CONTROL_POINTS) weights of uniform cubic B-splines at n voxels; every row sums to 1."""
    position = np.linspace(1, CONTROL_POINTS - 2, n)[:, None] - np.arange(CONTROL_POINTS)[None]
    d = np.abs(position)
    weights = np.where(d < 1, 2 / 3 - d**2 + d**3 / 2, np.where(d < 2, (2 - d) ** 3 / 6, 0.0))
    return torch.from_numpy(weights.astype(np.float32))

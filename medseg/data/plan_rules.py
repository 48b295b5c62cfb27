"""The rules that turn facts into numbers: each returns its choice with the reason. Pure functions of plain numbers.

Spacing, patch and strides follow nnU-Net (Isensee et al., Nature Methods 2021, supplementary note 2 and
``get_pool_and_conv_props``); the budgets are ours.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

ANISOTROPY = 3.0  # a coarser axis is treated on its own
MIN_EDGE = 4  # voxels: no axis is pooled below this
MAX_STAGES = 6

# Voxels of one patch and of one batch. A CPU is limited by time, not memory: 64^3 voxels, or eight images of 256 x 256,
# are about one second per training step of a small U-Net on two cores.
CPU_PATCH_VOXELS = {2: 320**2, 3: 64**3}
CPU_BATCH_VOXELS = {2: 8 * 256**2, 3: 180_000}
# nnU-Net trains two patches of 128^3 in 8 GiB.
BYTES_PER_VOXEL = 2048
DEFAULT_CUDA_GIB = 8.0
MAX_BATCH = 32

ZERO_BACKGROUND = 0.25
CROP_GAIN = 0.95
SPACING_DIGITS = 7  # significant ones: as many as headers in single precision hold, be it nm or mm

Choice = tuple[Any, str]


def target_spacing(spacings: np.ndarray, shapes: np.ndarray) -> Choice:
    """Median spacing per axis; on an axis far coarser than the others its 10th percentile.

    Args:
        spacings: (cases, d) mm.
        shapes: (cases, d) voxels.
    """
    target, size = np.median(spacings, axis=0), np.median(shapes, axis=0)
    worst = int(np.argmax(target))
    others = [axis for axis in range(len(target)) if axis != worst]
    finest = float(target[others].max())
    reason = f"median of {len(spacings)} cases"
    if target[worst] > ANISOTROPY * finest and size[worst] * ANISOTROPY < size[others].min():
        target[worst] = max(float(np.percentile(spacings[:, worst], 10)), finest)
        reason += f"; axis {worst} is over {ANISOTROPY:g} times coarser: 10th percentile there"
    return tuple(float(f"{mm:.{SPACING_DIGITS}g}") for mm in target), reason


def resampled_shape(shape: Sequence[int], spacing: Sequence[float], new_spacing: Sequence[float]) -> tuple[int, ...]:
    """Voxels that the same extent in mm has at another spacing, at least 1 per axis."""
    return tuple(max(1, round(n * old / new)) for n, old, new in zip(shape, spacing, new_spacing, strict=True))


def inserted(values: Sequence[Any], axis: int, value: Any) -> tuple[Any, ...]:
    """(a, b) -> (a, value, b) for axis 1: what a slice becomes in its volume."""
    return (*values[:axis], value, *values[axis:])


def voxel_budget(spatial_dims: int, device: str, memory_gib: float | None) -> tuple[int, int, str]:
    """Voxels per patch, voxels per batch, and the reason."""
    if device == "cpu":
        patch, batch, reason = CPU_PATCH_VOXELS[spatial_dims], CPU_BATCH_VOXELS[spatial_dims], "CPU"
        if memory_gib is not None:
            fitting = int(memory_gib * 2**30 / BYTES_PER_VOXEL)
            patch, batch, reason = min(patch, fitting // 2), min(batch, fitting), f"CPU, {memory_gib:g} GiB"
        return patch, batch, f"{patch} voxels per patch ({reason})"
    gib = DEFAULT_CUDA_GIB if memory_gib is None else memory_gib
    batch = int(gib * 2**30 / BYTES_PER_VOXEL)
    return batch // 2, batch, f"{batch // 2} voxels per patch ({device}, {gib:g} GiB)"


def fit_patch(median_shape: Sequence[float], spacing: Sequence[float], budget: int) -> tuple[tuple[int, ...], str]:
    """The whole median shape if it fits the budget, else the largest box of equal edges in mm inside it."""
    median = tuple(math.ceil(n) for n in median_shape)
    if math.prod(median) <= budget:
        return median, "the whole median shape fits"
    low, high = 0.0, max(n * mm for n, mm in zip(median, spacing, strict=True))
    for _ in range(50):
        edge = (low + high) / 2
        low, high = (edge, high) if math.prod(_box(median, spacing, edge)) <= budget else (low, edge)
    return tuple(max(1, round(n)) for n in _box(median, spacing, low)), f"equal edges of {low:.3g} mm fill the budget"


def _box(median: Sequence[int], spacing: Sequence[float], edge_mm: float) -> list[float]:
    return [min(float(n), edge_mm / mm) for n, mm in zip(median, spacing, strict=True)]


def choose_strides(patch: Sequence[int], spacing: Sequence[float]) -> tuple[tuple[tuple[int, ...], ...], str]:
    """Halve, stage by stage, every axis of at least 8 voxels whose spacing is within twice the finest one's."""
    size, mm = [float(n) for n in patch], [float(x) for x in spacing]
    strides = [(1,) * len(size)]
    while len(strides) < MAX_STAGES:
        large = [axis for axis, n in enumerate(size) if n >= 2 * MIN_EDGE]
        pooled = [axis for axis in large if mm[axis] < 2 * min(mm[i] for i in large)]
        if not pooled or (len(pooled) == 1 and size[pooled[0]] < 3 * MIN_EDGE):
            break
        strides.append(tuple(2 if axis in pooled else 1 for axis in range(len(size))))
        size = [n / step for n, step in zip(size, strides[-1], strict=True)]
        mm = [x * step for x, step in zip(mm, strides[-1], strict=True)]
    return tuple(strides), f"{len(strides)} stages: an axis is halved down to {MIN_EDGE} voxels, a coarse one later"


def total_stride(strides: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Product of all strides per axis: what a patch must be divisible by."""
    return tuple(math.prod(axis) for axis in zip(*strides, strict=True))


def round_patch(
    patch: Sequence[int], median_shape: Sequence[float], strides: Sequence[Sequence[int]]
) -> tuple[int, ...]:
    """Multiples of the total stride: upwards where the whole image shall fit, to the nearest elsewhere."""
    steps = total_stride(strides)
    return tuple(
        max(step, (math.ceil(n / step) if n >= median else round(n / step)) * step)
        for n, median, step in zip(patch, median_shape, steps, strict=True)
    )


def choose_batch(patch: Sequence[int], budget: int) -> Choice:
    """As many patches as the budget holds, 2 to 32."""
    size = min(MAX_BATCH, max(2, budget // math.prod(patch)))
    return size, f"{size} patches of {math.prod(patch)} voxels for a budget of {budget}"


def choose_normalization(
    name: str, intensities: dict[str, float], minima: Sequence[float], integers: bool, zero_fraction: float
) -> tuple[dict[str, Any], str]:
    """Scheme of one channel.

    Args:
        name: of the channel; the word CT settles it.
        intensities: pooled foreground statistics of the fingerprint.
        minima: smallest value of each case.
        integers: all cases have whole numbers only.
        zero_fraction: median share of voxels that are exactly 0.
    """
    named = re.search(r"(?<![a-z])ct(?![a-z])", name.lower()) is not None
    if named or (integers and float(np.median(minima)) <= -900):
        reason = "the channel is named CT" if named else "whole numbers down to -900 and below are Hounsfield units"
        scheme = scheme_of("ct", 0, 1, intensities, 0)
        return scheme, f"{reason}: clip to the foreground's 0.5 and 99.5 percentile, then the dataset's mean and std"
    if zero_fraction >= ZERO_BACKGROUND:
        reason = f"{zero_fraction:.0%} of the voxels are exactly 0: z-score per case over the others, which stay 0"
        return {"scheme": "zscore", "nonzero": True}, reason
    return {"scheme": "zscore", "nonzero": False}, "no fixed intensity scale: z-score per case"


IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}  # of red, green and blue in 0..1


def scheme_of(name: str, channel: int, channels: int, intensities: dict[str, float], highest: float) -> dict[str, Any]:
    """A named scheme with its numbers for one channel.

    Args:
        name: of the scheme.
        channel: number of the channel; a single one gets the mean of ImageNet's three.
        channels: how many there are.
        intensities: pooled foreground statistics of the fingerprint, for "ct".
        highest: largest value of any training case: 8-bit pictures end at 255, others at 65535 or at 1.
    """
    full = 1.0 if highest <= 1 else 255.0 if highest <= 255 else 65535.0 if highest <= 65535 else highest
    if name == "unit":
        return {"scheme": name, "full": full}
    if name == "imagenet":
        one = {key: values[channel] if channels == 3 else sum(values) / 3 for key, values in IMAGENET.items()}
        return {"scheme": name, "full": full, **one}
    if name == "ct":
        keys = {"lower": "percentile_00_5", "upper": "percentile_99_5", "mean": "mean", "std": "std"}
        return {"scheme": name, **{key: intensities[source] for key, source in keys.items()}}
    return {"scheme": name}

"""Choices of a plan made from a fingerprint, with reasons; the rules themselves are in ``plan_rules``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any

import numpy as np

from medseg.data import plan_rules as rules
from medseg.data.fingerprint import Fingerprint
from medseg.data.normalize import check_scheme
from medseg.errors import UsageError, nearest

SLICES = {"sagittal": 0, "coronal": 1, "axial": 2, "0": 0, "1": 1, "2": 2}  # of the canonical (RAS+) array


def choose_network(
    median_shape: np.ndarray,
    spacing: Sequence[float],
    memory_gib: float | None,
    device: str,
    given: dict[str, Any],
    slice_axis: int | None = None,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Patch, strides and batch: each follows from the ones before it, chosen or set by the user.

    Across a slice axis all of them are 1; what the user sets there is left for the plan's check.
    """
    if slice_axis is not None:
        return _of_slices(median_shape, spacing, memory_gib, device, given, slice_axis)
    patch_budget, batch_budget, budget_reason = rules.voxel_budget(len(spacing), device, memory_gib)
    if "size" in given:  # the network sees the whole of it, whatever it costs
        patch_budget = max(patch_budget, int(np.prod(median_shape)))
    patch, patch_reason = rules.fit_patch(median_shape.tolist(), spacing, patch_budget)
    patch = check_axes(given.get("patch_size", patch), len(spacing), "patch_size")
    strides, strides_reason = rules.choose_strides(patch, spacing)
    strides = given.get("strides", strides)
    if "patch_size" not in given:
        patch = rules.round_patch(patch, median_shape.tolist(), strides)
    batch, batch_reason = rules.choose_batch(patch, batch_budget)
    shape = "x".join(f"{n:g}" for n in median_shape)
    patch_reason = f"median shape {shape}, {budget_reason}: {patch_reason}; rounded to multiples of the strides"
    reasons = {"patch_size": patch_reason, "strides": strides_reason, "batch_size": batch_reason}
    return {"patch_size": patch, "strides": strides, "batch_size": batch}, reasons


def _of_slices(
    median_shape: np.ndarray,
    spacing: Sequence[float],
    memory_gib: float | None,
    device: str,
    given: dict[str, Any],
    axis: int,
) -> tuple[dict[str, Any], dict[str, str]]:
    flat: dict[str, Any] = {name: given[name] for name in ("patch_size", "strides", "size") if name in given}
    if "patch_size" in flat:
        flat["patch_size"] = _without(flat["patch_size"], axis)
    if "strides" in flat:
        flat["strides"] = tuple(_without(stage, axis) for stage in flat["strides"])
    in_plane = _without(spacing, axis)
    network, reasons = choose_network(np.delete(median_shape, axis), in_plane, memory_gib, device, flat)
    network["patch_size"] = rules.inserted(network["patch_size"], axis, 1)
    network["strides"] = tuple(rules.inserted(stage, axis, 1) for stage in network["strides"])
    return network, {**reasons, "slice_axis": f"2D: slices across axis {axis} of the volumes"}


def _without(values: Sequence[Any], axis: int) -> tuple[Any, ...]:
    return tuple(value for a, value in enumerate(values) if a != axis)


def slice_axis(slices: str | int | None, spatial_dims: int) -> int | None:
    """``"axial"``, ``"coronal"``, ``"sagittal"`` or a number -> axis of the canonical array; None: no slices.

    Raises:
        UsageError: another word, or images that have two dimensions already.
    """
    if slices is None:
        return None
    axis = SLICES.get(str(slices))
    if axis is None:
        known = [name for name in SLICES if not name.isdigit()]
        raise UsageError(f"slices is '{slices}': {nearest(str(slices), known)}", fix="or give an axis, 0 to 2")
    if spatial_dims != 3:
        raise UsageError(f"slices={slices} needs volumes; the images are 2D already", fix="leave data.slices out")
    return axis


def named_normalization(name: str, fingerprint: Fingerprint) -> tuple[dict[str, Any], ...]:
    """One scheme by name for every channel, with the numbers that it needs from the training cases.

    Raises:
        UsageError: an unknown scheme, or "imagenet" for other than 1 or 3 channels.
    """
    channels = len(fingerprint.channel_names)
    check_scheme({"scheme": name})
    if name == "imagenet" and channels not in (1, 3):
        raise UsageError(f"plan.normalization=imagenet is for 1 or 3 channels, not {channels}")
    highest = max(max(case.maximum) for case in fingerprint.cases)
    return tuple(
        rules.scheme_of(name, channel, channels, fingerprint.intensities[channel], highest)
        for channel in range(channels)
    )


def choose_crop(fingerprint: Fingerprint) -> tuple[bool, str]:
    if fingerprint.spatial_dims == 2:
        return False, "pictures are used whole"
    kept = float(np.median([np.prod(case.cropped_shape) / np.prod(case.shape) for case in fingerprint.cases]))
    return kept < rules.CROP_GAIN, f"the box of non-zero voxels holds {kept:.0%} of the median image"


def choose_normalization(fingerprint: Fingerprint) -> tuple[tuple[dict[str, Any], ...], str]:
    if fingerprint.spatial_dims == 2 and fingerprint.channel_names == ("R", "G", "B"):
        reason = "pictures in colour: one fixed scale for all, so that colours keep their meaning"
        return named_normalization("imagenet", fingerprint), reason
    schemes, reasons = [], []
    for channel, name in enumerate(fingerprint.channel_names):
        scheme, reason = rules.choose_normalization(
            name,
            fingerprint.intensities[channel],
            [case.minimum[channel] for case in fingerprint.cases],
            all(case.integers[channel] for case in fingerprint.cases),
            float(np.median([case.zero_fraction[channel] for case in fingerprint.cases])),
        )
        schemes.append(scheme)
        reasons.append(f"{name}: {reason}")
    return tuple(schemes), "; ".join(reasons)


def places(fingerprint: Fingerprint) -> tuple[dict[int, list[float]], dict[int, float]]:
    """Per label value: side offsets of the cases that have it, and its median number of voxels there."""
    values = [value for value in fingerprint.labels.values() if value != 0]
    offsets = {v: [case.offsets[v] for case in fingerprint.cases if v in case.offsets] for v in values}
    voxels = {v: [case.voxels[v] for case in fingerprint.cases if v in case.voxels] for v in values}
    return offsets, {v: float(np.median(counts)) for v, counts in voxels.items() if counts}


def training_ranges(fingerprint: Fingerprint, shapes: np.ndarray, spacings: np.ndarray) -> dict[str, Any]:
    """What the training cases span, for `medseg.inference.guard`."""
    minimum = np.array([case.minimum for case in fingerprint.cases])
    maximum = np.array([case.maximum for case in fingerprint.cases])
    names = ("case_min", "case_min_highest", "case_max_lowest", "case_max")
    extremes = np.stack([minimum.min(0), minimum.max(0), maximum.min(0), maximum.max(0)], axis=1)
    whole = [dict(zip(names, map(float, channel), strict=True)) for channel in extremes]
    axes = {"spacing": spacings, "shape": shapes, "extent": shapes * spacings}
    return {
        "cases": len(fingerprint.cases),
        **{name: {"min": seen.min(0).tolist(), "max": seen.max(0).tolist()} for name, seen in axes.items()},
        "intensity": [{**facts, **case} for facts, case in zip(fingerprint.intensities, whole, strict=True)],
    }


def check_axes(values: Any, spatial_dims: int, name: str) -> Any:
    numbers = list(values) if isinstance(values, Iterable) else []
    if len(numbers) != spatial_dims or not all(isinstance(n, Real) and float(n) > 0 for n in numbers):
        raise UsageError(f"plan.{name} is {numbers or values} (expected {spatial_dims} numbers > 0)")
    return values

"""Intensity normalisation, one scheme per channel as the plan names it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medseg.errors import UsageError, nearest

CONSTANT = float(np.finfo(np.float32).eps)  # of the largest value: what varies less is rounding
SCHEMES: dict[str, tuple[str, ...]] = {  # name -> the numbers it needs
    "zscore": (),
    "ct": ("lower", "upper", "mean", "std"),
    "percentile": (),
    "none": (),
    "unit": ("full",),  # / full, the largest value that the kind of picture can have
    "imagenet": ("full", "mean", "std"),  # / full, then ImageNet's mean and standard deviation
    "minmax255": (),  # per case over all its channels: minimum to 0, maximum to 255
}


def check_scheme(scheme: Mapping[str, Any]) -> None:
    """Raises UsageError for an unknown scheme; the nearest is told."""
    name = scheme.get("scheme")
    if name not in SCHEMES:
        raise UsageError(f"unknown normalization {name if name else dict(scheme)}: {nearest(str(name), SCHEMES)}")


def normalize(array: np.ndarray, schemes: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Normalise each channel of one case.

    Args:
        array: (C, *S) intensities as the files have them.
        schemes: one per channel, see `medseg.data.plan.Plan.normalization`.

    Returns:
        (C, *S) float32, a new array.

    Raises:
        UsageError: an unknown scheme, or not one per channel.
    """
    if len(schemes) != len(array):
        raise UsageError(f"the case has {len(array)} channels, the plan's normalization {len(schemes)}")
    tissue = (array != 0).any(axis=0)
    low, high = float(array.min()), float(array.max())
    whole = {"tissue": tissue, "low": low, "high": high}
    return np.stack([_channel(channel, scheme, **whole) for channel, scheme in zip(array, schemes, strict=True)])


def _channel(
    channel: np.ndarray, scheme: Mapping[str, Any], *, tissue: np.ndarray, low: float, high: float
) -> np.ndarray:
    if lacking := [key for key in SCHEMES.get(str(scheme.get("scheme")), ()) if key not in scheme]:
        fix = "set it for all channels by its name, as plan.normalization=imagenet"
        raise UsageError(f"normalization '{scheme['scheme']}' lacks {', '.join(lacking)}", fix=fix)
    channel = channel.astype(np.float32)
    match scheme.get("scheme"):
        case "zscore" if scheme.get("nonzero"):
            return _zscore_tissue(channel, tissue)
        case "zscore":
            return _standardize(channel, float(channel.mean(dtype=np.float64)), float(channel.std(dtype=np.float64)))
        case "ct":
            clipped = np.clip(channel, scheme["lower"], scheme["upper"])
            return _standardize(clipped, float(scheme["mean"]), float(scheme["std"]))
        case "percentile":
            dark, bright = np.percentile(channel, (scheme.get("lower", 0.5), scheme.get("upper", 99.5)))
            return _standardize(np.clip(channel, dark, bright), float(dark), float(bright - dark))
        case "none":
            return channel
        case "unit":
            return channel / np.float32(scheme["full"])
        case "imagenet":
            return _standardize(channel / np.float32(scheme["full"]), float(scheme["mean"]), float(scheme["std"]))
        case "minmax255":
            return _standardize(channel, low, (high - low) / 255)
        case _:
            check_scheme(scheme)
            raise AssertionError("every known scheme is above")


def _zscore_tissue(channel: np.ndarray, tissue: np.ndarray) -> np.ndarray:
    """Statistics over the voxels that are not 0 in every channel; the others become exactly 0, as in nnU-Net."""
    values = channel[tissue]
    if values.size == 0:
        return channel
    scaled = _standardize(values, float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64)))
    result = np.zeros_like(channel)
    result[tissue] = scaled
    return result


def _standardize(values: np.ndarray, shift: float, scale: float) -> np.ndarray:
    """Where nothing varies, the scale is 1, as in scikit-learn; whatever the unit, so that 1e-10 can be a contrast."""
    largest = max(abs(shift), float(np.abs(values).max(initial=0)))
    return ((values - shift) / (scale if scale > CONSTANT * largest else 1.0)).astype(np.float32)

"""Intensity normalisation, one scheme per channel as the plan names it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medseg.errors import UsageError, nearest

SMALLEST_STD = 1e-8


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
    return np.stack([_channel(channel, scheme, tissue) for channel, scheme in zip(array, schemes, strict=True)])


def _channel(channel: np.ndarray, scheme: Mapping[str, Any], tissue: np.ndarray) -> np.ndarray:
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
            low, high = np.percentile(channel, (scheme.get("lower", 0.5), scheme.get("upper", 99.5)))
            return _standardize(np.clip(channel, low, high), float(low), float(high - low))
        case "none":
            return channel
        case unknown:
            raise UsageError(
                f"unknown normalization '{unknown}'", fix=nearest(str(unknown), ("zscore", "ct", "percentile", "none"))
            )


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
    return ((values - shift) / max(scale, SMALLEST_STD)).astype(np.float32)

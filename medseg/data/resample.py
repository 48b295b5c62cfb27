"""Resampling of images, label maps and probabilities to another grid over the same extent.

Convention: the outer edges of the grid stay where they are (voxel i covers [i, i + 1], its centre is i + 0.5), so the
new voxel j has its centre at ``(j + 0.5) * old_shape / new_shape`` in old voxels. This is ``F.interpolate`` with
``align_corners=False``. The new shape is ``round(shape * spacing / new_spacing)``; the true new spacing is therefore
``spacing * old_shape / new_shape``, up to half a voxel per image extent away from the nominal one.

Interpolation is linear on every axis, also on a coarse one (nnU-Net takes nearest there): probabilities restored the
same way stay smooth between thick slices.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

MODES = {2: "bilinear", 3: "trilinear"}


def resample(array: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Linear interpolation to a grid of `shape` over the same extent.

    Args:
        array: (C, *S) floating point.
        shape: the new spatial shape.

    Returns:
        (C, *shape); the very same tensor if the shape is the same.
    """
    if tuple(array.shape[1:]) == tuple(shape):
        return array
    return F.interpolate(array[None], size=tuple(shape), mode=MODES[array.ndim - 1], align_corners=False)[0]


def resample_image(image: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """`resample` of a (C, *S) float32 array, one channel at a time to bound the memory."""
    if image.shape[1:] == tuple(shape):
        return image
    out = np.empty((len(image), *shape), np.float32)
    for channel, target in zip(image, out, strict=True):
        target[:] = resample(torch.from_numpy(np.ascontiguousarray(channel))[None], shape)[0].numpy()
    return out


def resample_labels(labels: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Resample a label map: each class linearly as a mask, the largest wins; the lower value wins a tie.

    Only two masks exist at a time, whatever the number of classes.

    Args:
        labels: (*S) integers.
        shape: the new shape.

    Returns:
        (*shape) of the same type; the very same array if the shape is the same.
    """
    if labels.shape == tuple(shape):
        return labels
    winner = torch.zeros(tuple(shape), dtype=torch.int64)
    best = torch.full(tuple(shape), -1.0)
    for value in np.unique(labels):
        mask = torch.from_numpy((labels == value).astype(np.float32))
        share = resample(mask[None], shape)[0]
        better = share > best
        winner[better] = int(value)
        torch.maximum(best, share, out=best)
    return winner.numpy().astype(labels.dtype)

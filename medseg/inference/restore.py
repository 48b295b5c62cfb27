"""From the network's grid back to the file's spacing, plane after plane: what comes in need never be there at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

MODES = {1: "linear", 2: "bilinear"}


def restore_planes(
    slabs: Iterable[Tensor], count: int, shape: Sequence[int], blocks: Iterable[tuple[int, int]]
) -> Iterator[Tensor]:
    """Linear interpolation of planes that arrive one after the other; the same values as `medseg.data.resample`.

    Args:
        slabs: (n, K, *R) each; one after the other the planes of a grid.
        count: planes of that grid.
        shape: the grid to reach over the same extent: planes, then the size of a plane.
        blocks: consecutive (start, stop) planes of the grid to reach.

    Yields:
        (stop - start, K, *shape[1:]) for each block.
    """
    lower, upper, share = linear_taps(count, shape[0])
    arriving = (resize_planes(slab, shape[1:]) for slab in slabs)
    held, first = next(arriving), 0
    for start, stop in blocks:
        low, high = int(lower[start]), int(upper[stop - 1])
        while first + len(held) <= high:
            done = min(low - first, len(held))
            held, first = torch.cat([held[done:], next(arriving)]), first + done
        yield _blend(held, lower[start:stop] - first, upper[start:stop] - first, share[start:stop])


def linear_taps(count: int, wanted: int) -> tuple[Tensor, Tensor, Tensor]:
    """For each of ``wanted`` voxels the two of ``count`` voxels it lies between, and the share of the second.

    Voxel centres are at i + 0.5 and outer edges coincide, as in `torch.nn.functional.interpolate`.
    """
    centre = ((torch.arange(wanted, dtype=torch.float64) + 0.5) * (count / wanted) - 0.5).clamp(0, count - 1)
    lower = centre.floor().long()
    return lower, (lower + 1).clamp(max=count - 1), (centre - lower).float()


def resize_planes(planes: Tensor, size: Sequence[int]) -> Tensor:
    """(n, K, *R) -> (n, K, *size), linearly within each plane."""
    if tuple(planes.shape[2:]) == tuple(size):
        return planes
    return F.interpolate(planes, size=tuple(size), mode=MODES[len(size)], align_corners=False)


def _blend(planes: Tensor, lower: Tensor, upper: Tensor, share: Tensor) -> Tensor:
    blended = planes[lower]
    return blended.lerp_(planes[upper], share.view(-1, *[1] * (planes.ndim - 1))) if share.any() else blended

"""Logits of a whole image from overlapping patches, blended with Gaussian weights (as nnU-Net does)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice, product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medseg.device import DeviceProfile


@torch.inference_mode()
def sliding_window(
    network: nn.Module,
    image: Tensor,
    patch_size: Sequence[int],
    profile: DeviceProfile,
    *,
    overlap: float = 0.5,
    window_batch: int = 1,
) -> Tensor:
    """Run a network over all windows of an image.

    Args:
        network: maps (B, C, *patch_size) to (B, K, *patch_size).
        image: (C, *P) float32; padded with zeros where it is smaller than the patch.
        patch_size: size of a window in voxels.
        profile: device, precision and memory format of the network.
        overlap: share of a window that the next one covers again, 0 <= overlap < 1.
        window_batch: windows per network call.

    Returns:
        (K, *P) float32 logits on the CPU: per voxel the weighted mean over the windows that cover it.
    """
    padded, inside = pad_to(image, patch_size)
    starts = product(*map(window_starts, padded.shape[1:], patch_size, [overlap] * len(patch_size)))
    windows = [tuple(slice(a, a + n) for a, n in zip(start, patch_size, strict=True)) for start in starts]
    weight = importance(tuple(patch_size))
    total, weights = None, torch.zeros(padded.shape[1:])
    for chunk in _chunks(windows, window_batch):
        batch = profile.place_batch(torch.stack([padded[(slice(None), *window)] for window in chunk]))
        with profile.autocast():
            logits = network(batch)
        for window, patch in zip(chunk, logits.float().cpu(), strict=True):
            if len(windows) == 1:
                return patch[(slice(None), *inside)].contiguous()
            total = torch.zeros(len(patch), *padded.shape[1:]) if total is None else total
            total[(slice(None), *window)] += patch * weight
            weights[window] += weight
    assert total is not None
    return (total / weights)[(slice(None), *inside)]


def window_starts(size: int, patch: int, overlap: float) -> list[int]:
    """First voxels of the windows along one axis: evenly spread, no two further apart than (1 - overlap) * patch."""
    if size <= patch:
        return [0]
    count = -(-(size - patch) // max(1, int(patch * (1 - overlap))))
    return [round(i * (size - patch) / count) for i in range(count + 1)]


@lru_cache(maxsize=8)
def importance(patch_size: tuple[int, ...]) -> Tensor:
    """Gaussian weights of a window, sigma = size / 8, at least 1e-3 so that no voxel is lost; the same as MONAI's."""
    weight = torch.ones(())
    for n in patch_size:
        position = torch.arange(n, dtype=torch.float32) - (n - 1) / 2
        weight = weight[..., None] * torch.exp(-0.5 * (position / (n / 8)) ** 2)
    return weight.clamp(min=1e-3)


def pad_to(image: Tensor, size: Sequence[int]) -> tuple[Tensor, tuple[slice, ...]]:
    """Pad (C, *P) with zeros, evenly on both sides, to at least `size`; also the slices that hold the image."""
    padding, inside = [], []
    for have, want in zip(image.shape[1:], size, strict=True):
        before = max(0, want - have) // 2
        padding.append((before, max(0, want - have) - before))
        inside.append(slice(before, before + have))
    return F.pad(image, [side for pair in reversed(padding) for side in pair]), tuple(inside)


def _chunks(windows: Sequence[tuple[slice, ...]], size: int) -> Iterator[list[tuple[slice, ...]]]:
    iterator = iter(windows)
    while chunk := list(islice(iterator, size)):
        yield chunk

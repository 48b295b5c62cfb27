"""The planes of one network for one case: from its prepared array to probabilities at the file's spacing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from medseg.data.preprocess import Preprocessed
from medseg.data.resample import resample_image
from medseg.errors import UsageError
from medseg.inference.restore import linear_taps, restore_planes
from medseg.inference.sliding_window import stream_planes
from medseg.targets import Target

BLOCK_BYTES = 16 * 2**20  # of probabilities that are decoded at a time
SMALLEST_SCALE, LARGEST_SCALE = 0.25, 4.0


@dataclass(frozen=True)
class Scaled:
    """A prepared array at one scale of the test-time augmentation.

    Attributes:
        array: (C, *Q) float32.
        needed: (*Q) bool, the voxels that the result depends on; None: all of them.
    """

    array: Tensor
    needed: Tensor | None


@dataclass(frozen=True)
class Streaming:
    """How the windows of a case run.

    Attributes:
        axis: spatial axis along which planes leave.
        overlap: of the windows.
        window_batch: windows per network call.
        skip_empty: see `medseg.inference.sliding_window.stream_planes`.
        spill: folder for logits that do not fit into memory.
    """

    axis: int
    overlap: float
    window_batch: int
    skip_empty: bool
    spill: Path | None


def probability_planes(
    network: Callable[[Tensor], Tensor],
    target: Target,
    patch_size: Sequence[int],
    images: Sequence[Scaled],
    done: Preprocessed,
    blocks: Sequence[tuple[int, int]],
    how: Streaming,
) -> Iterator[Tensor]:
    """Probabilities (n, P, *R) of one network for each block of planes of the whole canonical image.

    Args:
        network: logits of windows.
        target: activates them.
        patch_size: of the windows.
        images: the prepared array at every scale; logits are averaged over them.
        done: what leads back from the prepared grid.
        blocks: consecutive (start, stop) planes.
        how: the windows run.
    """
    axis = how.axis
    crop, rest = done.bbox[axis], [box for a, box in enumerate(done.bbox) if a != axis]
    whole = tuple(n for a, n in enumerate(done.canonical_shape) if a != axis)
    parts = [(max(a, crop[0]) - crop[0], min(b, crop[1]) - crop[0]) for a, b in blocks]
    most = max(1, BLOCK_BYTES // (4 * target.probability_channels * prod(whole)))
    logits = _mean_logits(network, target.out_channels, patch_size, images, done.resampled_shape, most, how)
    shape = (done.cropped_shape[axis], *(b - a for a, b in rest))
    restored = restore_planes(
        map(target.activate, logits), done.resampled_shape[axis], shape, [(a, b) for a, b in parts if a < b]
    )
    for (start, stop), (a, b) in zip(blocks, parts, strict=True):
        if (b - a, *shape[1:]) == (stop - start, *whole):
            yield next(restored)
            continue
        # Outside the crop no class is probable, so the background is decoded there.
        full = torch.zeros(stop - start, target.probability_channels, *whole)
        if a < b:
            inner = slice(a + crop[0] - start, b + crop[0] - start)
            full[(inner, slice(None), *(slice(*box) for box in rest))] = next(restored)
        yield full


def _mean_logits(
    network: Callable[[Tensor], Tensor],
    channels: int,
    patch_size: Sequence[int],
    images: Sequence[Scaled],
    shape: Sequence[int],
    most: int,
    how: Streaming,
) -> Iterator[Tensor]:
    """Planes of logits on the prepared grid: of the array itself, or the mean over its scales, resampled to it."""
    streams = [
        stream_planes(
            network,
            image.array,
            patch_size,
            axis=how.axis,
            overlap=how.overlap,
            window_batch=how.window_batch,
            most=most,
            skip_empty=how.skip_empty,
            needed=image.needed,
            channels=channels,
            spill=how.spill,
        )
        for image in images
    ]
    if [tuple(image.array.shape[1:]) for image in images] == [tuple(shape)]:
        yield from streams[0]
        return
    planes = (shape[how.axis], *(n for a, n in enumerate(shape) if a != how.axis))
    blocks = [(a, min(a + most, planes[0])) for a in range(0, planes[0], most)]
    restored = [
        restore_planes(stream, image.array.shape[1 + how.axis], planes, blocks)
        for stream, image in zip(streams, images, strict=True)
    ]
    for parts in zip(*restored, strict=True):
        yield reduce(Tensor.add_, parts).div_(len(parts))


def scaled_images(
    array: np.ndarray, done: Preprocessed, scales: Sequence[float], mask: np.ndarray | None
) -> list[Scaled]:
    """A prepared array (C, *P) at each scale, with what of it a mask (*S) on the canonical grid depends on."""
    needed = None if mask is None else support(torch.from_numpy(mask[done.slices]), done.resampled_shape)
    return [_scaled(array, scaled_shape(array.shape[1:], scale), needed) for scale in scales]


def _scaled(array: np.ndarray, shape: Sequence[int], needed: Tensor | None) -> Scaled:
    scaled = torch.from_numpy(resample_image(array, shape))
    return Scaled(scaled, None if needed is None else support(needed, shape))


def scaled_shape(shape: Sequence[int], scale: float) -> tuple[int, ...]:
    """Voxels per axis at a scale, at least 1."""
    return tuple(max(1, round(n * scale)) for n in shape)


def support(mask: Tensor, shape: Sequence[int]) -> Tensor:
    """The voxels of a grid of ``shape`` that linear interpolation to the voxels of a mask (*S) bool reads."""
    for axis, count in enumerate(shape):
        if mask.shape[axis] != count:
            lower, upper, _ = linear_taps(count, mask.shape[axis])
            reads = torch.zeros(*mask.shape[:axis], count, *mask.shape[axis + 1 :], dtype=torch.int32)
            ones = mask.to(torch.int32)
            mask = reads.index_add_(axis, lower, ones).index_add_(axis, upper, ones) > 0
    return mask


def check_scales(scales: Sequence[float]) -> tuple[float, ...]:
    """The scales as numbers.

    Raises:
        UsageError: none at all, one twice, or one outside of 0.25 to 4.
    """
    if isinstance(scales, int | float | str) or not all(isinstance(scale, int | float) for scale in scales):
        raise UsageError(
            f"tta_scales is {scales!r} (expected a list of numbers)", fix="write e.g. tta_scales=[1.0,1.25]"
        )
    found = tuple(float(scale) for scale in scales)
    if not found or len(set(found)) < len(found) or not all(SMALLEST_SCALE <= s <= LARGEST_SCALE for s in found):
        expected = f"different numbers from {SMALLEST_SCALE} to {LARGEST_SCALE:g}"
        raise UsageError(f"tta_scales is {list(found)} (expected {expected})", fix="write e.g. tta_scales=[1.0,1.25]")
    return found


def decoded_blocks(count: int, plane_bytes: int) -> list[tuple[int, int]]:
    """Consecutive (start, stop) planes of about `BLOCK_BYTES`, of one plane at least."""
    height = max(1, BLOCK_BYTES // plane_bytes)
    return [(start, min(start + height, count)) for start in range(0, count, height)]

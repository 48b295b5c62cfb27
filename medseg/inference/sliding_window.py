"""Logits of an image from overlapping patches, blended with Gaussian weights (as nnU-Net does), plane after plane.

Windows are visited in the order of one axis. Once all windows that begin at a plane have been seen, the planes up to
the next beginning are final and leave; so only one window's depth of logits is ever held, however long the image is.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import islice, product
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

Network = Callable[[Tensor], Tensor]
Window = tuple[slice, ...]
LEAST_WEIGHT = 1e-3  # of a window's voxel
TOLERANCE = 1e-5  # between values that are one but for the rounding of linear interpolation


def sliding_window(network: Network, image: Tensor, patch_size: Sequence[int], *, overlap: float = 0.5) -> Tensor:
    """Logits (K, *P) of a whole image (C, *P): all planes of `stream_planes` at once, for what is known to be small."""
    return torch.cat(list(stream_planes(network, image, patch_size, overlap=overlap))).movedim(0, 1)


@torch.inference_mode()
def stream_planes(
    network: Network,
    image: Tensor,
    patch_size: Sequence[int],
    *,
    axis: int = 0,
    overlap: float = 0.5,
    window_batch: int = 1,
    most: int | None = None,
    skip_empty: bool = False,
    needed: Tensor | None = None,
    channels: int = 1,
    spill: Path | None = None,
) -> Iterator[Tensor]:
    """Run a network over all windows of an image and hand out logits as they become final.

    Args:
        network: maps (B, C, *patch_size) float32 to (B, K, *patch_size) on the CPU.
        image: (C, *P) float32; padded with zeros where it is smaller than the patch.
        patch_size: size of a window in voxels.
        axis: spatial axis along which the planes leave.
        overlap: share of a window that the next one covers again, 0 <= overlap < 1.
        window_batch: windows per network call.
        most: planes that leave at a time; None: as many as are final.
        skip_empty: of windows that hold one and the same value everywhere in each channel, only the first is
            computed; the others get its logits, which are what they would have got.
        needed: (*P) bool; windows without any such voxel are not computed, and count for nothing.
        channels: K, for images of which no window is needed.
        spill: folder for a file that holds the logits instead of memory.

    Yields:
        (n, K, *R) float32: per voxel the weighted mean over the computed windows that cover it, 0 where there is
        none; R is P without ``axis``.
    """
    padded, inside = pad_to(image, patch_size)
    starts = [window_starts(n, p, overlap) for n, p in zip(padded.shape[1:], patch_size, strict=True)]
    across = product(*(starts[a] for a in range(len(starts)) if a != axis))
    rests = [_at(corner, [p for a, p in enumerate(patch_size) if a != axis]) for corner in across]
    slab = _Slab(patch_size, axis, tuple(n for a, n in enumerate(padded.shape[1:]) if a != axis), channels, spill)
    wanting = None if needed is None else pad_to(needed[None], patch_size)[0][0]
    empty = _EmptyWindow(network, inside, patch_size) if skip_empty else None
    wanted, keep = inside[axis], tuple(part for a, part in enumerate(inside) if a != axis)
    for first, end in zip(starts[axis], [*starts[axis][1:], padded.shape[1 + axis]], strict=True):
        depth = slice(first, first + patch_size[axis])
        windows = []
        for rest in rests:
            window = (*rest[:axis], depth, *rest[axis:])
            if wanting is not None and not wanting[window].any():
                continue
            patch = padded[(slice(None), *window)]
            answer = None if empty is None else empty.answer(patch)
            if answer is None:
                windows.append((rest, patch))
            else:
                slab.add(first, rest, answer.movedim(1 + axis, 0))
        for chunk in _chunks(windows, window_batch):
            # Within one call: a name here would keep these logits alive while the next ones are computed.
            slab.add_all(first, [rest for rest, _ in chunk], network(torch.stack([patch for _, patch in chunk])))
        for a in range(max(first, wanted.start), min(end, wanted.stop), most or end):
            yield slab.take(a, min(a + (most or end), end, wanted.stop))[(slice(None), slice(None), *keep)]
        slab.clear(first, end)


class _Slab:
    """Sums of logits and of weights for one window's depth of planes: a ring, plane p lies at p modulo the depth."""

    def __init__(
        self, patch_size: Sequence[int], axis: int, rest: tuple[int, ...], channels: int, spill: Path | None
    ) -> None:
        self.axis, self.depth, self.rest, self.channels, self.spill = axis, patch_size[axis], rest, channels, spill
        self.weight = importance(tuple(patch_size)).movedim(axis, 0).unsqueeze(1)
        self.weights = torch.zeros(self.depth, 1, *rest)
        self.logits: Tensor | None = None

    def add_all(self, first: int, rests: Sequence[Window], logits: Tensor) -> None:
        """Add windows (B, K, *patch_size) whose planes begin at ``first``."""
        for rest, patch in zip(rests, logits, strict=True):
            self.add(first, rest, patch.movedim(1 + self.axis, 0))

    def add(self, first: int, rest: Window, patch: Tensor) -> None:
        """Add a window whose planes begin at ``first``; patch: (depth, K, *R)."""
        if self.logits is None:
            self.logits = _zeros((self.depth, patch.shape[1], *self.rest), self.spill)
        offset = first % self.depth
        cut = self.depth - offset
        index = (slice(None), slice(None), *rest)
        for ring, part in ((slice(offset, None), slice(cut)), (slice(offset), slice(cut, None))):
            self.logits[ring][index].addcmul_(patch[part], self.weight[part])
            self.weights[ring][index] += self.weight[part]

    def take(self, first: int, end: int) -> Tensor:
        """Weighted means of the planes ``first`` to ``end``: (n, K, *R), a tensor of its own."""
        if self.logits is None:
            return torch.zeros(end - first, self.channels, *self.rest)
        ring = torch.arange(first, end) % self.depth
        return self.logits[ring].div_(self.weights[ring].clamp_(min=LEAST_WEIGHT))

    def clear(self, first: int, end: int) -> None:
        """Make room for the planes that come a depth later."""
        ring = torch.arange(first, end) % self.depth
        self.weights[ring] = 0
        if self.logits is not None:
            self.logits[ring] = 0


class _EmptyWindow:
    """Knows the logits of the last window that held one value per channel, and hands them out for others like it."""

    def __init__(self, network: Network, inside: Window, patch_size: Sequence[int]) -> None:
        self.network = network
        # Where the image is smaller than the window, all windows have the same padding: it says nothing.
        self.inside = tuple(
            part if part.stop - part.start < size else slice(size)
            for part, size in zip(inside, patch_size, strict=True)
        )
        self.value: Tensor | None = None
        self.logits: Tensor | None = None

    def answer(self, patch: Tensor) -> Tensor | None:
        """Logits (K, *patch_size) of a window (C, *patch_size); None if it is not empty."""
        image = patch[(slice(None), *self.inside)]
        value = constant_value(image)
        if value is None:
            return None
        if self.value is None or not torch.allclose(value, self.value, rtol=TOLERANCE, atol=TOLERANCE):
            self.value, self.logits = value, self.network(patch[None])[0]
        return self.logits


def constant_value(image: Tensor) -> Tensor | None:
    """The one value of every channel of (C, *S), as (C,), up to rounding of the resampling; None if there is none."""
    axes = tuple(range(1, image.ndim))
    first = image[(slice(None), *[slice(1)] * len(axes))].reshape(-1)
    allowed = TOLERANCE * first.abs().clamp(min=1)
    for part in (image[(slice(None), *[slice(None, None, 8)] * len(axes))], image):  # few voxels tell of most windows
        if ((part.amax(axes) - part.amin(axes)) > allowed).any():
            return None
    return first


def _zeros(shape: tuple[int, ...], spill: Path | None) -> Tensor:
    if spill is None:
        return torch.zeros(shape)
    handle, name = tempfile.mkstemp(dir=spill, prefix="medseg_")
    try:
        count = torch.Size(shape).numel()
        os.truncate(handle, 4 * count)
        return torch.from_file(name, shared=True, size=count).view(shape)
    finally:
        os.close(handle)
        os.unlink(name)  # the mapping keeps the file alive, and nothing is left behind whatever happens


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
    return weight.clamp(min=LEAST_WEIGHT)


def pad_to(image: Tensor, size: Sequence[int]) -> tuple[Tensor, tuple[slice, ...]]:
    """Pad (C, *P) with zeros, evenly on both sides, to at least `size`; also the slices that hold the image."""
    padding, inside = [], []
    for have, want in zip(image.shape[1:], size, strict=True):
        before = max(0, want - have) // 2
        padding.append((before, max(0, want - have) - before))
        inside.append(slice(before, before + have))
    sides = [side for pair in reversed(padding) for side in pair]
    return F.pad(image, sides) if any(sides) else image, tuple(inside)  # F.pad copies even where it adds nothing


def _at(corner: Sequence[int], size: Sequence[int]) -> Window:
    return tuple(slice(a, a + n) for a, n in zip(corner, size, strict=True))


def _chunks(windows: Sequence[tuple[Window, Tensor]], size: int) -> Iterator[list[tuple[Window, Tensor]]]:
    iterator = iter(windows)
    while chunk := list(islice(iterator, size)):
        yield chunk

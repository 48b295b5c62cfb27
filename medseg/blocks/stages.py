"""The geometry of a U-shaped network: strides per stage, channels per stage, and the sizes that it accepts."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from medseg.errors import UsageError

Strides = Sequence[Sequence[int] | int]


def resolve_strides(strides: Strides | None, depth: int | None, spatial_dims: int) -> tuple[tuple[int, ...], ...]:
    """Strides per stage and axis, the first stage's all 1.

    Args:
        strides: one entry per stage, a number or one per axis. None: `depth` times 2 along every axis.
        depth: number of down-samplings, stages - 1. None: what `strides` says, else 4.
        spatial_dims: 2 or 3.

    Raises:
        UsageError: for strides that do not start with 1, that contradict `depth`, or that have the wrong length.
    """
    if spatial_dims not in (2, 3):
        raise UsageError(f"spatial_dims is {spatial_dims} (must be 2 or 3)")
    if strides is None:
        strides = [1] + [2] * (4 if depth is None else depth)
    full = tuple((s,) * spatial_dims if isinstance(s, int) else tuple(int(v) for v in s) for s in strides)
    if len(full) < 2 or any(v != 1 for v in full[0]):
        raise UsageError(f"strides is {full} (needs at least two stages, the first with stride 1)")
    if any(len(s) != spatial_dims or min(s) < 1 for s in full):
        raise UsageError(f"strides is {full} (every stage needs {spatial_dims} whole numbers of at least 1)")
    if depth is not None and depth != len(full) - 1:
        raise UsageError(f"depth is {depth} but strides has {len(full)} stages", fix="give only one of the two")
    return full


def stage_channels(base: int, maximum: int, stages: int) -> list[int]:
    """Channels per stage: doubled from `base` at every stage, at most `maximum`."""
    return [min(base * 2**i, maximum) for i in range(stages)]


def total_stride(strides: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """The product of the strides along each axis: input sizes must be multiples of it."""
    return tuple(math.prod(axis) for axis in zip(*strides, strict=True))


def check_size(image: Tensor, divisor: Sequence[int]) -> None:
    """Refuse a size that the network cannot halve. image: (B, C, *S).

    Raises:
        UsageError: naming the next size that fits; models never resize silently.
    """
    size = tuple(image.shape[2:])
    fitting = tuple(-(-s // d) * d for s, d in zip(size, divisor, strict=True))
    if size != fitting:
        raise UsageError(
            f"image size {size} is not a multiple of the model's divisor {tuple(divisor)}", fix=f"pad to {fitting}"
        )

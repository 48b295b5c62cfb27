"""The windows of a map of tokens: padding, shift and partition as one permutation, made once per size.

A roll copies the tokens once per axis, padding and partition once each, and the way back costs the same. Picking the
tokens by a table of their places does all of it in one copy.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Windows(NamedTuple):
    """Where each token goes; N = window².

    Attributes:
        size: (H, W) of the map.
        into: (windows * N,) place on the flattened map of each token of the windows; for padding, any place.
        back: (H * W,) place in the windows of each token of the map.
        padding: (windows * N, 1) bool, where the windows hold no token of the map; None if nowhere.
        mask: (windows, N, N) 0 where one place may attend to another, else -inf: apart are tokens that only the
            cyclic shift brought into one window, and padding. A place may attend to itself. None if all may.
    """

    size: tuple[int, int]
    into: Tensor
    back: Tensor
    padding: Tensor | None
    mask: Tensor | None


def make_windows(size: tuple[int, int], window: int, shift: int, device: torch.device) -> Windows:
    """Windows of a map of `size` tokens, padded at the end and moved down and right by `shift` tokens.

    Along an axis that one window covers nothing is shifted, as in Swin's code.
    """
    if torch.compiler.is_compiling():  # symbolic tensors of a compiler or an exporter must not stay in the cache
        return _make_windows(size, window, shift, device)
    return _cached_windows(size, window, shift, device)


@lru_cache(maxsize=64)
def _cached_windows(size: tuple[int, int], window: int, shift: int, device: torch.device) -> Windows:
    with torch.inference_mode(False):
        return _make_windows(size, window, shift, device)


def _make_windows(size: tuple[int, int], window: int, shift: int, device: torch.device) -> Windows:
    (rows, row_bands, row_back), (columns, column_bands, column_back) = (
        _axis(length, window, shift if length > window else 0, device) for length in size
    )
    into = to_windows(rows.clamp(max=size[0] - 1)[:, None] * size[1] + columns.clamp(max=size[1] - 1), window)
    width = len(columns) // window
    back = (row_back // window * width * window + row_back % window)[:, None] * window
    back = back + column_back // window * window**2 + column_back % window
    padding = (rows >= size[0])[:, None] | (columns >= size[1])
    padded = (len(rows), len(columns)) != size
    mask = None
    if padded or (shift > 0 and max(size) > window):
        regions = to_windows((3 * row_bands[:, None] + column_bands).masked_fill(padding, -1), window)
        apart = regions[:, :, None] != regions[:, None, :]
        mask = torch.zeros(apart.shape, device=device).masked_fill_(apart, -torch.inf)
    flags = to_windows(padding, window).flatten()[:, None] if padded else None
    return Windows(size, into.flatten(), back.flatten(), flags, mask)


def _axis(length: int, window: int, shift: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """One axis, padded to whole windows and rolled by `shift`.

    Returns:
        per rolled place, the place it came from; its band, 0 before the last window, 1 in it, 2 what the roll brought
        there; and per place of the axis, its rolled place.
    """
    whole = -(-length // window) * window
    steps = torch.arange(whole, device=device)
    bands = (steps >= whole - window).long() + (steps >= whole - shift).long()
    return (steps + shift) % whole, bands, (steps[:length] + whole - shift) % whole


def to_windows(places: Tensor, window: int) -> Tensor:
    """Partition (H, W), both multiples of `window`, to (windows, window²)."""
    return places.unflatten(1, (-1, window)).unflatten(0, (-1, window)).transpose(1, 2).flatten(2, 3).flatten(0, 1)


def pick(x: Tensor, places: Tensor, back: Tensor, padding: Tensor | None = None) -> Tensor:
    """Tokens in another order.

    Args:
        x: (B, L, C).
        places: (M,) which token of `x` comes at each place.
        back: (L,) at which place each token of `x` comes.
        padding: (L, 1) bool, tokens of `x` that are not picked, for which `back` names any place.

    Returns:
        (B, M, C).
    """
    graph = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]
    if torch.is_grad_enabled() and x.requires_grad and not graph:
        return _Pick.apply(x, places, back, padding)  # type: ignore[no-any-return]
    return x.index_select(1, places)


class _Pick(torch.autograd.Function):
    """The gradient picks as well; PyTorch's own adds token by token, since it cannot know of a permutation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Tensor, back: Tensor, padding: Tensor | None) -> Tensor:
        ctx.save_for_backward(back, padding)
        return x.index_select(1, places)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        back, padding = ctx.saved_tensors
        grad = grad.index_select(1, back)
        return (grad if padding is None else grad.masked_fill_(padding, 0)), None, None, None

"""Self-attention inside the windows of a map of tokens, plain or shifted (W-MSA and SW-MSA).

Paper: Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", ICCV 2021 (arXiv
2103.14030), section 3.2 and equation 4. Tokens are (B, H, W, C): a channels-last image seen through a permutation.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from medseg.errors import UsageError, nearest

OPERATIONS = ("add", "mul")


class WindowAttention(nn.Module):
    """Multi-head attention of every window of `window_size` x `window_size` tokens to itself.

    Any size is taken: tokens are padded at the end to whole windows, as torchvision's Swin does, but here no token
    attends to padding. Along an axis that one window covers nothing is shifted. For sizes that the window divides
    the result is timm's and torchvision's; parameters are named as timm's.

    Args:
        channels: of a token, a multiple of `num_heads`.
        num_heads: heads.
        window_size: side of a window in tokens.
        shift: tokens by which windows are moved down and right, 0 <= shift < window_size.
        qkv_bias: biases of queries, keys and values.

    Raises:
        UsageError: for channels that the heads do not divide, or a shift outside the window.
    """

    relative_position_index: Tensor

    def __init__(
        self, channels: int, *, num_heads: int, window_size: int = 7, shift: int = 0, qkv_bias: bool = True
    ) -> None:
        super().__init__()
        if channels % num_heads:
            raise UsageError(f"{channels} channels cannot be divided among {num_heads} heads (num_heads)")
        if not 0 <= shift < window_size:
            raise UsageError(f"shift is {shift} (must be 0..{window_size - 1}, inside the window)")
        self.num_heads, self.window_size, self.shift = num_heads, window_size, shift
        self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        self.proj = nn.Linear(channels, channels)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window_size - 1) ** 2, num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("relative_position_index", relative_position_index(window_size), persistent=False)

    def forward(
        self, x: Tensor, guide: Tensor | None = None, *, operation: str = "add", renormalise: bool = False
    ) -> Tensor:
        """Attend within windows.

        Args:
            x: tokens (B, H, W, C).
            guide: attention of another layer with the same windows, heads and size, see `with_map`: combined with
                this layer's own before it weights the values.
            operation: ``"add"`` or ``"mul"``.
            renormalise: rows that sum to 1 again: half the sum, or the product over its row sums.

        Returns:
            (B, H, W, C).
        """
        q, k, v, bias = self._project(x)
        if guide is None:
            return self._merge(attend(q, k, v, bias), x)
        if operation == "add":
            out = attend(q, k, v, bias) + guide @ v
            return self._merge(out / 2 if renormalise else out, x)
        if operation != "mul":
            raise UsageError(f"unknown operation '{operation}': {nearest(operation, OPERATIONS)}")
        weights = attention_map(q, k, bias) * guide
        if renormalise:
            weights = weights / weights.sum(-1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)
        return self._merge(weights @ v, x)

    def with_map(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As `forward`, and the attention itself.

        Returns:
            (B, H, W, C) and (B, windows, heads, N, N), N = window_size ** 2, whose rows sum to 1.
        """
        q, k, v, bias = self._project(x)
        weights = attention_map(q, k, bias)
        return self._merge(weights @ v, x), weights

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries, keys and values (B, windows, heads, N, d), and what is added to their products."""
        size, window = token_size(x), self.window_size
        shift = effective_shift(size, window, self.shift)
        qkv = to_windows(self.qkv(shift_and_pad(x, window, shift)), window, 3 * self.num_heads)
        q, k, v = qkv.unflatten(2, (3, self.num_heads)).unbind(2)
        table = self.relative_position_bias_table[self.relative_position_index.flatten()]
        bias = table.view(window**2, window**2, self.num_heads).permute(2, 0, 1)[None]
        mask = window_mask(size, window, shift, x.device)
        return q, k, v, bias if mask is None else bias + mask[:, None].to(bias.dtype)

    def _merge(self, out: Tensor, x: Tensor) -> Tensor:
        """(B, windows, heads, N, d) -> (B, H, W, C) as `x`."""
        size, window = token_size(x), self.window_size
        padded = from_windows(out, window, padded_size(size, window))
        return self.proj(unshift_and_crop(padded, size, effective_shift(size, window, self.shift)))


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """softmax(q kᵀ / √d + bias) v.

    Args:
        q: (B, windows, heads, N, d), as `k` and `v`.
        bias: (1, heads, N, N) for all windows, or (windows, heads, N, N).
    """
    if len(bias) == 1:
        q, k, v, shape = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), q.shape
    else:  # windows count as heads, so that the bias is broadcast over the batch instead of being copied for it
        q, k, v, shape, bias = q.flatten(1, 2), k.flatten(1, 2), v.flatten(1, 2), q.shape, bias.flatten(0, 1)[None]
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype)).view(shape)


def attention_map(q: Tensor, k: Tensor, bias: Tensor) -> Tensor:
    """softmax(q kᵀ / √d + bias): (B, windows, heads, N, N); arguments as of `attend`."""
    return ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + bias).softmax(-1).to(q.dtype)


def to_windows(x: Tensor, window: int, heads: int) -> Tensor:
    """Partition (B, H, W, heads * d), H and W multiples of `window`, to (B, windows, heads, window², d) in one copy."""
    x = x.unflatten(1, (-1, window)).unflatten(3, (-1, window)).unflatten(5, (heads, -1))
    return x.permute(0, 1, 3, 5, 2, 4, 6).flatten(4, 5).flatten(1, 2)


def from_windows(x: Tensor, window: int, size: tuple[int, int]) -> Tensor:
    """Undo `to_windows`: (B, windows, heads, window², d) -> (B, *size, heads * d)."""
    x = x.unflatten(1, (size[0] // window, -1)).unflatten(4, (window, window)).permute(0, 1, 4, 2, 5, 3, 6)
    if (
        torch.compiler.is_exporting()
    ):  # scaled_dot_product_attention's layout is not that of what ONNX puts in its place
        x = x.clone(memory_format=torch.contiguous_format)
    return x.flatten(5, 6).flatten(3, 4).flatten(1, 2)


def token_size(x: Tensor) -> tuple[int, int]:
    """Height and width of tokens (B, H, W, C), as plain numbers also while TorchScript traces."""
    return int(x.shape[1]), int(x.shape[2])


def padded_size(size: tuple[int, int], window: int) -> tuple[int, int]:
    """The next multiples of the window."""
    return -(-size[0] // window) * window, -(-size[1] // window) * window


def effective_shift(size: tuple[int, int], window: int, shift: int) -> tuple[int, int]:
    """No shift along an axis that one window covers, as in Swin's code."""
    return (shift if size[0] > window else 0), (shift if size[1] > window else 0)


def shift_and_pad(x: Tensor, window: int, shift: tuple[int, int]) -> Tensor:
    """Zeros at the end of (B, H, W, C) up to whole windows, then a roll up and left by `shift`."""
    size = token_size(x)
    missing = [whole - length for whole, length in zip(padded_size(size, window), size, strict=True)]
    if any(missing):
        x = functional.pad(x, (0, 0, 0, missing[1], 0, missing[0]))
    return x.roll((-shift[0], -shift[1]), (1, 2)) if any(shift) else x


def unshift_and_crop(x: Tensor, size: tuple[int, int], shift: tuple[int, int]) -> Tensor:
    """Undo `shift_and_pad`."""
    x = x.roll(shift, (1, 2)) if any(shift) else x
    return x[:, : size[0], : size[1]]


def relative_position_index(window: int) -> Tensor:
    """Row of the bias table for each pair of tokens: (N, N), N = window²; (0, 0) to the last token is row 0."""
    axis = torch.arange(window)
    rows, columns = (coordinate.flatten() for coordinate in torch.meshgrid(axis, axis, indexing="ij"))
    down, right = (c[:, None] - c[None, :] + window - 1 for c in (rows, columns))
    return down * (2 * window - 1) + right


def window_mask(size: tuple[int, int], window: int, shift: tuple[int, int], device: torch.device) -> Tensor | None:
    """What keeps tokens apart that only a cyclic shift brought into one window, and real tokens from padding.

    Returns:
        (windows, N, N): 0 where attention is allowed, else -inf; a token may always attend to itself. None if all may.
    """
    if size == padded_size(size, window) and not any(shift):
        return None
    if torch.compiler.is_compiling():  # an exporter's symbolic tensors must not stay in the cache
        return _make_mask(size, window, shift, device)
    return _cached_mask(size, window, shift, device)


@lru_cache(maxsize=64)
def _cached_mask(size: tuple[int, int], window: int, shift: tuple[int, int], device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return _make_mask(size, window, shift, device)


def _make_mask(size: tuple[int, int], window: int, shift: tuple[int, int], device: torch.device) -> Tensor:
    regions = region_ids(size, window, shift, device)
    apart = regions[:, :, None] != regions[:, None, :]
    return torch.zeros(apart.shape, device=device).masked_fill_(apart, -torch.inf)


def region_ids(size: tuple[int, int], window: int, shift: tuple[int, int], device: torch.device) -> Tensor:
    """Number of the region of each token in each shifted window, (windows, N): 0..8, and -1 for padding."""
    height, width = padded_size(size, window)
    bands = [
        (torch.arange(length, device=device) >= length - window).long()
        + (torch.arange(length, device=device) >= length - step)
        for length, step in zip((height, width), shift, strict=True)
    ]
    regions = 3 * bands[0][:, None] + bands[1][None, :]
    if (height, width) != size:
        padding = torch.ones(height, width, dtype=torch.bool, device=device)
        padding[: size[0], : size[1]] = False
        regions = regions.masked_fill(padding.roll((-shift[0], -shift[1]), (0, 1)), -1)
    return to_windows(regions[None, :, :, None], window, 1)[0, :, 0, :, 0]

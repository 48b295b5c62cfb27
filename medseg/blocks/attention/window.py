"""Self-attention inside the windows of a map of tokens, plain or shifted (W-MSA and SW-MSA).

Paper: Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", ICCV 2021 (arXiv
2103.14030), section 3.2 and equation 4. Tokens are (B, H, W, C): a channels-last image seen through a permutation.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medseg.blocks.attention.attend import attend, attend_with_map, split
from medseg.blocks.attention.partition import Windows, make_windows, pick
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
        if operation not in OPERATIONS:
            raise UsageError(f"unknown operation '{operation}': {nearest(operation, OPERATIONS)}")
        windows = self._windows(x)
        qkv, bias = self._project(x, windows), self._bias(windows)
        if guide is None or operation == "add":
            out = attend(qkv, bias, guide)
            return self._output(out / 2 if renormalise and guide is not None else out, windows)
        weights = attend_with_map(qkv, bias)[1] * guide
        if renormalise:
            weights = weights / weights.sum(-1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)
        return self._output(weights @ split(qkv)[2], windows)

    def with_map(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As `forward`, and the attention itself.

        Returns:
            (B, H, W, C) and (B, windows, heads, N, N), N = window_size ** 2, whose rows sum to 1.
        """
        windows = self._windows(x)
        out, weights = attend_with_map(self._project(x, windows), self._bias(windows))
        return self._output(out, windows), weights

    def _windows(self, x: Tensor) -> Windows:
        return make_windows((int(x.shape[1]), int(x.shape[2])), self.window_size, self.shift, x.device)

    def _project(self, x: Tensor, windows: Windows) -> Tensor:
        """Queries, keys and values in the order of the windows: (B, windows, N, 3, heads, d)."""
        tokens = pick(x.flatten(1, 2), windows.into, windows.back)
        return self.qkv(tokens).unflatten(1, (-1, self.window_size**2)).unflatten(3, (3, self.num_heads, -1))

    def _bias(self, windows: Windows) -> Tensor:
        """What is added to the products of queries and keys: (1, heads, N, N), or (windows, heads, N, N)."""
        area = self.window_size**2
        table = self.relative_position_bias_table[self.relative_position_index.flatten()]
        bias = table.view(area, area, self.num_heads).permute(2, 0, 1)[None]
        return bias if windows.mask is None else bias + windows.mask[:, None].to(bias.dtype)

    def _output(self, out: Tensor, windows: Windows) -> Tensor:
        """(B, windows, heads, N, d) -> (B, H, W, C)."""
        out = out.transpose(2, 3)
        if torch.compiler.is_exporting():  # ONNX's attention leaves another layout than scaled_dot_product_attention
            out = out.clone(memory_format=torch.contiguous_format)
        tokens = pick(out.flatten(3, 4).flatten(1, 2), windows.back, windows.into, windows.padding)
        return self.proj(tokens.unflatten(1, windows.size))


def relative_position_index(window: int) -> Tensor:
    """Row of the bias table for each pair of tokens: (N, N), N = window²; from (0, 0) to the last token it is row 0."""
    axis = torch.arange(window)
    rows, columns = (coordinate.flatten() for coordinate in torch.meshgrid(axis, axis, indexing="ij"))
    down, right = (c[:, None] - c[None, :] + window - 1 for c in (rows, columns))
    return down * (2 * window - 1) + right

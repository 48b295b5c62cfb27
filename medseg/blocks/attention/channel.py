"""Transpose attention: channels attend to channels, so that the cost grows linearly with the number of tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, scaled_dot_product_attention

from medseg.blocks.attention.efficient import check_heads
from medseg.blocks.attention.tokens import to_image, to_tokens


class ChannelAttention(nn.Module):
    """softmax(tau Q^ K^^T) V per head, a C/h x C/h matrix; cross-covariance attention as DAE-Former uses it.

    Papers: El-Nouby et al. 2021 (XCiT, arXiv 2106.09681); Azad et al. 2022 (DAE-Former, arXiv 2212.13504). Q^ and K^
    are the transposed queries and keys with unit length along the tokens; tau is learned per head and starts at 1.

    Args:
        channels: C.
        heads: groups of channels that attend within themselves.

    Raises:
        UsageError: `heads` does not divide `channels`.
    """

    def __init__(self, channels: int, *, heads: int = 8) -> None:
        super().__init__()
        self.heads = check_heads(channels, heads)
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.project = nn.Linear(channels, channels)

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, *S) -> (B, C, *S)."""
        qkv = self.qkv(to_tokens(image)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 4, 1)
        query, key, value = qkv.unbind(0)  # (B, heads, C / heads, N) each
        query = normalize(query, dim=-1) * self.temperature
        attended = scaled_dot_product_attention(query, normalize(key, dim=-1), value, scale=1.0)
        return to_image(self.project(attended.permute(0, 3, 1, 2).flatten(2)), image.shape[2:])

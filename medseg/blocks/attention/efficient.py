"""Efficient attention (Shen et al., WACV 2021, arXiv 1812.01243): linear in the number of tokens."""

from __future__ import annotations

from torch import Tensor, nn

from medseg.blocks.attention.tokens import join_heads, split_heads, to_image, to_tokens
from medseg.errors import UsageError


def efficient_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """rho_q(Q) (rho_k(K)^T V): softmax of queries over channels, of keys over tokens (Shen et al. 2021, section 3.2).

    It equals attention with the N x M matrix rho_q(Q) rho_k(K)^T, whose rows sum to 1, but multiplies the keys with the
    values first, so that no such matrix is made.

    Args:
        query: (..., N, C).
        key: (..., M, C).
        value: (..., M, D).

    Returns:
        (..., N, D).
    """
    return query.softmax(-1) @ (key.softmax(-2).transpose(-2, -1) @ value)


class EfficientAttention(nn.Module):
    """Efficient self-attention with 1x1 projections of queries, keys, values and the result, 4 (C^2 + C) parameters.

    Args:
        channels: C.
        heads: groups of channels that attend on their own.

    Raises:
        UsageError: `heads` does not divide `channels`.
    """

    def __init__(self, channels: int, *, heads: int = 1) -> None:
        super().__init__()
        self.heads = check_heads(channels, heads)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.project = nn.Linear(channels, channels)

    def start_glorot(self) -> None:
        """Glorot-uniform queries, keys and values: three layers of C outputs each that are computed as one."""
        for weight in self.qkv.weight.data.chunk(3):
            nn.init.xavier_uniform_(weight)

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, *S) -> (B, C, *S)."""
        query, key, value = (split_heads(part, self.heads) for part in self.qkv(to_tokens(image)).chunk(3, dim=-1))
        attended = join_heads(efficient_attention(query, key, value))
        return to_image(self.project(attended), image.shape[2:])


def check_heads(channels: int, heads: int) -> int:
    """`heads`, where it divides `channels`; else UsageError."""
    if heads < 1 or channels % heads:
        raise UsageError(f"{channels} channels cannot be divided among {heads} attention heads")
    return heads

"""Images as tokens and back. Both are views of a channels-last image, so attention costs no copy of the layout."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


def to_tokens(image: Tensor) -> Tensor:
    """(B, C, *S) -> (B, N, C) with N the product of S; a view where the image is channels-last."""
    return image.flatten(2).transpose(1, 2)


def to_image(tokens: Tensor, size: Sequence[int]) -> Tensor:
    """(B, N, C) -> (B, C, *size): a view, channels-last where the tokens are contiguous."""
    return tokens.transpose(1, 2).unflatten(2, tuple(size))


def split_heads(tokens: Tensor, heads: int) -> Tensor:
    """(B, N, C) -> (B, heads, N, C / heads)."""
    return tokens.unflatten(-1, (heads, tokens.shape[-1] // heads)).transpose(1, 2)


def join_heads(tokens: Tensor) -> Tensor:
    """(B, heads, N, C) -> (B, N, heads * C)."""
    return tokens.transpose(1, 2).flatten(2)


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of each voxel: (B, C, *S) -> the same shape."""

    def forward(self, image: Tensor) -> Tensor:
        """image (B, C, *S) -> (B, C, *S), channels-last."""
        return super().forward(image.movedim(1, -1)).movedim(-1, 1)

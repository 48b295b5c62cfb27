"""Spatial-reduction attention: every token attends to a coarser grid of tokens."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from medseg.blocks.attention.efficient import check_heads
from medseg.blocks.attention.tokens import ChannelNorm, join_heads, split_heads, to_image, to_tokens
from medseg.blocks.conv import CONVS


class SpatialReductionAttention(nn.Module):
    """softmax(Q K^^T / sqrt(C/h)) V^ with K^ and V^ from the grid reduced by a strided convolution.

    Papers: Wang et al. 2021 (PVT, arXiv 2102.12122); Xie et al. 2021 (SegFormer, arXiv 2105.15203, equation 2).

    Args:
        spatial_dims: 2 or 3.
        channels: C.
        heads: attention heads.
        reduction: R, kernel and stride of the convolution along every axis; 1 is plain self-attention.

    Raises:
        UsageError: `heads` does not divide `channels`.
    """

    def __init__(self, spatial_dims: int, channels: int, *, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads = check_heads(channels, heads)
        self.reduce = nn.Sequential()
        if reduction > 1:
            self.reduce.append(CONVS[spatial_dims](channels, channels, reduction, reduction))
            self.reduce.append(ChannelNorm(channels))
        self.query = nn.Linear(channels, channels)
        self.key_value = nn.Linear(channels, 2 * channels)
        self.project = nn.Linear(channels, channels)

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, *S), S a multiple of `reduction` -> (B, C, *S)."""
        query = split_heads(self.query(to_tokens(image)), self.heads)
        reduced = self.key_value(to_tokens(self.reduce(image)))
        key, value = (split_heads(part, self.heads) for part in reduced.chunk(2, dim=-1))
        attended = join_heads(scaled_dot_product_attention(query, key, value))
        return to_image(self.project(attended), image.shape[2:])

"""Overlapping patch embedding (Xie et al. 2021, SegFormer)."""

from __future__ import annotations

from torch import nn

from medseg.blocks.attention.tokens import ChannelNorm
from medseg.blocks.conv import conv


class OverlapPatchEmbed(nn.Sequential):
    """A strided convolution whose kernel is larger than its stride, and a layer norm: (B, C, *S) -> (B, D, *S/stride).

    Args:
        spatial_dims: 2 or 3.
        in_channels: C.
        channels: D.
        kernel: of the convolution, odd.
        stride: of the convolution.
    """

    def __init__(self, spatial_dims: int, in_channels: int, channels: int, *, kernel: int, stride: int) -> None:
        super().__init__(conv(spatial_dims, in_channels, channels, kernel=kernel, stride=stride), ChannelNorm(channels))

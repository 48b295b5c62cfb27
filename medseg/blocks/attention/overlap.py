"""Overlapping patch embedding (Xie et al. 2021, SegFormer) and patch expanding (Cao et al. 2022, Swin-Unet)."""

from __future__ import annotations

from torch import Tensor, nn

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


class PatchExpand(nn.Module):
    """A linear map to `factor`^d voxels of D channels each (no bias), which are put side by side; then a layer norm.

    Args:
        spatial_dims: d, 2 or 3.
        in_channels: C.
        channels: D. Swin-Unet and DAE-Former double the size with D = C/2 and quadruple it with D = C.
        factor: by which every axis grows.
    """

    def __init__(self, spatial_dims: int, in_channels: int, channels: int, *, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.expand = nn.Linear(in_channels, factor**spatial_dims * channels, bias=False)
        self.norm = nn.LayerNorm(channels)

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, *S) -> (B, D, *(factor * S)), channels-last."""
        dims = image.ndim - 2
        x = self.expand(image.movedim(1, -1)).unflatten(-1, (*(self.factor,) * dims, -1))
        order = [place for axis in range(1, dims + 1) for place in (axis, axis + dims)]
        x = x.permute(0, *order, 2 * dims + 1)  # (B, S1, factor, S2, factor, ..., D)
        for axis in reversed(range(dims)):
            x = x.flatten(2 * axis + 1, 2 * axis + 2)
        return self.norm(x).movedim(-1, 1)

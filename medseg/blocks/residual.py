"""Residual block of the ResEnc U-Nets (Isensee et al. 2024, arXiv 2404.09556): "BasicBlock-D"."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from medseg.blocks.conv import AVERAGE_POOLS, ConvNormAct, conv
from medseg.blocks.norm import make_activation, make_norm


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut, which average-pools and projects (1x1 convolution) where the shape changes.

    Pooling before the 1x1 convolution ("ResNet-D", He et al. 2019, arXiv 1812.01187) lets the shortcut see every voxel.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: of the first convolution and of the shortcut's pooling, one number per axis.
        norm: see `medseg.blocks.norm.make_norm`.
        activation: ``"leaky_relu"`` or ``"relu"``.
        dropout: probability of zeroing an element after the first activation.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        stride: Sequence[int],
        norm: str,
        activation: str,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.first = ConvNormAct(
            spatial_dims, in_channels, out_channels, stride=stride, norm=norm, activation=activation, dropout=dropout
        )
        self.second = conv(spatial_dims, out_channels, out_channels, bias=norm == "none")
        self.norm = make_norm(norm, spatial_dims, out_channels)
        self.shortcut = nn.Sequential()
        if math.prod(stride) > 1:
            self.shortcut.append(AVERAGE_POOLS[spatial_dims](tuple(stride), tuple(stride)))
        if in_channels != out_channels:
            self.shortcut.append(conv(spatial_dims, in_channels, out_channels, kernel=1, bias=norm == "none"))
            self.shortcut.append(make_norm(norm, spatial_dims, out_channels))
        self.act = make_activation(activation)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, *S) -> (B, out_channels, *S / stride)."""
        return self.act(self.norm(self.second(self.first(x))) + self.shortcut(x))

    def start_as_shortcut(self) -> None:
        """Zero the last normalisation's scale: the untrained block passes its shortcut on (Goyal et al. 2017)."""
        if isinstance(self.norm.weight, nn.Parameter):
            nn.init.zeros_(self.norm.weight)

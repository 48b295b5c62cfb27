"""Convolutions for 2 or 3 dimensions, and the conv-norm-activation block that every convolutional model is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from medseg.blocks.norm import make_norm_act

CONVS: dict[int, type[nn.Module]] = {2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, type[nn.Module]] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
MAX_POOLS: dict[int, type[nn.Module]] = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
AVERAGE_POOLS: dict[int, type[nn.Module]] = {2: nn.AvgPool2d, 3: nn.AvgPool3d}
Stride = int | Sequence[int]


def conv(
    spatial_dims: int, in_channels: int, out_channels: int, *, kernel: int = 3, stride: Stride = 1, bias: bool = True
) -> nn.Module:
    """A convolution whose padding keeps the size (ceil(size / stride) with a stride)."""
    step = stride if isinstance(stride, int) else tuple(stride)
    return CONVS[spatial_dims](in_channels, out_channels, kernel, step, kernel // 2, bias=bias)


def upsample_conv(
    spatial_dims: int, in_channels: int, out_channels: int, stride: Stride, *, bias: bool = True
) -> nn.Module:
    """A transposed convolution with kernel = stride: size * stride, no overlap."""
    step = stride if isinstance(stride, int) else tuple(stride)
    return TRANSPOSED[spatial_dims](in_channels, out_channels, step, step, bias=bias)


def resize(x: Tensor, size: Sequence[int], *, align_corners: bool) -> Tensor:
    """Linear interpolation of (B, C, *S) to (B, C, *size)."""
    mode = "bilinear" if x.ndim == 4 else "trilinear"
    return nn.functional.interpolate(x, size=tuple(size), mode=mode, align_corners=align_corners)


class ConvNormAct(nn.Module):
    """Convolution, normalisation, activation, dropout.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel: of the convolution, an odd number.
        stride: of the convolution, one number or one per axis.
        norm: see `medseg.blocks.norm.make_norm`.
        activation: ``"leaky_relu"`` or ``"relu"``.
        dropout: probability of zeroing an element after the activation.
        bias: of the convolution. None: only without a normalisation, which would subtract it again.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        kernel: int = 3,
        stride: Stride = 1,
        norm: str = "instance",
        activation: str = "leaky_relu",
        dropout: float = 0.0,
        bias: bool | None = None,
    ) -> None:
        super().__init__()
        bias = norm == "none" if bias is None else bias
        self.conv = conv(spatial_dims, in_channels, out_channels, kernel=kernel, stride=stride, bias=bias)
        self.norm, self.act = make_norm_act(norm, activation, spatial_dims, out_channels)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, *S) -> (B, out_channels, *S / stride)."""
        return self.dropout(self.act(self.norm(self.conv(x))))


def double_conv(
    spatial_dims: int, in_channels: int, out_channels: int, layers: Mapping[str, Any], stride: Stride = 1
) -> nn.Sequential:
    """Two `ConvNormAct` with these layers, the first with `stride`."""
    first = ConvNormAct(spatial_dims, in_channels, out_channels, stride=stride, **layers)
    return nn.Sequential(first, ConvNormAct(spatial_dims, out_channels, out_channels, **layers))

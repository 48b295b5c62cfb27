"""Normalisation layers by name, with the activation computed in the same pass where that is faster."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from medseg.errors import UsageError, nearest

BATCH_NORMS: dict[int, type[nn.Module]] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
SLOPES = {"leaky_relu": 0.01, "relu": 0.0}
PIECE = 4096  # voxels of a channel that are added up in a row
MANY_VOXELS = 2**19
NORMS = ("instance", "batch", "group", "none")


def make_norm(name: str, spatial_dims: int, channels: int, *, slope: float = 1.0) -> nn.Module:
    """Build a normalisation layer, affine, eps 1e-5; its state-dict keys are ``weight`` and ``bias``.

    Args:
        name: ``"instance"``, ``"batch"``, ``"group"`` (groups of about 8 channels) or ``"none"``.
        spatial_dims: 2 or 3.
        channels: channels of the input (B, channels, *S).
        slope: negative slope of a leaky ReLU that instance normalisation applies in the same pass; 1 applies none.

    Raises:
        UsageError: for an unknown name.
    """
    if name == "instance":
        return InstanceNorm(channels, slope=slope)
    if name == "batch":
        return BATCH_NORMS[spatial_dims](channels)
    if name == "group":
        return nn.GroupNorm(math.gcd(channels, max(1, channels // 8)), channels)
    if name == "none":
        return nn.Identity()
    raise UsageError(f"unknown norm '{name}': {nearest(name, NORMS)}")


def make_norm_act(norm: str, activation: str, spatial_dims: int, channels: int) -> tuple[nn.Module, nn.Module]:
    """A normalisation layer and its activation; the second is an identity where the first computes both.

    Args:
        norm: as for `make_norm`.
        activation: ``"leaky_relu"`` (slope 0.01) or ``"relu"``.
        spatial_dims: 2 or 3.
        channels: channels of the input.

    Raises:
        UsageError: for an unknown norm or activation.
    """
    slope = activation_slope(activation)
    if norm == "instance":
        return make_norm(norm, spatial_dims, channels, slope=slope), nn.Identity()
    return make_norm(norm, spatial_dims, channels), make_activation(activation)


def activation_slope(name: str) -> float:
    """The negative slope of an activation. Raises UsageError for an unknown name."""
    if name not in SLOPES:
        raise UsageError(f"unknown activation '{name}': {nearest(name, SLOPES)}")
    return SLOPES[name]


def make_activation(name: str) -> nn.Module:
    """The activation module of that name, in place. Raises UsageError for an unknown name."""
    slope = activation_slope(name)
    return nn.LeakyReLU(slope, inplace=True) if slope else nn.ReLU(inplace=True)


class InstanceNorm(nn.Module):
    """Instance normalisation (Ulyanov et al. 2016), affine, optionally followed by a leaky ReLU.

    Unlike `torch.nn.InstanceNorm3d` it serves 2D and 3D, accepts a single voxel (whose normalised value is 0), and
    stays fast for channels-last tensors on the CPU, where PyTorch's own copies to channels-first and back.

    Args:
        channels: channels of the input.
        eps: added to the variance.
        slope: negative slope of the leaky ReLU; 1 applies none, 0 is a ReLU.
    """

    def __init__(self, channels: int, *, eps: float = 1e-5, slope: float = 1.0) -> None:
        super().__init__()
        self.eps, self.slope = eps, slope
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *S) -> (B, C, *S), in the dtype and memory format of the input."""
        if self._fused(x):
            return _ChannelsLastInstanceNorm.apply(x, self.weight, self.bias, self.eps, self.slope)
        # Not functional.instance_norm: that refuses a single voxel, which the lowest level of a small patch has.
        cudnn = torch.backends.cudnn.enabled
        x = torch.instance_norm(x, self.weight, self.bias, None, None, True, 0.0, self.eps, cudnn)
        return x if self.slope == 1 else functional.leaky_relu(x, self.slope)

    def _fused(self, x: Tensor) -> bool:
        return (
            x.device.type == "cpu"
            and not torch.compiler.is_compiling()
            and not x.is_contiguous()
            and x.is_contiguous(memory_format=CHANNELS_LAST[x.ndim])
            and self.weight.dtype in (torch.float32, x.dtype)
        )

    def extra_repr(self) -> str:
        """Channels, eps and slope."""
        return f"{len(self.weight)}, eps={self.eps}, slope={self.slope}"


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (C,), float32, of a channels-last image (C, *S): those of pieces, put together."""
    pieces = x.movedim(0, -1).flatten(0, -2).split(PIECE)
    found = [torch.batch_norm_update_stats(piece.float(), None, None, 0.0) for piece in pieces]
    means, variances = (torch.stack(parts) for parts in zip(*found, strict=True))
    share = torch.tensor([[len(piece)] for piece in pieces]) / x[0].numel()
    mean = (share * means).sum(0)
    return mean, (share * (variances + (means - mean).square())).sum(0)


class _ChannelsLastInstanceNorm(torch.autograd.Function):
    """Batch normalisation of one sample at a time: PyTorch's kernel for it reads channels-last memory as it lies.

    That kernel adds up all voxels of a channel one by one in float32, which is off by 2e-4 of a standard deviation for
    64³ voxels and by 4e-3 for 128³. So in float32, and for many voxels, it is given statistics that were taken piece
    by piece; in bfloat16, whose own rounding is 4e-3, a small image is left to it.

    The leaky ReLU works in place on the result, from whose sign its gradient follows, so no further tensor is kept.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: float) -> Tensor:
        out = torch.empty_like(x)
        mean = weight.new_empty(x.shape[:2])
        inverse_std = torch.empty_like(mean)
        many = x.dtype == torch.float32 or x[0, 0].numel() > MANY_VOXELS
        piecewise = many and weight.dtype == torch.float32
        for i in range(len(x)):
            one_mean, variance = statistics(x[i]) if piecewise else (None, None)
            torch.ops.aten.native_batch_norm.out(
                x[i : i + 1], weight, bias, one_mean, variance, not piecewise, 0.0, eps,
                out=out[i : i + 1], save_mean=mean[i], save_invstd=inverse_std[i],
            )  # fmt: skip
            if one_mean is not None and variance is not None:
                mean[i], inverse_std[i] = one_mean, (variance + eps).rsqrt()
        if slope != 1:
            functional.leaky_relu_(out, slope)
        ctx.save_for_backward(x, out, weight, mean, inverse_std)
        ctx.eps, ctx.slope = eps, slope
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, out, weight, mean, inverse_std = ctx.saved_tensors
        grad = grad.contiguous(memory_format=CHANNELS_LAST[x.ndim])
        if ctx.slope != 1:
            grad = torch.ops.aten.leaky_relu_backward(grad, out, ctx.slope, True)
        grad_x, grad_weight, grad_bias = torch.empty_like(x), torch.zeros_like(weight), torch.zeros_like(weight)
        for i in range(len(x)):
            one_x, one_weight, one_bias = torch.ops.aten.native_batch_norm_backward(
                grad[i : i + 1], x[i : i + 1], weight, None, None, mean[i], inverse_std[i], True, ctx.eps, [True] * 3
            )
            grad_x[i : i + 1] = one_x
            grad_weight += one_weight
            grad_bias += one_bias
        return grad_x, grad_weight, grad_bias, None, None

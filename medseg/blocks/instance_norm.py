"""Instance normalisation and LeakyReLU as one operation that stays in channels-last memory.

PyTorch's ``instance_norm`` reshapes its input to one sample with B*C channels, which copies a channels-last tensor
to contiguous memory and back, forward and backward. Here each sample goes through the native batch-norm kernel on
its own, which reads channels-last as it lies; the activation is applied in place and inverted from its result.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_normalize = torch.ops.aten.native_batch_norm.out
_normalize_backward = torch.ops.aten.native_batch_norm_backward


class _InstanceNormLeakyReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: float) -> Tensor:
        out = torch.empty_like(x)
        mean = x.new_empty(x.shape[:2], dtype=torch.float32)
        inverse_std = torch.empty_like(mean)
        for i in range(len(x)):
            _normalize(
                x[i : i + 1], weight, bias, None, None, True, 0.0, eps,
                out=out[i : i + 1], save_mean=mean[i], save_invstd=inverse_std[i],
            )  # fmt: skip
        F.leaky_relu_(out, slope)
        ctx.save_for_backward(x, out, weight, mean, inverse_std)
        ctx.eps, ctx.slope = eps, slope
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, out, weight, mean, inverse_std = ctx.saved_tensors
        grad = torch.empty_like(out).copy_(grad)  # concatenation hands over a slice: bring it to the layout of x
        torch.ops.aten.leaky_relu_backward.grad_input(grad, out, ctx.slope, True, grad_input=grad)
        grad_x, grad_weight, grad_bias = torch.empty_like(x), torch.zeros_like(weight), torch.zeros_like(weight)
        for i in range(len(x)):
            dx, dw, db = _normalize_backward(
                grad[i : i + 1], x[i : i + 1], weight, None, None, mean[i], inverse_std[i], True, ctx.eps, [True] * 3
            )
            grad_x[i : i + 1].copy_(dx)
            grad_weight += dw
            grad_bias += db
        return grad_x, grad_weight, grad_bias, None, None


class InstanceNormLeakyReLU(nn.Module):
    """Affine instance normalisation followed by LeakyReLU, (B, C, *S) -> same shape, in float32 or bfloat16.

    Equal to ``leaky_relu(instance_norm(x, weight, bias))``; on a CPU the fused path runs, elsewhere and under
    ``torch.compile``/``torch.export`` (which fuse by themselves) the plain formulation.

    Args:
        channels: C.
        slope: slope of LeakyReLU for negative values, > 0 (the backward pass recovers the sign from the result).
        eps: added to the variance.
    """

    def __init__(self, channels: int, *, slope: float = 0.01, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.slope, self.eps = slope, eps

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and not torch.compiler.is_compiling():
            return _InstanceNormLeakyReLU.apply(x, self.weight, self.bias, self.eps, self.slope)
        x = F.instance_norm(x, weight=self.weight, bias=self.bias, eps=self.eps)
        return F.leaky_relu(x, self.slope, inplace=True)

    def extra_repr(self) -> str:
        """Shown when the module is printed."""
        return f"{len(self.weight)}, slope={self.slope}, eps={self.eps}"

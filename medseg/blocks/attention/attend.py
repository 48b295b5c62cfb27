"""softmax(q kᵀ / √d + bias) v with a learned bias, and optionally with the weights of another attention added.

The plain formulation defines the result. On a CPU `scaled_dot_product_attention` has no fused kernel with a gradient of
the bias, and falls back to one that copies and masks more than windows need: training takes the forms written here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional


def attend(qkv: Tensor, bias: Tensor, guide: Tensor | None = None) -> Tensor:
    """Attention of each window.

    Args:
        qkv: (B, windows, N, 3, heads, d), as a linear layer leaves queries, keys and values.
        bias: (1, heads, N, N) for all windows, or (windows, heads, N, N).
        guide: (B, windows, heads, N, N), added to the weights.

    Returns:
        (B, windows, heads, N, d).
    """
    if _in_training(qkv, bias):
        return _Attention.apply(qkv, bias, guide)[0]  # type: ignore[no-any-return]
    q, k, v = split(qkv)
    mask = bias.to(q.dtype) if len(bias) == 1 else bias.to(q.dtype).expand(q.shape[0], *bias.shape).flatten(0, 1)
    out = functional.scaled_dot_product_attention(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), attn_mask=mask)
    out = out.unflatten(0, (-1, q.shape[1]))
    return out if guide is None else out + guide @ v


def attend_with_map(qkv: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """As `attend`, and the weights (B, windows, heads, N, N), whose rows sum to 1."""
    if _in_training(qkv, bias):
        return _Attention.apply(qkv, bias, None)  # type: ignore[no-any-return]
    q, k, v = split(qkv)
    weights = torch.add(bias, q @ k.transpose(-2, -1), alpha=q.shape[-1] ** -0.5).softmax(-1).to(v.dtype)
    return weights @ v, weights


def split(qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(B, windows, N, 3, heads, d) -> queries, keys, values, views (B, windows, heads, N, d)."""
    q, k, v = qkv.permute(3, 0, 1, 4, 2, 5).unbind(0)
    return q, k, v


def _in_training(qkv: Tensor, bias: Tensor) -> bool:
    return (
        qkv.device.type == "cpu"
        and torch.is_grad_enabled()
        and (qkv.requires_grad or bias.requires_grad)
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined]
    )


class _Attention(torch.autograd.Function):
    """(output, own weights) of qkv, bias and guide; the gradient of `qkv` is written once, where the layer wants it."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, bias: Tensor, guide: Tensor | None) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        q, k, v = (part.contiguous() for part in split(qkv))
        scores = q @ k.transpose(-2, -1)
        torch.add(bias.to(q.dtype), scores, alpha=q.shape[-1] ** -0.5, out=scores)
        weights = scores.softmax(-1)
        ctx.save_for_backward(q, k, v, weights, guide)
        ctx.bias_like = (len(bias), bias.dtype)
        return (weights if guide is None else weights + guide) @ v, weights

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, grad_map: Tensor | None) -> tuple[Tensor | None, ...]:
        q, k, v, weights, guide = ctx.saved_tensors
        grad_qkv = q.new_empty((*q.shape[:2], q.shape[3], 3, q.shape[2], q.shape[4]))
        grad_q, grad_k, grad_v = split(grad_qkv)
        grad_guide, grad_weights = None, grad_map
        if grad is None:
            grad_v.zero_()
        else:
            grad_v.copy_((weights if guide is None else weights + guide).transpose(-2, -1) @ grad)
            through = grad @ v.transpose(-2, -1)
            grad_guide = None if guide is None else through
            grad_weights = through if grad_map is None else through + grad_map
        grad_scores = torch.ops.aten._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
        windows, dtype = ctx.bias_like
        grad_bias = grad_scores.sum((0, 1), dtype=dtype)[None] if windows == 1 else grad_scores.sum(0, dtype=dtype)
        grad_scores *= q.shape[-1] ** -0.5
        grad_q.copy_(grad_scores @ k)
        grad_k.copy_(grad_scores.transpose(-2, -1) @ q)
        return grad_qkv, grad_bias, grad_guide

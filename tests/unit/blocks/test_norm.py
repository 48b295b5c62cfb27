"""Normalisation: the channels-last fast path against PyTorch's own, and what PyTorch's refuses."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medseg.blocks.norm import InstanceNorm, make_norm, make_norm_act, statistics
from medseg.errors import UsageError

pytestmark = pytest.mark.numerics

LAYOUTS = {2: torch.channels_last, 3: torch.channels_last_3d}


def layer(slope: float, dtype: torch.dtype = torch.float64) -> InstanceNorm:
    torch.manual_seed(0)
    norm = InstanceNorm(4, slope=slope).to(dtype)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def reference(norm: InstanceNorm, x: torch.Tensor) -> torch.Tensor:
    y = nn.functional.instance_norm(x, weight=norm.weight, bias=norm.bias, eps=norm.eps)
    return nn.functional.leaky_relu(y, norm.slope)


@pytest.mark.parametrize("slope", [1.0, 0.01, 0.0])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_channels_last_equals_pytorchs_instance_norm(spatial_dims: int, slope: float) -> None:
    norm = layer(slope)
    x = torch.randn(3, 4, *[5] * spatial_dims, dtype=torch.float64).to(memory_format=LAYOUTS[spatial_dims])
    x.requires_grad_()
    assert norm._fused(x)
    out, expected = norm(x), reference(norm, x)
    torch.testing.assert_close(out, expected)
    assert out.is_contiguous(memory_format=LAYOUTS[spatial_dims])
    grad = torch.randn_like(expected)
    for mine, theirs in zip(
        *(torch.autograd.grad(y, (x, norm.weight, norm.bias), grad) for y in (out, expected)), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


def test_channels_last_gradcheck() -> None:
    norm = layer(0.01)
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64).to(memory_format=torch.channels_last).requires_grad_()
    assert torch.autograd.gradcheck(norm, x)


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 64), (torch.bfloat16, 128)])
def test_statistics_of_many_voxels_are_exact(dtype: torch.dtype, size: int) -> None:
    x = (5 + 3 * torch.randn(1, 2, size, size, size, generator=torch.Generator().manual_seed(0))).to(dtype)
    mean, variance = statistics(x.contiguous(memory_format=torch.channels_last_3d)[0])
    exact = x[0].double().flatten(1)
    assert (mean - exact.mean(1)).abs().max() < 2e-5
    assert (variance / exact.var(1, correction=0) - 1).abs().max() < 1e-5
    layer = InstanceNorm(2)
    expected = nn.functional.instance_norm(x.double())
    found = layer(x.contiguous(memory_format=torch.channels_last_3d))
    assert layer._fused(x.contiguous(memory_format=torch.channels_last_3d))
    assert (found - expected).abs().max() < (1e-5 if dtype == torch.float32 else 2**-6)  # half a step of bf16 at 4


def test_contiguous_memory_takes_pytorchs_way() -> None:
    norm, x = layer(0.01), torch.randn(2, 4, 5, 5, dtype=torch.float64)
    assert not norm._fused(x)
    torch.testing.assert_close(norm(x), reference(norm, x))


def test_bfloat16_activations_with_float32_weights() -> None:
    norm = layer(0.01, torch.float32)
    x = torch.randn(2, 4, 6, 6, 6).bfloat16().to(memory_format=torch.channels_last_3d).requires_grad_()
    out = norm(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), reference(norm, x.float()), rtol=0.02, atol=0.02)
    out.float().square().sum().backward()
    assert x.grad.dtype == torch.bfloat16
    assert norm.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_single_voxel_becomes_the_bias(layout: torch.memory_format) -> None:
    norm = layer(1.0)
    x = torch.randn(2, 4, 1, 1, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    torch.testing.assert_close(norm(x), norm.bias.view(1, 4, 1, 1).expand(2, 4, 1, 1))
    norm(x).sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("name", ["instance", "batch", "group"])
@pytest.mark.parametrize("channels", [4, 30, 32])
def test_every_norm_has_weight_and_bias(name: str, channels: int) -> None:
    norm = make_norm(name, 3, channels)
    assert {key for key, _ in norm.named_parameters()} == {"weight", "bias"}
    assert norm(torch.randn(2, channels, 3, 3, 3)).shape == (2, channels, 3, 3, 3)


@pytest.mark.parametrize("name", ["instance", "batch", "group", "none"])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_norm_and_activation_are_applied_once(name: str, activation: str) -> None:
    norm, act = make_norm_act(name, activation, 2, 8)
    x = torch.randn(2, 8, 4, 4)
    slope = 0.01 if activation == "leaky_relu" else 0.0
    expected = nn.functional.leaky_relu(make_norm(name, 2, 8)(x), slope)
    torch.testing.assert_close(act(norm(x.clone())), expected)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UsageError, match="did you mean 'instance'"):
        make_norm("instanc", 2, 4)
    with pytest.raises(UsageError, match="unknown activation"):
        make_norm_act("instance", "swishy", 2, 4)

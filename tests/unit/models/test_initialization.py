"""How weights begin, against the formulas of the papers' codes: deviation and range of every parameter."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from medseg.blocks.initialization import CUT_DEVIATION, initialize
from medseg.errors import UsageError
from medseg.models import create_model


class Law(NamedTuple):
    """A distribution about 0: its deviation, and the largest value that it gives; 0 and 0 are zeros."""

    deviation: float
    largest: float = float("inf")


ZERO = Law(0.0, 0.0)


def uniform(limit: float) -> Law:
    return Law(limit / 3**0.5, limit)


def glorot(inputs: int, outputs: int) -> Law:
    return uniform((6 / (inputs + outputs)) ** 0.5)


def truncated(parent: float) -> Law:
    """Keras' truncated normal, named by its deviation before the cut at two of them."""
    return Law(CUT_DEVIATION * parent, 2 * parent)


def torch_default(weight: Tensor) -> Law:
    """kaiming_uniform with a = sqrt(5): uniform within 1 / sqrt(fan in)."""
    return uniform(weight[0].numel() ** -0.5)


def assert_law(name: str, tensor: Tensor, law: Law) -> None:
    """Within five standard errors of a deviation, and inside the range."""
    tensor = tensor.detach().double()
    if law == ZERO:
        assert not tensor.any(), f"{name} is not zero"
        return
    found, error = tensor.square().mean().sqrt().item(), law.deviation / (2 * tensor.numel()) ** 0.5
    assert abs(found - law.deviation) < 5 * error, f"{name}: {found:.5f}, not {law.deviation:.5f} +- {error:.5f}"
    assert tensor.abs().max() <= law.largest * (1 + 1e-6), f"{name} leaves its range"
    if law.largest < float("inf") and tensor.numel() > 1000:
        assert tensor.abs().max() > 0.9 * law.largest, f"{name} does not fill its range"


def is_norm(module: nn.Module) -> bool:
    return "Norm" in type(module).__name__


def check(model: nn.Module, law: Callable[[str, nn.Module, Tensor], Law | None], bias: Law | None = ZERO) -> None:
    """Weights follow `law(name of the module, module, weight)`, biases `bias`, norms one and zero; None: not told."""
    told = 0
    for name, module in model.named_modules():
        for key, tensor in module.named_parameters(recurse=False):
            full = f"{name}.{key}"
            if is_norm(module):
                assert torch.equal(tensor, torch.ones_like(tensor) if key == "weight" else torch.zeros_like(tensor)), (
                    full
                )
                continue
            expected = bias if key == "bias" else law(name, module, tensor)
            if expected is not None:
                assert_law(full, tensor, expected)
                told += 1
    assert told > 5


@pytest.fixture(autouse=True)
def _one_seed() -> None:
    torch.manual_seed(0)


def keras(name: str, module: nn.Module, weight: Tensor) -> Law:
    if isinstance(module, nn.ConvTranspose2d | nn.ConvTranspose3d):
        field = weight[0, 0].numel()
        return glorot(weight.shape[0] * field, weight.shape[1] * field)
    return truncated((2 / weight[0].numel()) ** 0.5 / CUT_DEVIATION)


@pytest.mark.parametrize("name", ["unetpp", "unet_classic", "unet_wide"])
def test_the_unetpp_papers_networks_begin_as_in_keras(name: str) -> None:
    narrow = {"strides": [1, 2, 2]} if name == "unet_wide" else {"base_channels": 8, "depth": 3}
    check(create_model(name, **narrow), keras)


def test_unetpp_batchnorm_begins_as_pytorchs_layers() -> None:
    model = create_model("unetpp_batchnorm", base_channels=8)
    check(model, lambda name, module, weight: torch_default(weight), bias=None)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            assert module.bias.abs().max() <= module.weight[0].numel() ** -0.5
            assert module.bias.any()


@pytest.mark.parametrize("name", ["unet", "unetpp_nnunet"])
def test_nnunets_networks_begin_he_normal_for_the_leaky_relu(name: str) -> None:
    model = create_model(name, spatial_dims=2, base_channels=8, depth=3)
    check(model, lambda name, module, weight: Law((2 / (1 + 0.01**2) / weight[0].numel()) ** 0.5))


def test_barlow_swin_begins_as_its_notebook() -> None:
    model = create_model("barlow_swin", image_size=64)

    def law(name: str, module: nn.Module, weight: Tensor) -> Law:
        if name == "encoder":
            return uniform(0.05)  # positions
        if name == "encoder.patch_embed.proj":
            return glorot(3 * 4 * 4, 96)  # a dense layer of a patch
        if name.endswith((".attn", ".attn.qkv", ".attn.proj")):
            return truncated(0.02)
        field = weight[0, 0].numel() if weight.ndim == 4 else 1
        return glorot(weight.shape[1] * field, weight.shape[0] * field)

    check(model, law)


def test_att_swin_unet_begins_as_swin_but_its_convolutions_as_pytorchs() -> None:
    model = create_model("att_swin_unet", embed_dim=48, drop_path=0.0)

    def law(name: str, module: nn.Module, weight: Tensor) -> Law:
        return torch_default(weight) if name in ("head", "encoder.patch_embed.proj") else Law(0.02)

    patches = model.encoder.patch_embed.proj.bias
    assert patches.any()
    patches.data.zero_()
    check(model, law)


@pytest.mark.parametrize("name", ["dae_former", "transdae"])
def test_dae_formers_decoder_begins_xavier_and_its_encoder_as_pytorchs_layers(name: str) -> None:
    model = create_model(name, widths=(32, 80, 128), num_heads=4)

    def outside(name: str, module: nn.Module, weight: Tensor) -> Law | None:
        if name.startswith("encoder") or type(module).__name__ == "ChannelAttention" or "merges" in name:
            return None
        field = weight[0, 0].numel() if weight.ndim == 4 else 1
        return glorot(weight.shape[1] * field, weight.shape[0] * field)

    parts = nn.ModuleDict({"decoder": model.decoder, "head": model.head})
    for module in parts.modules():
        if type(module).__name__ == "EfficientAttention":  # three layers there
            for third in module.qkv.weight.chunk(3):
                assert_law("a third of qkv", third, glorot(third.shape[1], third.shape[0]))
            module.qkv.weight.data.uniform_(-1, 1).mul_((6 / sum(module.qkv.weight.shape)) ** 0.5)
    check(parts, outside)
    encoder = nn.ModuleDict({"encoder": model.encoder})
    kinds = (nn.Linear, nn.Conv2d)
    check(encoder, lambda name, module, w: torch_default(w) if isinstance(module, kinds) else None, bias=None)


def test_the_cross_attention_skip_begins_xavier_in_any_host() -> None:
    model = create_model("unet", spatial_dims=2, base_channels=16, depth=2, skips="cross_attention")

    def law(name: str, module: nn.Module, weight: Tensor) -> Law:
        field = weight[0, 0].numel() if weight.ndim == 4 else 1
        return glorot(weight.shape[1] * field, weight.shape[0] * field)

    check(nn.ModuleDict({"merges": model.skips.merges}), law)


def test_an_unknown_initialization_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'keras'"):
        initialize(nn.Conv2d(1, 1, 1), "kera", "relu")
    with pytest.raises(UsageError, match="did you mean 'torch'"):
        create_model("unetpp", initialization="pytorch")

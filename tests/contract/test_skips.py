"""The laws of skip paths, over every part and every model that hosts them: registering one gets it tested."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medseg.blocks.skip.attach import attach_skips, changed_state, detach_skips
from medseg.blocks.skip.path import skip_conditions
from medseg.compose import compose, options
from medseg.errors import UsageError
from medseg.models import MODELS, create_model
from medseg.testing import PathAlone, check_skip, host_cases, skip_cases, tiny_arguments

HOSTS = host_cases()
PARTS = skip_cases()
EQUAL_CHANNELS = ("add", "cross_attention", "cross_context")
UNEQUAL_HOSTS = ("unetpp", "unetpp_batchnorm", "unetpp_nnunet", "barlow_swin")  # a node of UNet++ joins several skips
OWN_MERGE = {"att_swin_unet", "transdae", "dae_former"}  # others concatenate
ADDABLE = [(role, name) for role, name in PARTS if role != "merge"]


def build(name: str, spatial_dims: int, skips: Any = None) -> nn.Module:
    torch.manual_seed(0)
    given = {} if skips is None else {"skips": skips}
    model = create_model(name, **tiny_arguments(name, spatial_dims), **given)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():  # as if trained
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def image_for(model: nn.Module) -> Tensor:
    """A batch whose size is the divisor times odd numbers, so that the coarsest features are odd."""
    factors = (3, 1, 1) if len(model.divisor) == 3 else (3, 5)
    return torch.randn(
        2, 2, *(d * n for d, n in zip(model.divisor, factors, strict=True)), generator=torch.Generator().manual_seed(2)
    )


def conditions(model: nn.Module, image: Tensor) -> dict[str, Tensor]:
    return {name: torch.ones(len(image), n, *image.shape[2:]) for name, n in model.skips.needs.items()}


def logits(model: nn.Module, image: Tensor) -> Tensor:
    """With all weights frozen: torch.matmul chooses by requires_grad how it multiplies, which moves the last bit."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.requires_grad_(False)
    with torch.no_grad(), skip_conditions(model, **conditions(model, image)):
        out = model(image)
    for parameter in trained:
        parameter.requires_grad_(True)
    return out


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize(("role", "part"), PARTS)
def test_part_keeps_the_contract(role: str, part: str, spatial_dims: int) -> None:
    check_skip(role, part, spatial_dims=spatial_dims)


@pytest.mark.parametrize(("host", "spatial_dims"), HOSTS)
def test_default_law_no_settings_change_nothing(host: str, spatial_dims: int) -> None:
    spelt = {"pyramid": [], "edit": [], **({} if host in OWN_MERGE else {"merge": "concat"})}
    plain, same = build(host, spatial_dims), build(host, spatial_dims, spelt)
    assert list(plain.state_dict()) == list(same.state_dict())
    assert any(name.startswith("skips.") for name in plain.state_dict()) == (host in OWN_MERGE)
    image = image_for(plain)
    assert torch.equal(logits(plain, image), logits(same, image))


@pytest.mark.parametrize(("role", "part"), PARTS)
@pytest.mark.parametrize(("host", "spatial_dims"), HOSTS)
def test_every_part_works_in_every_host(host: str, spatial_dims: int, role: str, part: str) -> None:
    if part in EQUAL_CHANNELS and host in UNEQUAL_HOSTS:
        with pytest.raises(UsageError, match="equal channels"):
            build(host, spatial_dims, {role: part})
        return
    model = build(host, spatial_dims, {role: part})
    image = image_for(model).requires_grad_()
    with skip_conditions(model, **conditions(model, image)):
        out = model(image)
        out.square().mean().backward()
    assert out.shape == (2, 3, *image.shape[2:])
    assert out.isfinite().all()
    for name, parameter in model.skips.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize(("role", "part"), ADDABLE)
@pytest.mark.parametrize(("host", "spatial_dims"), HOSTS)
def test_neutral_and_detach_laws(host: str, spatial_dims: int, role: str, part: str) -> None:
    model = build(host, spatial_dims)
    state, image = copy.deepcopy(model.state_dict()), image_for(model)
    before = logits(model, image)
    train = "decoder" if part == "scale" else "skips"
    trained = attach_skips(model, {role: [part]}, train=train)
    neutral = all(getattr(module, "neutral_at_init", True) for module in model.skips.modules())
    assert torch.equal(logits(model, image), before) == neutral
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (name in trained)
        if parameter.requires_grad:
            parameter.data += 0.1
    assert not torch.equal(logits(model, image), before)
    assert set(changed_state(model, state)) == set(trained)
    detach_skips(model)
    assert torch.equal(logits(model, image), before)
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(("host", "spatial_dims"), HOSTS)
def test_neutral_law_holds_for_parts_that_a_host_is_built_with(host: str, spatial_dims: int) -> None:
    plain = create_model(host, **tiny_arguments(host, spatial_dims)).eval()
    parts = {"edit": ["sc_tuner"], "pyramid": ["spatial_context"]}
    built = create_model(host, **tiny_arguments(host, spatial_dims), skips=parts).eval()
    built.load_state_dict(plain.state_dict(), strict=False)
    image = image_for(plain)
    assert torch.equal(logits(built, image), logits(plain, image))


@pytest.mark.parametrize(("host", "spatial_dims"), HOSTS)
def test_chain_law_edits_compose_in_order_and_scales_multiply(host: str, spatial_dims: int) -> None:
    levels = build(host, spatial_dims).skips.num_levels
    falling = [2.0**-level for level in range(levels)]  # powers of two multiply exactly
    twice = build(
        host,
        spatial_dims,
        {"edit": [{"name": "scale", "per_level": falling}, {"name": "scale", "bottom": 4, "top": 4}]},
    )
    once = build(host, spatial_dims, {"edit": {"name": "scale", "per_level": [4 * factor for factor in falling]}})
    image = image_for(twice)
    assert torch.equal(logits(twice, image), logits(once, image))


def test_chain_law_the_listed_order_counts() -> None:
    paths = [PathAlone({"edit": order}, 2) for order in (["scale", "sc_tuner"], ["sc_tuner", "scale"])]
    for position, path in enumerate(paths):
        for part in path.skips.edits[position].values():
            part.factor = -3.0
        for part in path.skips.edits[1 - position].values():
            part.up.bias.data.fill_(1.0)
    skip = paths[0].skips.join(0, torch.ones(1, 4, 2, 2), torch.zeros(1, 4, 2, 2))[:, 4:]
    assert torch.equal(skip, torch.full_like(skip, -3.0 + 1.0))
    skip = paths[1].skips.join(0, torch.ones(1, 4, 2, 2), torch.zeros(1, 4, 2, 2))[:, 4:]
    assert torch.equal(skip, torch.full_like(skip, -3.0 * (1.0 + 1.0)))


def kept_bytes(model: nn.Module, image: Tensor) -> int:
    """Bytes of activations that the graph of a training step keeps."""
    kept: dict[int, int] = {}
    parameters = {parameter.data_ptr() for parameter in model.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in parameters:
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = model.train()(image)
    heads = out if isinstance(out, list) else [out]
    sum(head.square().mean() for head in heads).backward()
    return sum(kept.values())


@pytest.mark.parametrize(("host", "spatial_dims"), HOSTS)
def test_frozen_encoder_law_no_graph_of_the_encoder_is_kept(host: str, spatial_dims: int) -> None:
    model, other = build(host, spatial_dims), build(host, spatial_dims)
    image = image_for(model)
    attach_skips(other, {"edit": ["sc_tuner"]}, train="all")
    attach_skips(model, {"edit": ["sc_tuner"]}, train="skips")
    seen: list[bool] = []
    model.skips.register_forward_pre_hook(lambda _, args: seen.extend(x.requires_grad for x in args[0]))
    assert kept_bytes(model, image) < kept_bytes(other, image)
    assert seen
    assert not any(seen)


def test_some_models_host_skip_paths() -> None:
    assert {"unet", "unet_resenc", "unetpp", "barlow_swin", *OWN_MERGE} <= {name for name, _ in HOSTS}
    assert all("skips" in MODELS.arguments(name) for name, _ in HOSTS)


@pytest.mark.parametrize(("role", "part"), [case for case in PARTS if case[1] != "csc_tuner"])
def test_compiler_takes_a_host_with_the_part_as_one_graph(role: str, part: str) -> None:
    torch.compiler.reset()
    torch.manual_seed(0)
    model = create_model("unet", spatial_dims=2, base_channels=4, depth=2, skips={role: part}).eval()
    image = torch.randn(2, 1, 8, 12)
    with torch.no_grad():
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)(image)
        torch.testing.assert_close(compiled, model(image), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", options("model"))
def test_the_config_of_a_host_takes_its_skips(config: str) -> None:
    model = compose("train", [f"model={config}"])["model"]
    assert ("skips" in MODELS.arguments(model["name"])) == ("skips" in model)
    if "skips" in model:
        words = [f"model={config}", "model.skips.edit=[squeeze_excite]"]
        assert compose("train", words)["model"]["skips"] == {**model["skips"], "edit": ["squeeze_excite"]}
        assert compose("train", [f"model={config}", "model.skips=gated_add"])["model"]["skips"] == "gated_add"

"""Identities and counts of skip parts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medseg.blocks.dense import DilationAudit, MultiDilatedDenseBlock, audit_dilations
from medseg.blocks.skip import EDITS, PYRAMID, SkipContext
from medseg.blocks.skip.attach import attach_skips, detach_skips
from medseg.blocks.skip.path import SkipPath, skip_conditions
from medseg.blocks.skip.scale import calibrate_skips, ramp
from medseg.blocks.skip.tuner import ConditionalSkipTuner, SkipTuner
from medseg.device import without_memory
from medseg.errors import UsageError
from medseg.models import create_model

CONTEXT = SkipContext(0, 3, 2, {})


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def perturbed(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        parameter.data += torch.randn(parameter.shape) * 0.3
    return module


def test_ramp_falls_towards_the_bottom() -> None:
    assert ramp(3, 0.4) == pytest.approx([1.0, 0.7, 0.4])
    assert ramp(1, 0.4) == [0.4]


def test_scale_of_one_is_the_tensor_itself_and_zero_hides_the_skip() -> None:
    skip = torch.randn(1, 2, 3, 3)
    one, zero = (EDITS.build("scale", level=2, num_levels=3, bottom=bottom) for bottom in (1.0, 0.0))
    assert one(skip, None, CONTEXT) is skip
    assert not zero(skip, None, CONTEXT).any()
    assert not zero.state_dict()
    learnable = EDITS.build("scale", level=0, num_levels=3, per_level=[0.5, 1, 1], learnable=True)
    assert learnable.state_dict()["factor"].tolist() == [0.5]


def test_tuner_has_the_published_number_of_parameters_for_stable_diffusion() -> None:
    with without_memory():
        widths = [320] * 4 + [640] * 3 + [1280] * 5
        tuners = [SkipTuner(spatial_dims=2, channels=c) for c in widths]
    assert sum(map(parameters, tuners)) == 19_680_000


def test_strength_blends_between_host_and_tuner() -> None:
    tuner, skip = perturbed(SkipTuner(spatial_dims=2, channels=4)), torch.randn(2, 4, 5, 3)
    whole = tuner(skip, None, CONTEXT)
    tuner.strength = 0.0
    assert torch.equal(tuner(skip, None, CONTEXT), skip)
    tuner.strength = 0.5
    torch.testing.assert_close(tuner(skip, None, CONTEXT), (skip + whole) / 2)


def test_a_condition_without_weight_is_as_if_it_were_not_there() -> None:
    both = perturbed(
        ConditionalSkipTuner(spatial_dims=2, channels=4, conditions={"prior": 1, "edges": 2}, weights={"edges": 0})
    )
    one = ConditionalSkipTuner(spatial_dims=2, channels=4)
    one.load_state_dict({name: x for name, x in both.state_dict().items() if ".edges." not in name})
    skip, context = torch.randn(2, 4, 5, 3), CONTEXT._replace(cond={"prior": torch.randn(2, 1, 10, 6)})
    assert torch.equal(both(skip, None, context), one(skip, None, context))
    assert both.conditions_needed == {"prior": 1}


def test_a_condition_reaches_the_logits_once_trained() -> None:
    model = perturbed(
        create_model("unet", spatial_dims=2, base_channels=4, depth=1, skips={"edit": "csc_tuner"})
    ).eval()
    image = torch.randn(1, 1, 8, 8)
    seen = []
    for prior in (torch.zeros_like(image), torch.ones_like(image)):
        with skip_conditions(model, prior=prior), torch.no_grad():
            seen.append(model(image))
    assert not torch.allclose(*seen)


@pytest.mark.parametrize("layers", [1, 2, 3, 4, 5])
def test_multi_dilated_block_sees_exactly_what_it_says(layers: int) -> None:
    block = MultiDilatedDenseBlock(1, 1, layers=layers, spatial_dims=2, norm="none", activation="relu")
    for parameter in block.parameters():
        parameter.data.fill_(1.0)
    field = 2 ** (layers + 1) - 1
    size = field + 4
    image = torch.ones(1, 1, size, size, requires_grad=True)
    block(image)[0, -1, size // 2, size // 2].backward()
    seen = image.grad[0, 0] > 0
    assert seen.sum(0).max() == seen.sum(1).max() == field
    assert seen[2:-2, 2:-2].all(), "there are holes"


def test_gap_audit_of_growing_and_of_uniform_dilations() -> None:
    growing = [[2**i for i in range(layer)] for layer in range(1, 6)]
    uniform = [[2 ** (layer - 1)] * layer for layer in range(1, 6)]
    assert audit_dilations(growing) == DilationAudit(63, 0, 15)
    assert audit_dilations(uniform)[1:] == (10, 15)


def test_dilations_are_capped_per_axis() -> None:
    block = MultiDilatedDenseBlock(2, 3, layers=4, spatial_dims=3, max_dilation=(1, 4, 4))
    assert [conv.dilation for conv in block.convs] == [(1, 1, 1), (1, 2, 2), (1, 4, 4), (1, 4, 4)]
    assert block(torch.randn(1, 2, 3, 9, 7)).shape == (1, 12, 3, 9, 7)


def test_normalising_the_sum_is_another_function_of_the_same_size() -> None:
    blocks = [
        MultiDilatedDenseBlock(2, 3, layers=3, spatial_dims=2, norm_before_sum=before) for before in (True, False)
    ]
    x = torch.randn(1, 2, 9, 7)
    assert blocks[0](x).shape == blocks[1](x).shape == (1, 9, 9, 7)


@pytest.mark.parametrize("stacks", [1, 5])
def test_dense_pyramid_has_18_weights_on_five_levels_for_any_number_of_stacks(stacks: int) -> None:
    pyramid = PYRAMID.build("dense_fpn", spatial_dims=2, channels=[8] * 5, stacks=stacks)
    assert sum(p.numel() for p in (*pyramid.coarser.parameters(), *pyramid.finer.parameters())) == 18


def test_dense_pyramid_at_first_weighs_all_sources_the_same() -> None:
    pyramid = PYRAMID.build("dense_fpn", spatial_dims=2, channels=[4, 4, 4])
    for parameter in (*pyramid.coarser.parameters(), *pyramid.finer.parameters()):
        assert parameter.softmax(0).unique().numel() == 1


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_nested_skips_are_the_nodes_of_unetpp(spatial_dims: int, dense: bool) -> None:
    arguments = {"base_channels": 4, "depth": 3, "dropout": 0.0, "upsample": "linear", "dense": dense}
    host = create_model("unetpp", spatial_dims=spatial_dims, in_channels=2, **arguments)
    channels = [4, 8, 16, 32]
    part = PYRAMID.build(
        "nested",
        spatial_dims=spatial_dims,
        channels=channels,
        num_levels=3,
        dense=dense,
        norm="none",
        activation="relu",
    )
    inner = {name: state for name, state in host.nodes.state_dict().items() if name[:3] in part.nodes}
    part.nodes.load_state_dict(inner)
    assert set(part.nodes) == {"0_1", "1_1", "0_2"}
    outputs: dict[str, torch.Tensor] = {}
    for name, node in host.nodes.items():
        node.register_forward_hook(lambda _, __, out, name=name: outputs.update({name: out}))
    host(torch.randn(2, 2, *host.divisor))
    features = tuple(outputs[f"{level}_0"] for level in range(4))
    nested = part(features, SkipContext(0, 3, spatial_dims, {}))
    for out, name in zip(nested, ("0_2", "1_1", "2_0", "3_0"), strict=True):
        assert torch.equal(out, outputs[name]), name


def test_nested_skips_of_some_levels() -> None:
    path = SkipPath(
        {"pyramid": [{"name": "nested", "levels": [1, 2]}]},
        spatial_dims=2,
        channels=[2, 4, 8, 16],
        decoder_channels=[2, 4, 8],
    )
    assert set(path.pyramid[0].nodes) == {"0_1"}
    features = [torch.randn(1, c, s, s) for c, s in ((2, 9), (4, 5), (8, 3), (16, 2))]
    changed = [not torch.equal(a, b) for a, b in zip(features, path(features), strict=True)]
    assert changed == [False, True, False, False]


def test_spatial_context_is_one_vector_per_image() -> None:
    part = perturbed(PYRAMID.build("spatial_context", spatial_dims=2, channels=[4]))
    x = torch.randn(2, 4, 5, 3)
    added = part.context_of(x, 0) / part.gates[0](x).sigmoid()
    torch.testing.assert_close(added, added[:, :, :1, :1].expand_as(added))
    values = part.values[0](x).flatten(2)
    part.keys[0].weight.data.zero_()  # attention to all voxels alike: the mean
    expected = part.out[0](values.mean(-1)[..., None, None])
    torch.testing.assert_close((part.context_of(x, 0) / part.gates[0](x).sigmoid())[:, :, :1, :1], expected)


class TestCalibration:
    """calibrate_skips chooses factors by a score, and never falls below what was there."""

    @pytest.fixture
    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return create_model("unet", spatial_dims=2, base_channels=4, depth=3).eval()

    @pytest.mark.parametrize("mode", ["linear", "coordinate"])
    def test_it_finds_the_factors_that_made_the_labels(self, model, mode) -> None:
        images, factors = torch.randn(2, 1, 16, 16), [1.0, 0.7, 0.4] if mode == "linear" else [1.2, 0.6, 0.2]
        made = create_model(
            "unet", spatial_dims=2, base_channels=4, depth=3, skips={"edit": {"name": "scale", "per_level": factors}}
        )
        made.load_state_dict(model.state_dict())
        with torch.no_grad():
            wanted = made.eval()(images)
        found = calibrate_skips(model, [(images, wanted)], lambda a, b: -(a - b).abs().mean(), mode=mode)
        assert found.after > found.before
        if mode == "linear":
            assert found.per_level == pytest.approx(factors)
        assert [part.factor for part in model.skips.edits[0].values()] == list(found.per_level)

    def test_it_keeps_one_where_nothing_is_better(self, model) -> None:
        images = torch.randn(1, 1, 16, 16)
        with torch.no_grad():
            wanted = model(images)
        found = calibrate_skips(model, [(images, wanted)], lambda a, b: -(a - b).abs().mean())
        assert found.per_level == (1, 1, 1)
        assert found.before == found.after
        with torch.no_grad():
            assert torch.equal(model(images), wanted)

    def test_a_gain_within_the_tolerance_does_not_count(self, model) -> None:
        found = calibrate_skips(
            model,
            [(torch.randn(1, 1, 16, 16), torch.zeros(1))],
            lambda a, _: a.mean(),
            tolerance=1e6,
            mode="coordinate",
        )
        assert found.per_level == (1, 1, 1)

    def test_the_mode_is_named(self, model) -> None:
        with pytest.raises(UsageError, match="did you mean 'linear'"):
            calibrate_skips(model, [], lambda a, b: 0.0, mode="liner")

    @pytest.mark.parametrize(
        "bad",
        [
            {"grid": ["abc"]},
            {"grid": 0.5},
            {"grid": []},
            {"grid": [float("nan")]},
            {"tolerance": "x"},
            {"tolerance": -0.1},
            {"mode": None},
        ],
    )
    def test_arguments_that_cannot_be_searched_with_are_refused(self, model, bad) -> None:
        with pytest.raises(UsageError, match="calibrate_skips"):
            calibrate_skips(model, [(torch.randn(1, 1, 8, 8), torch.zeros(1))], lambda a, b: a.mean(), **bad)

    def test_every_module_is_in_its_own_mode_again(self, model) -> None:
        model.train()
        model.encoder.eval()
        before = {name: module.training for name, module in model.named_modules()}
        calibrate_skips(model, [(torch.randn(1, 1, 8, 8), torch.zeros(1))], lambda a, b: a.mean())
        after = {name: module.training for name, module in model.named_modules()}
        assert {name: after[name] for name in before} == before
        assert all(after[name] for name in after.keys() - before.keys())

    def test_the_scale_of_the_model_itself_is_left_alone_and_detach_gives_it_back(self) -> None:
        own = {"edit": [{"name": "scale", "bottom": 0.3}]}
        model = create_model("unet", spatial_dims=2, base_channels=4, depth=2, skips=own).eval()
        images, factors = torch.randn(1, 1, 8, 8), [part.factor for part in model.skips.edits[0].values()]
        with torch.no_grad():
            wanted = model(images)
        for _ in range(2):
            found = calibrate_skips(model, [(images, wanted)], lambda a, b: (a - b).abs().mean(), grid=(0.1, 1.5))
            assert found.before == 0, "the score of the model as it came"
            assert [part.factor for part in model.skips.edits[0].values()] == factors
            assert [part.factor for part in model.skips.edits[1].values()] == list(found.per_level) != [1, 1]
            assert len(model.skips.edits) == 2
        attach_skips(model, {"edit": "sc_tuner"})
        detach_skips(model)
        with torch.no_grad():
            assert torch.equal(model(images), wanted)
        assert not any(module.training for module in model.modules())

    @pytest.mark.parametrize(
        ("count", "value", "message"), [(0, 1.0, "gives no batch"), (1, float("nan"), "score is NaN")]
    )
    def test_what_cannot_be_judged_is_refused_and_changes_nothing(self, model, count, value, message) -> None:
        loader = [(torch.randn(1, 1, 8, 8), torch.zeros(1))] * count
        with pytest.raises(UsageError, match=message):
            calibrate_skips(model, loader, lambda a, b: value)
        assert not model.skips.edits
        assert model.skips.calibrated is None


def test_spatial_context_of_a_large_volume_in_half_precision() -> None:
    part = PYRAMID.build("spatial_context", spatial_dims=3, channels=[1])
    with torch.no_grad():
        for layer in (part.keys[0], part.values[0], part.gates[0], part.out[0]):
            layer.weight.fill_(0.0 if layer is part.keys[0] else 1.0)
        x = torch.ones(1, 1, 192, 160, 160)  # nearly five million voxels: a weight of 2e-7
        exact = part.context_of(x[..., :1], 0)[0, 0, 0, 0, 0]
        with torch.autocast("cpu", torch.float16):
            half = part.context_of(x, 0)[0, 0, 0, 0, 0]
    torch.testing.assert_close(half.float(), exact, rtol=2e-3, atol=0)

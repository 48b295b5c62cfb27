"""U-Net: published parameter counts, stages, heads, initialisation, refusals."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medseg.device import without_memory
from medseg.errors import UsageError
from medseg.models import create_model, list_models
from medseg.models.unet import UNet


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("name", "count"), [("unet_classic", 7_759_521), ("unet_wide", 9_282_246)])
def test_unets_of_the_unetpp_paper_have_its_counts(name: str, count: int) -> None:
    assert parameters(create_model(name)) == count


def test_nnunet_count_is_matched_but_for_biases_that_normalisation_subtracts() -> None:
    # nnU-Net v1 with five poolings, one input and three classes: 31,195,584 parameters, with biases in its
    # convolutions, none in transposed convolutions and heads, and a head on every decoder stage.
    with without_memory():
        model = create_model("unet", out_channels=3, depth=5, deep_supervision=True)
    channels = [32, 64, 128, 256, 320, 320]
    conv_biases = 2 * sum(channels) + 2 * sum(channels[:-1])
    transposed_biases, head_biases, lowest_head = sum(channels[:-1]), 3 * 4, 3 * 320
    assert parameters(model) + conv_biases - transposed_biases - head_biases + lowest_head == 31_195_584


def test_heads_are_finest_first_without_the_lowest_decoder_stage() -> None:
    model = UNet(base_channels=4, depth=4, deep_supervision=True)
    logits = model(torch.randn(1, 1, 32, 16, 16))
    assert [tuple(x.shape[2:]) for x in logits] == [(32, 16, 16), (16, 8, 8), (8, 4, 4)]
    assert model.eval()(torch.randn(1, 1, 16, 16, 16)).shape == (1, 2, 16, 16, 16)


def test_two_stages_have_one_head() -> None:
    model = UNet(base_channels=4, depth=1, deep_supervision=True)
    assert isinstance(model(torch.randn(1, 1, 4, 4, 4)), torch.Tensor)


def test_plan_strides_and_depth_say_the_same() -> None:
    by_strides = UNet(base_channels=4, strides=[[1, 1, 1], [2, 2, 2], [2, 2, 2]])
    by_depth = UNet(base_channels=4, depth=2)
    assert by_strides.divisor == by_depth.divisor == (4, 4, 4)
    assert parameters(by_strides) == parameters(by_depth)


def test_residual_blocks_start_as_their_shortcuts() -> None:
    block = create_model("unet_resenc", spatial_dims=2, base_channels=4, depth=1).encoder.stages[0][0].eval()
    x = torch.randn(2, 4, 6, 6)
    torch.testing.assert_close(block(x), nn.functional.leaky_relu(x, 0.01))


def test_residual_shortcut_pools_before_it_projects() -> None:
    block = create_model("unet_resenc", spatial_dims=2, base_channels=4, depth=1).encoder.stages[1][0].eval()
    x = torch.randn(1, 4, 8, 8)
    pool, projection, norm = block.shortcut
    torch.testing.assert_close(
        block(x), nn.functional.leaky_relu(norm(projection(nn.functional.avg_pool2d(x, 2))), 0.01)
    )
    assert isinstance(pool, nn.AvgPool2d)


def test_resenc_has_the_papers_blocks_and_a_light_decoder() -> None:
    model = create_model("unet_resenc", spatial_dims=2, base_channels=2, depth=5)
    assert [len(stage) for stage in model.encoder.stages] == [1, 3, 4, 6, 6, 6]
    assert [len(stage) for stage in model.decoder.stages] == [1] * 5


def test_skip_add_halves_the_decoders_input() -> None:
    concat, add = (UNet(spatial_dims=2, base_channels=4, depth=1, skips=name) for name in ("concat", "add"))
    assert concat.decoder.stages[0][0].conv.in_channels == 8
    assert add.decoder.stages[0][0].conv.in_channels == 4


def test_weights_are_he_normal_and_biases_zero() -> None:
    torch.manual_seed(0)
    layer = create_model("unet_classic").encoder.stages[-1][-1].conv
    fan_in = 512 * 9
    assert layer.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.01)
    assert not layer.bias.any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"norm": "instanse"}, "did you mean 'instance'"),
        ({"activation": "relo"}, "did you mean 'relu'"),
        ({"encoder": "residul"}, "did you mean 'residual'"),
        ({"downsample": "pool"}, "maxpool"),
        ({"skips": "concatenate"}, "did you mean 'concat'"),
        ({"spatial_dims": 4}, "must be 2 or 3"),
        ({"strides": [2, 2]}, "the first with stride 1"),
        ({"strides": [1, [2, 2]]}, "needs 3 whole numbers"),
        ({"strides": [1, 2], "depth": 3}, "give only one"),
        ({"blocks_per_stage": [2, 2]}, "needs 5 numbers"),
        ({"base_chanels": 8}, "did you mean 'base_channels'"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        create_model("unet", **arguments)


def test_unknown_model_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'unetpp'"):
        create_model("unetp")


def test_list_models_filters_by_pattern() -> None:
    assert list_models("unet_*") == ["unet_classic", "unet_resenc", "unet_wide"]
    assert "unetpp" in list_models()

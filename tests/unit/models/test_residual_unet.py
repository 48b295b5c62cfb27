"""Residual U-Net: published parameter counts, the sum of the heads, context blocks in both orders."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from medseg.blocks.skip.attach import attach_skips, detach_skips
from medseg.device import without_memory
from medseg.errors import UsageError
from medseg.models import create_model
from medseg.models.residual_unet import ResidualUNet
from medseg.testing import check_model


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("out_channels", "count"), [(1, 8_269_331), (3, 8_269_561), (4, 8_269_676)])
@pytest.mark.parametrize("options", [{}, {"pre_activation": True, "slope": 0.01}])
def test_published_parameter_counts(out_channels: int, count: int, options: dict[str, Any]) -> None:
    with without_memory():
        model = create_model("residual_unet", in_channels=4, out_channels=out_channels, **options)
    assert parameters(model) == count
    assert model.divisor == (16, 16, 16)


def test_training_returns_one_tensor_the_sum_of_the_heads() -> None:
    torch.manual_seed(0)
    model = ResidualUNet(spatial_dims=2, base_channels=4, depth=3, out_channels=2, dropout=0.0).train()
    image, parts = torch.randn(2, 1, 16, 16), []
    for head in model.heads:
        head.register_forward_hook(lambda _, __, out: parts.append(out))
    logits = model(image)
    assert [part.shape[-1] for part in parts] == [4, 8, 16]
    enlarged = [nn.functional.interpolate(part, size=(16, 16), mode="nearest") for part in parts]
    torch.testing.assert_close(logits, torch.stack(enlarged).sum(0))


def test_its_head_and_a_tuner_are_adapted() -> None:
    model = ResidualUNet(spatial_dims=2, base_channels=4, depth=2)
    trained = attach_skips(model, {"edit": ["sc_tuner"]}, train="skips+head")
    assert {name.partition(".")[0] for name in trained} == {"skips", "heads"}
    detach_skips(model)
    trained = attach_skips(model, train="decoder")
    assert {name.partition(".")[0] for name in trained} == {"localisation", "heads"}


def test_heads_are_at_most_the_levels_of_the_decoder() -> None:
    model = ResidualUNet(spatial_dims=2, base_channels=4, depth=1)
    assert len(model.heads) == 1
    assert len(ResidualUNet(spatial_dims=2, base_channels=4, depth=4, supervised_levels=2).heads) == 2


def test_a_context_block_that_says_nothing_passes_its_input_on() -> None:
    model = ResidualUNet(spatial_dims=2, base_channels=4, depth=1, dropout=0.0)
    level = model.context[0]
    nn.init.zeros_(level.context[-1].weight)
    x = torch.randn(1, 1, 8, 8)
    assert torch.equal(level(x), level.entry(x))


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_the_original_as_remembered_keeps_the_contract(spatial_dims: int) -> None:
    torch.manual_seed(0)
    model = ResidualUNet(spatial_dims=spatial_dims, base_channels=4, depth=2, pre_activation=True, slope=0.01)
    check_model(model, spatial_dims=spatial_dims)


def test_dropout_drops_whole_channels_in_training_only() -> None:
    torch.manual_seed(0)
    level = ResidualUNet(spatial_dims=3, base_channels=16, depth=1, dropout=0.5).context[0].train()
    dropped = level.context[:3](level.entry(torch.randn(1, 1, 4, 4, 4)))
    empty = (dropped == 0).flatten(2).all(2)
    assert 0 < empty.sum() < 16
    assert not (dropped[~empty] == 0).any()
    assert not (level.eval().context[:3](level.entry(torch.randn(1, 1, 4, 4, 4))) == 0).flatten(2).all(2).any()


@pytest.mark.parametrize("bad", [{"supervised_levels": 0}, {"dropout": 1.0}, {"strides": [1, 2], "depth": 3}])
def test_settings_that_cannot_be_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        ResidualUNet(spatial_dims=2, **bad)

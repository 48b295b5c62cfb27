"""Barlow-Swin: parameter counts by resolution, positions for other sizes, the notebook's last layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from medseg.device import without_memory
from medseg.errors import UsageError
from medseg.models import create_model

TINY: dict[str, Any] = {"embed_dim": 8, "num_heads": 2, "decoder_channels": (8, 8, 4, 4), "image_size": 32}


@pytest.mark.parametrize(("image_size", "keras"), [(512, 7_001_829), (256, 5_822_181), (224, 5_730_021)])
def test_counts_by_resolution(image_size: int, keras: int) -> None:
    with without_memory():
        model = create_model("barlow_swin", image_size=image_size, in_channels=3, out_channels=1)
    running = sum(b.numel() for name, b in model.named_buffers() if name.endswith(("running_mean", "running_var")))
    assert running == 2_498
    tables = [p for name, p in model.named_parameters() if name.endswith("relative_position_bias_table")]
    assert sum(p.numel() for p in tables) == 2_352  # plain variables in the notebook, which Keras does not count
    assert sum(p.numel() for p in model.parameters()) == keras - running + 2_352
    if image_size == 512:
        assert sum(p.numel() for p in model.parameters()) == 7_001_683
        assert sum(p.numel() for p in model.encoder.parameters()) == 6_610_896
        assert model.encoder.position.numel() == 1_572_864


def test_stages_and_layers_are_the_notebooks() -> None:
    model = create_model("barlow_swin", image_size=64).eval()
    with torch.no_grad():
        features = model.encoder(torch.randn(1, 3, 64, 64))
    assert [tuple(f.shape) for f in features] == [(1, 96, 16, 16), (1, 192, 8, 8), (1, 384, 4, 4)]
    blocks = [module.attn for module in model.modules() if hasattr(module, "attn")]
    assert [(b.window_size, b.num_heads, b.shift) for b in blocks] == [(4, 8, 0), (4, 8, 1)] * 3
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.01)}
    assert norms[-1].num_features == 1


def test_the_position_of_another_size_is_interpolated() -> None:
    model = create_model("barlow_swin", **TINY)
    position = model.encoder.position
    assert model.encoder._position((8, 8)) is position
    with torch.no_grad():
        position.copy_(torch.arange(8.0)[None, :, None, None].expand_as(position))
        wide = model.encoder._position((8, 16))
        tall = model.encoder._position((16, 8))
    torch.testing.assert_close(wide, position[:, :, :1].expand(1, 8, 16, 8))
    torch.testing.assert_close(tall[0, 1:-1, 0, 0], torch.arange(0.25, 7, 0.5))
    assert model(torch.randn(2, 3, 48, 16)).shape == (2, 1, 48, 16)
    assert create_model("barlow_swin", **{**TINY, "image_size": [40, 30]}).encoder.position.shape[1:3] == (10, 8)


def test_logits_are_normalised_over_the_batch_as_in_the_notebook() -> None:
    torch.manual_seed(0)
    image = torch.randn(4, 3, 32, 32)
    logits = create_model("barlow_swin", **TINY).train()(image)
    torch.testing.assert_close(logits.mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
    assert create_model("barlow_swin", **TINY, head_norm=False).train()(image).mean().abs() > 1e-4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"spatial_dims": 3}, "not spatial_dims 3"), ({"decoder_channels": (8, 8)}, "needs 4 numbers")],
)
def test_wrong_settings_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        create_model("barlow_swin", **arguments)

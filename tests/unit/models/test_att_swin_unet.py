"""Att-SwinU-Net: the published code's counts, the encoder attention's effect, and what its options leave equal."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from medseg.blocks.skip import EDITS, SkipContext, SkipEdit
from medseg.blocks.skip.tuner import set_zero
from medseg.device import without_memory
from medseg.errors import UsageError
from medseg.models import create_model
from medseg.models.att_swin_unet import AttSwinUNet

TINY: dict[str, Any] = {"embed_dim": 8, "num_heads": 2, "window_size": 4, "depths": (2, 2, 2)}


def count(**arguments: Any) -> int:
    with without_memory():
        return sum(p.numel() for p in create_model("att_swin_unet", in_channels=3, **arguments).parameters())


def tiny(**arguments: Any) -> AttSwinUNet:
    """Narrow, in evaluation mode, with weights that leave nothing zero or one; the same for the same tensors."""
    model = create_model("att_swin_unet", **TINY, **arguments).eval()
    torch.manual_seed(0)
    for parameter in model.encoder.parameters():
        nn.init.normal_(parameter, std=0.3)
    for parameter in [*model.decoder.parameters(), *model.norm.parameters(), *model.expand.parameters()]:
        nn.init.normal_(parameter, std=0.3)
    return model  # type: ignore[return-value]


def tied(source: AttSwinUNet, **arguments: Any) -> AttSwinUNet:
    """Another model with the weights that both have."""
    model = tiny(**arguments)
    state = source.state_dict()
    model.load_state_dict({name: state[name] for name in model.state_dict()})
    return model


@pytest.fixture
def image() -> torch.Tensor:
    return torch.randn(2, 3, 64, 48, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"out_channels": 1}, 32_681_220),
        ({"out_channels": 1, "mode": "swin"}, 27_168_132),
        ({"official": True}, 32_689_956),
        ({"official": True, "out_channels": 9}, 32_689_956),
        ({"official": True, "mode": "swin"}, 27_176_868),
        ({"official": True, "depths": (2, 2, 6, 2)}, 46_901_892),
        ({"official": True, "mode": "swin", "depths": (2, 2, 6, 2)}, 41_388_804),
        ({"out_channels": 9}, 32_681_220 + 768),
    ],
)
def test_counts_are_the_published_codes(arguments: dict[str, Any], expected: int) -> None:
    assert count(**arguments) == expected


def test_shapes_at_the_papers_size() -> None:
    with without_memory():
        model = create_model("att_swin_unet").eval()
        features, maps = model.encoder.tokens(torch.empty(1, 3, 224, 224), 3)  # type: ignore[union-attr]
    assert model.divisor == (32, 32)
    assert [tuple(f.shape) for f in features] == [(1, 56, 56, 96), (1, 28, 28, 192), (1, 14, 14, 384), (1, 7, 7, 768)]
    assert [[tuple(m.shape) for m in stage] for stage in maps] == [
        [(1, 64, 3, 49, 49)] * 2, [(1, 16, 6, 49, 49)] * 2, [(1, 4, 12, 49, 49)] * 2, [],
    ]  # fmt: skip


def test_encoder_returns_images_finest_first(image: torch.Tensor) -> None:
    features = tiny().encoder(image)
    assert [tuple(f.shape) for f in features] == [(2, 8, 16, 12), (2, 16, 8, 6), (2, 32, 4, 3)]


@torch.no_grad()
def test_attention_of_zero_is_the_plain_swin_unet(image: torch.Tensor) -> None:
    plain = tiny(mode="swin")
    guided = tied(plain, mode="swin", spatial_attention="add")
    assert not torch.allclose(guided(image), plain(image), atol=1e-3), "the encoder's attention has no effect"
    tokens = guided.encoder.tokens

    def without_attention(image: torch.Tensor, stages: int) -> tuple[list[torch.Tensor], list[list[torch.Tensor]]]:
        features, maps = tokens(image, stages)
        return features, [[torch.zeros_like(weights) for weights in stage] for stage in maps]

    guided.encoder.tokens = without_attention
    torch.testing.assert_close(guided(image), plain(image), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"spatial_attention": "none"}, False),
        ({"official_noop": True}, False),
        ({"spatial_attention": "mul"}, False),
        ({"renormalise": True}, False),
        ({"cls_mode": "replace_first"}, False),
        ({"spatial_attention": "add"}, True),
    ],
)
def test_every_option_changes_the_output(changes: dict[str, Any], same: bool, image: torch.Tensor) -> None:
    model = tiny()
    assert torch.allclose(tied(model, **changes)(image), model(image), atol=1e-3) is same


@torch.no_grad()
def test_published_code_ignores_the_encoders_attention(image: torch.Tensor) -> None:
    model = tiny()
    assert torch.equal(tied(model, official_noop=True)(image), tied(model, spatial_attention="none")(image))


def test_encoder_attention_is_trained_through_the_decoder(image: torch.Tensor) -> None:
    """The queries of encoder block b reach the output also where their own values are cut off."""
    model = tiny()
    block = model.encoder.layers[0].blocks[1]  # type: ignore[union-attr, index]
    output = block.attn._output  # type: ignore[union-attr]
    block.attn._output = lambda out, windows: output(torch.zeros_like(out), windows)  # type: ignore[union-attr]
    model(image).sum().backward()
    assert block.attn.qkv.weight.grad[:16].any()  # type: ignore[union-attr, index]


@pytest.mark.parametrize("skips", [0, 1, 2])
def test_skips_keep_the_finest(skips: int, image: torch.Tensor) -> None:
    model = tiny(skip_count=skips)
    assert [stage.fuse is not None for stage in model.decoder] == [i < skips for i in range(2)]
    _, maps = model.encoder.tokens(image, model.guided)
    assert [len(stage) for stage in maps] == [2 * (i < skips) for i in range(3)]
    assert model(image).shape == (2, 1, 64, 48)


def test_drop_path_rises_to_its_rate() -> None:
    model = create_model("att_swin_unet", **TINY, drop_path=0.5)
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for stage in model.encoder.layers for block in stage.blocks]  # type: ignore[union-attr]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"spatial_dims": 3}, "takes images, not spatial_dims 3"),
        ({"mode": "crosss"}, "did you mean 'cross'"),
        ({"spatial_attention": "ad"}, "did you mean 'add'"),
        ({"cls_mode": "replace"}, "did you mean 'replace_first'"),
        ({"skip_count": 4}, "skip_count 4"),
        ({"num_heads": (3, 6)}, "needs 4 numbers"),
        ({"embed_dim": 100}, "100 channels cannot be divided among 3 heads"),
    ],
)
def test_wrong_settings_are_refused(arguments: dict[str, Any], message: str) -> None:
    with without_memory(), pytest.raises(UsageError, match=message):
        create_model("att_swin_unet", **arguments)


def test_what_edits_the_skips_starts_as_it_says_itself(image: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    class Linear(SkipEdit):
        neutral_at_init = True

        def __init__(self, *, channels: int) -> None:
            super().__init__()
            self.change = nn.Linear(channels, channels)
            set_zero(self.change)

        def forward(self, skip: torch.Tensor, decoder: torch.Tensor | None, context: SkipContext) -> torch.Tensor:
            return skip + self.change(skip.movedim(1, -1)).movedim(-1, 1)

    EDITS.names()
    monkeypatch.setitem(EDITS._factories, "linear", Linear)
    plain = tiny()
    built = tiny(skips={"edit": ["linear"]})
    built.load_state_dict(plain.state_dict(), strict=False)
    assert torch.equal(built(image), plain(image))
    weights = [m.weight for m in AttSwinUNet(**TINY).skips.merges.modules() if isinstance(m, nn.Linear)]
    assert all(float(weight.detach().abs().max()) < 0.2 for weight in weights), "merges start as the rest"

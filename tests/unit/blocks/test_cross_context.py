"""The cross-contextual skip against its rule written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from medseg.blocks.skip import MERGES
from medseg.blocks.skip.cross_context import CrossContext, TokenAttention
from medseg.errors import UsageError


def module(cls_mode: str) -> CrossContext:
    torch.manual_seed(0)
    merge = MERGES.build(
        "cross_context", spatial_dims=2, skip_channels=6, decoder_channels=6, num_heads=2, head_dim=3, cls_mode=cls_mode
    )
    for parameter in merge.parameters():
        nn.init.normal_(parameter, std=0.5)
    return merge  # type: ignore[return-value]


def attention(layer: TokenAttention, cls: Tensor, others: Tensor) -> Tensor:
    """Of one sample: cls (C,), others (N, C) -> (C,), head by head and with keys and values computed."""
    own = layer.norm(cls)
    context = torch.cat((own[None], others))
    keys, values = layer.to_kv(context).chunk(2, dim=1)
    heads = []
    for part in torch.arange(layer.num_heads * layer.head_dim).split(layer.head_dim):
        scores = keys[:, part] @ layer.to_q(own)[part] / layer.head_dim**0.5
        heads.append(scores.softmax(0) @ values[:, part])
    return layer.to_out(torch.cat(heads))


def by_hand(merge: CrossContext, skip: Tensor, decoder: Tensor) -> Tensor:
    """One sample of tokens (N, C) each -> (N, 2C)."""
    first = 1 if merge.cls_mode == "replace_first" else 0
    d, s = decoder.mean(0), skip.mean(0)
    for d_layer, s_layer in zip(merge.decoder_layers, merge.skip_layers, strict=True):
        d = d + attention(d_layer, d, skip[first:])
        s = s + attention(s_layer, s, decoder[first:])
    if first:
        return torch.cat((torch.cat((d[None], decoder[1:])), torch.cat((s[None], skip[1:]))), dim=1)
    return torch.cat((decoder + d, skip + s), dim=1)


@pytest.mark.parametrize("cls_mode", ["replace_first", "add"])
def test_is_the_rule_written_out(cls_mode: str) -> None:
    merge = module(cls_mode)
    skip, decoder = torch.randn(2, 6, 3, 4), torch.randn(2, 6, 3, 4)
    out = merge(skip, decoder)
    for one, s, d in zip(out, skip, decoder, strict=True):
        expected = by_hand(merge, s.flatten(1).T, d.flatten(1).T)
        torch.testing.assert_close(one.flatten(1).T, expected, rtol=1e-4, atol=1e-5)


def test_replacing_changes_the_first_token_only() -> None:
    skip, decoder = torch.randn(1, 6, 3, 4), torch.randn(1, 6, 3, 4)
    changed = (module("replace_first")(skip, decoder) != torch.cat((decoder, skip), 1)).any(1)
    assert changed.flatten().tolist() == [True] + [False] * 11
    assert (module("add")(skip, decoder) != torch.cat((decoder, skip), 1)).any(1).all()


@pytest.mark.parametrize("channels", [96, 192, 384])
def test_layers_have_the_published_size(channels: int) -> None:
    merge = CrossContext(spatial_dims=2, skip_channels=channels, decoder_channels=channels)
    assert sum(p.numel() for p in merge.parameters()) == 8204 * channels  # 5,513,088 at 96 + 192 + 384 channels


def test_channels_last_stays_so() -> None:
    image = torch.randn(1, 6, 3, 4).to(memory_format=torch.channels_last)
    assert module("add")(image, image).is_contiguous(memory_format=torch.channels_last)


def test_unequal_channels_and_unknown_modes_are_refused() -> None:
    with pytest.raises(UsageError, match="equal channels, not 2 and 3"):
        CrossContext(spatial_dims=2, skip_channels=2, decoder_channels=3)
    with pytest.raises(UsageError, match="did you mean 'add'"):
        CrossContext(spatial_dims=2, skip_channels=2, decoder_channels=2, cls_mode="ad")

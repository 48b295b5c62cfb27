"""DAE-Former: exact counts and what they prove; TransDAE: its parts, options, the skip's reach, refusals."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medseg.blocks.attention.channel import ChannelAttention
from medseg.blocks.attention.efficient import EfficientAttention
from medseg.blocks.attention.mix_ffn import MixFFN
from medseg.blocks.attention.spatial_reduction import SpatialReductionAttention
from medseg.blocks.skip import MERGES
from medseg.device import without_memory
from medseg.errors import UsageError
from medseg.models import create_model

SMALL = {"widths": (8, 16, 16), "blocks_per_stage": 1, "num_heads": 2}


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_dae_former_has_the_counts_of_its_code() -> None:
    with without_memory():
        live, whole = create_model("dae_former"), create_model("dae_former", mirror_dead=True)
    assert parameters(live) == 29_690_201
    assert parameters(live.encoder) == 20_379_888
    assert parameters(whole) == 48_073_065
    norms = [module for module in whole.unused if isinstance(module, nn.LayerNorm)]
    assert parameters(nn.ModuleList(norms[:-10])) == 97_280  # of the feed-forwards that are called
    assert parameters(whole.unused[0]) + parameters(nn.ModuleList(norms[-10:])) == 18_285_584  # the deepest stage


def test_what_is_never_called_changes_nothing() -> None:
    torch.manual_seed(0)
    whole = create_model("dae_former", in_channels=1, mirror_dead=True, **SMALL)
    live = create_model("dae_former", in_channels=1, **SMALL)
    live.load_state_dict({k: v for k, v in whole.state_dict().items() if not k.startswith("unused")})
    image = torch.randn(1, 1, 32, 48)
    assert torch.equal(live(image), whole(image))


def test_dae_former_of_one_channel_has_an_embedding_for_one() -> None:
    with without_memory():
        grey, colour = (create_model("dae_former", in_channels=n) for n in (1, 3))
    assert parameters(colour) - parameters(grey) == 2 * 128 * 7 * 7


@pytest.mark.parametrize(("order", "kinds"), [("spatial_first", 0), ("channel_first", 1)])
def test_order_of_the_two_attentions(order: str, kinds: int) -> None:
    model = create_model("transdae", order=order, **SMALL)
    found = [type(module) for module in model.encoder.modules() if type(module) in ATTENTIONS]
    assert found[:2] == [ATTENTIONS[kinds], ATTENTIONS[1 - kinds]]
    assert ChannelAttention not in {type(module) for module in model.modules()}


ATTENTIONS = (SpatialReductionAttention, EfficientAttention)


def test_parallel_sum_adds_both_attentions_of_the_same_features() -> None:
    torch.manual_seed(0)
    model = create_model("transdae", order="parallel_sum", **SMALL)
    block = model.encoder.stages[0][1]
    x = torch.randn(1, 8, 16, 16)
    added = x + block.attentions[0](x) + block.attentions[1](x)
    torch.testing.assert_close(block(x), added + block.ffns[0](added))
    assert len([m for m in block.modules() if isinstance(m, MixFFN)]) == 1


def test_the_encoder_gives_features_of_three_scales() -> None:
    model = create_model("transdae", in_channels=2, **SMALL)
    features = model.encoder(torch.randn(1, 2, 64, 32))
    assert [tuple(x.shape[1:]) for x in features] == [(8, 16, 8), (16, 8, 4), (16, 4, 2)]


def test_the_divisor_follows_the_reductions() -> None:
    with without_memory():
        assert create_model("transdae").divisor == (32, 32)
        assert create_model("transdae", reductions=(4, 2, 1), spatial_dims=3).divisor == (16, 16, 16)
        assert create_model("transdae", reductions=(3, 1, 1)).divisor == (48, 48)
        assert create_model("dae_former").divisor == (16, 16)


def test_inter_scale_skip_reaches_23_voxels_along_every_axis() -> None:
    torch.manual_seed(0)
    merge = MERGES.build("inter_scale", spatial_dims=2, skip_channels=3, decoder_channels=3)
    skip, decoder = torch.randn(2, 1, 3, 41, 41)
    skip.requires_grad_()
    (gradient,) = torch.autograd.grad(merge(skip, decoder)[0, 0, 20, 20], skip)
    reached = gradient[0].any(dim=0).nonzero()
    assert reached.amin(0).tolist() == [9, 9]
    assert reached.amax(0).tolist() == [31, 31]
    assert len(reached) == 23 * 23


def test_inter_scale_gate_of_zero_passes_the_fused_features() -> None:
    merge = MERGES.build("inter_scale", spatial_dims=2, skip_channels=2, decoder_channels=4)
    nn.init.zeros_(merge.gate[-1].weight)
    nn.init.zeros_(merge.gate[-1].bias)
    skip, decoder = torch.randn(1, 2, 5, 5), torch.randn(1, 4, 5, 5)
    torch.testing.assert_close(merge(skip, decoder), merge.fuse(torch.cat((decoder, skip), dim=1)))


def test_cross_attention_takes_values_from_the_decoder_and_places_from_the_skip() -> None:
    torch.manual_seed(0)
    merge = MERGES.build("cross_attention", spatial_dims=2, skip_channels=4, decoder_channels=4)
    nn.init.zeros_(merge.ffn.narrow.weight)
    nn.init.zeros_(merge.ffn.narrow.bias)
    skip, decoder = torch.randn(2, 1, 4, 3, 3)
    where, what = (merge.norm(x).flatten(2).mT for x in (skip, decoder))
    matrix = where.softmax(2) @ where.softmax(1).mT
    attended = merge.project((matrix @ what).mT.unflatten(2, (3, 3)))
    expected = torch.cat((decoder, skip), dim=1) + merge.project_norm(attended)
    torch.testing.assert_close(merge(skip, decoder), expected)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("transdae", {"order": "spatial"}, "did you mean 'spatial_first'"),
        ("transdae", {"widths": (8, 16)}, "needs 3 whole numbers"),
        ("transdae", {"widths": (9, 16, 16)}, "must be even"),
        ("transdae", {"num_heads": (2, 5)}, "num_heads is"),
        ("transdae", {"num_heads": 3}, "128 channels cannot be divided among 3"),
        ("transdae", {"skip": "inter_scal"}, "did you mean 'inter_scale'"),
        ("dae_former", {"spatial_dims": 4}, "must be 2 or 3"),
        ("dae_former", {"blocks_per_stage": (2, 2, 0)}, "at least 1"),
    ],
)
def test_wrong_arguments_are_named(name: str, arguments: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        create_model(name, **arguments)


def test_cross_attention_refuses_unequal_channels() -> None:
    with pytest.raises(UsageError, match="equal channels, not 2 and 3"):
        MERGES.build("cross_attention", spatial_dims=2, skip_channels=2, decoder_channels=3)

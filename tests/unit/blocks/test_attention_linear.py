"""Attention that is linear in tokens or channels: definitions, identities, equivariance, counts of its parts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import layer_norm, scaled_dot_product_attention

from medseg.blocks.attention.channel import ChannelAttention
from medseg.blocks.attention.efficient import EfficientAttention, efficient_attention
from medseg.blocks.attention.mix_ffn import MixFFN
from medseg.blocks.attention.overlap import OverlapPatchEmbed
from medseg.blocks.attention.patch import ImageExpand
from medseg.blocks.attention.spatial_reduction import SpatialReductionAttention
from medseg.blocks.attention.tokens import ChannelNorm, to_image, to_tokens
from medseg.device import without_memory
from medseg.errors import UsageError
from medseg.models.transdae import DualBlock

sizes = st.integers(1, 7)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@settings(max_examples=20, deadline=None)
@given(n=sizes, m=sizes, c=sizes, d=sizes, seed=st.integers(0, 99))
def test_efficient_attention_is_attention_with_a_matrix_of_rows_that_sum_to_one(n, m, c, d, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (
        torch.randn(2, rows, columns, generator=generator, dtype=torch.float64)
        for rows, columns in ((n, c), (m, c), (m, d))
    )
    matrix = query.softmax(-1) @ key.softmax(-2).mT
    torch.testing.assert_close(matrix.sum(-1), torch.ones(2, n, dtype=torch.float64))
    torch.testing.assert_close(efficient_attention(query, key, value), matrix @ value)


def test_efficient_attention_equals_its_definition() -> None:
    torch.manual_seed(0)
    attention, image = EfficientAttention(6, heads=2), torch.randn(2, 6, 3, 5)
    tokens = image.reshape(2, 6, 15).mT
    query, key, value = attention.qkv(tokens).chunk(3, dim=-1)
    heads = [
        query[..., part].softmax(2) @ (key[..., part].softmax(1).mT @ value[..., part])
        for part in (slice(0, 3), slice(3, 6))
    ]
    expected = attention.project(torch.cat(heads, dim=-1)).mT.reshape(2, 6, 3, 5)
    torch.testing.assert_close(attention(image), expected)


def test_channel_attention_equals_its_definition() -> None:
    torch.manual_seed(0)
    attention, image = ChannelAttention(6, heads=2), torch.randn(2, 6, 3, 5)
    attention.temperature.data = torch.tensor([0.5, 3.0]).reshape(2, 1, 1)
    tokens = image.flatten(2).mT
    heads = []
    for head, temperature in enumerate((0.5, 3.0)):
        query, key, value = (
            part[..., 3 * head : 3 * head + 3].mT for part in attention.qkv(tokens).chunk(3, dim=-1)
        )  # (B, channels, tokens)
        query, key = (part / part.norm(dim=2, keepdim=True) for part in (query, key))
        heads.append((temperature * query @ key.mT).softmax(-1) @ value)
    expected = attention.project(torch.cat(heads, dim=1).mT).mT.reshape(2, 6, 3, 5)
    torch.testing.assert_close(attention(image), expected)


@pytest.mark.parametrize("make", [lambda: EfficientAttention(8), lambda: ChannelAttention(8, heads=2)])
def test_permuted_tokens_give_permuted_results(make) -> None:
    torch.manual_seed(0)
    attention, image, order = make().double(), torch.randn(2, 8, 4, 3, dtype=torch.float64), torch.randperm(12)
    permuted = image.flatten(2)[..., order].unflatten(2, (4, 3))
    expected = attention(image).flatten(2)[..., order].unflatten(2, (4, 3))
    torch.testing.assert_close(attention(permuted), expected)
    assert not torch.allclose(attention(image), expected), "the permutation changes nothing: the test is blind"


def test_spatial_reduction_of_one_is_self_attention() -> None:
    torch.manual_seed(0)
    attention, image = SpatialReductionAttention(2, 8, heads=2, reduction=1), torch.randn(2, 8, 3, 4)
    tokens = image.flatten(2).mT
    query, key, value = (
        part.reshape(2, 12, 2, 4).transpose(1, 2)
        for part in (attention.query(tokens), *attention.key_value(tokens).chunk(2, dim=-1))
    )
    attended = scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(2, 12, 8)
    torch.testing.assert_close(attention(image), attention.project(attended).mT.reshape(2, 8, 3, 4))


def test_spatial_reduction_attends_to_the_coarse_grid() -> None:
    torch.manual_seed(0)
    attention, image = SpatialReductionAttention(2, 8, heads=2, reduction=4), torch.randn(2, 8, 8, 12)
    coarse = layer_norm(attention.reduce[0](image).flatten(2).mT, (8,))
    assert coarse.shape == (2, 6, 8)
    query = attention.query(image.flatten(2).mT).reshape(2, 96, 2, 4).transpose(1, 2)
    key, value = (part.reshape(2, 6, 2, 4).transpose(1, 2) for part in attention.key_value(coarse).chunk(2, dim=-1))
    attended = ((query @ key.mT) / 2).softmax(-1) @ value
    expected = attention.project(attended.transpose(1, 2).reshape(2, 96, 8)).mT.reshape(2, 8, 8, 12)
    torch.testing.assert_close(attention(image), expected)


@pytest.mark.parametrize(
    ("channels", "efficient", "channel", "ffn", "block"),
    [
        (128, 66_048, 65_672, 139_904, 412_552),
        (320, 410_880, 409_928, 841_280, 2_505_928),
        (512, 1_050_624, 1_049_096, 2_132_480, 6_368_776),
    ],
)
def test_parts_have_the_counts_of_the_official_code(channels, efficient, channel, ffn, block) -> None:
    unused = 16 * channels  # two layer norms of 4 C that each of its feed-forwards owns and never calls
    with without_memory():
        pair = [EfficientAttention(channels), ChannelAttention(channels)]
        assert [parameters(part) for part in pair] == [efficient, channel]
        assert parameters(MixFFN(2, channels, 4 * channels)) + unused == ffn
        assert parameters(DualBlock(2, channels, pair)) + 2 * unused == block


def test_tokens_of_a_channels_last_image_are_a_view() -> None:
    image = torch.randn(2, 4, 3, 5).to(memory_format=torch.channels_last)
    tokens = to_tokens(image)
    assert tokens.data_ptr() == image.data_ptr()
    assert tokens.is_contiguous()
    back = to_image(tokens, (3, 5))
    assert torch.equal(back, image)
    assert back.data_ptr() == image.data_ptr()
    assert back.is_contiguous(memory_format=torch.channels_last)


def test_channel_norm_is_a_layer_norm_of_each_voxel() -> None:
    image = torch.randn(2, 4, 3, 5, 2)
    out = ChannelNorm(4)(image)
    torch.testing.assert_close(out.mean(1), torch.zeros(2, 3, 5, 2), atol=1e-5, rtol=0)
    torch.testing.assert_close(out[1, :, 2, 0, 1], layer_norm(image[1, :, 2, 0, 1], (4,)))


@pytest.mark.parametrize("dims", [2, 3])
def test_expanded_patches_lie_where_their_voxel_was(dims: int) -> None:
    expand = ImageExpand(6, 3, factor=2, spatial_dims=dims)
    image = torch.randn(2, 6, *(2, 3, 4)[:dims])
    out = expand(image)
    assert out.shape == (2, 3, *(2 * n for n in image.shape[2:]))
    place = (1,) * dims
    part = expand.expand(image[(0, slice(None), *place)]).reshape(2**dims, 3)[-1]  # the last corner of that voxel
    torch.testing.assert_close(out[(0, slice(None), *(3,) * dims)], layer_norm(part, (3,)))


def test_patches_overlap() -> None:
    image = torch.randn(1, 1, 16, 16, requires_grad=True)
    out = OverlapPatchEmbed(2, 1, 4, kernel=7, stride=4)(image)
    assert out.shape == (1, 4, 4, 4)
    (gradient,) = torch.autograd.grad(out[0, 0, 1, 1], image)
    assert gradient[0, 0].nonzero().aminmax(dim=0).min.tolist() == [1, 1]
    assert gradient[0, 0].nonzero().aminmax(dim=0).max.tolist() == [7, 7]


def test_heads_must_divide_the_channels() -> None:
    with pytest.raises(UsageError, match="6 channels cannot be divided among 4"):
        ChannelAttention(6, heads=4)

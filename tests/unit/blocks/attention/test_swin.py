"""Swin's blocks: equal to timm's and torchvision's on tied weights, and to themselves with padding, maps and guides."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from medseg.blocks.attention.attend import attend, attend_with_map, split
from medseg.blocks.attention.partition import make_windows, pick
from medseg.blocks.attention.patch import PatchEmbed, PatchExpand, PatchMerging
from medseg.blocks.attention.swin import SwinBlock
from medseg.blocks.attention.window import WindowAttention
from medseg.errors import UsageError

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_seed() -> None:
    torch.manual_seed(0)


def shuffled(module: nn.Module) -> nn.Module:
    """Weights that leave nothing zero, one or constant."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


@pytest.mark.parametrize("shift", [0, 3])
@pytest.mark.parametrize("size", [(14, 21), (7, 7)])
def test_block_is_timms(shift: int, size: tuple[int, int]) -> None:
    from timm.models.swin_transformer import SwinTransformerBlock

    theirs = shuffled(SwinTransformerBlock(24, size, num_heads=3, window_size=7, shift_size=shift))
    mine = SwinBlock(24, num_heads=3, window_size=7, shift=shift)
    mine.load_state_dict(theirs.state_dict())
    x = torch.randn(2, *size, 24)
    torch.testing.assert_close(mine(x), theirs(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("window", "shift"), [(7, 0), (7, 3), (4, 1), (2, 1)])
def test_attention_is_torchvisions(window: int, shift: int) -> None:
    from torchvision.models.swin_transformer import ShiftedWindowAttention

    theirs = shuffled(ShiftedWindowAttention(24, [window] * 2, [shift] * 2, num_heads=3))
    mine = WindowAttention(24, num_heads=3, window_size=window, shift=shift)
    mine.load_state_dict({k: v for k, v in theirs.state_dict().items() if k != "relative_position_index"})
    x = torch.randn(2, 2 * window, 3 * window, 24)
    torch.testing.assert_close(mine(x), theirs(x), rtol=1e-4, atol=1e-4)


def test_merging_and_embedding_are_timms() -> None:
    from timm.layers import PatchEmbed as TimmEmbed
    from timm.models.swin_transformer import PatchMerging as TimmMerging

    theirs, mine = shuffled(TimmMerging(6)), PatchMerging(6)
    mine.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 4, 6, 6)
    torch.testing.assert_close(mine(x), theirs(x))
    embed = shuffled(TimmEmbed(16, 4, 3, 8, norm_layer=nn.LayerNorm, output_fmt="NHWC", strict_img_size=False))
    own = PatchEmbed(3, 8)
    own.load_state_dict(embed.state_dict())
    for layout in (torch.contiguous_format, torch.channels_last):
        image = torch.randn(2, 3, 16, 24).to(memory_format=layout)
        torch.testing.assert_close(own(image), embed(image))


@pytest.mark.parametrize(("factor", "out_channels"), [(2, 4), (4, 8)])
def test_expanding_places_each_group_of_channels_at_its_pixel(factor: int, out_channels: int) -> None:
    layer = shuffled(PatchExpand(8, out_channels, factor=factor))
    x = torch.randn(1, 2, 3, 8)
    out = layer(x)
    assert out.shape == (1, 2 * factor, 3 * factor, out_channels)
    first = (1 * factor + 1) * out_channels  # row 1, column 1 of the token's square
    expected = layer.norm(layer.expand(x)[0, 1, 2, first : first + out_channels])
    torch.testing.assert_close(out[0, factor + 1, 2 * factor + 1], expected)


def test_mask_of_window_4_shift_1() -> None:
    mask = make_windows((8, 8), 4, 1, CPU).mask
    assert mask is not None
    regions = torch.tensor([
        [[0] * 4] * 4, [[1, 1, 1, 2]] * 4, [[3] * 4] * 3 + [[6] * 4], [[4, 4, 4, 5]] * 3 + [[7, 7, 7, 8]]
    ]).flatten(1)  # fmt: skip
    assert torch.equal(mask == 0, regions[:, :, None] == regions[:, None, :])
    assert mask[mask != 0].isneginf().all()


def test_without_shift_and_padding_there_is_no_mask() -> None:
    assert make_windows((8, 12), 4, 0, CPU).mask is None
    assert make_windows((4, 4), 4, 1, CPU).mask is None
    assert make_windows((8, 11), 4, 0, CPU).mask is not None


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 5), st.integers(0, 4))
def test_windows_are_a_roll_and_a_partition(height: int, width: int, window: int, shift: int) -> None:
    windows = make_windows((height, width), window, shift % window, CPU)
    x = torch.arange(1.0, height * width + 1).view(1, height, width)
    padded = nn.functional.pad(x, (0, -width % window, 0, -height % window))
    steps = [-(shift % window) if length > window else 0 for length in (height, width)]
    rolled = padded.roll(steps, (1, 2))[0]
    expected = torch.cat([part for row in rolled.split(window) for part in map(torch.ravel, row.split(window, 1))])
    picked = pick(x.view(1, -1, 1), windows.into, windows.back).flatten()
    if windows.padding is not None:
        assert torch.equal(expected == 0, windows.padding.flatten())
        picked = picked.masked_fill(windows.padding.flatten(), 0)
    assert torch.equal(picked, expected)
    back = pick(picked.view(1, -1, 1), windows.back, windows.into, windows.padding)
    assert torch.equal(back.view(1, height, width), x)


@pytest.mark.parametrize("size", [(8, 8), (7, 10)])
def test_gradient_of_picking_is_that_of_indexing(size: tuple[int, int]) -> None:
    windows = make_windows(size, 4, 1, CPU)
    x = torch.randn(2, size[0] * size[1], 3, requires_grad=True)
    there = torch.randn(2, len(windows.into), 3)
    if windows.padding is not None:
        there.masked_fill_(windows.padding, 0)
    (mine,) = torch.autograd.grad(pick(x, windows.into, windows.back), x, there)
    (theirs,) = torch.autograd.grad(x[:, windows.into], x, there)
    torch.testing.assert_close(mine, theirs)
    y = torch.randn(2, len(windows.into), 3, requires_grad=True)
    (mine,) = torch.autograd.grad(pick(y, windows.back, windows.into, windows.padding), y, x.detach())
    (theirs,) = torch.autograd.grad(y[:, windows.back], y, x.detach())
    torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("windows", [1, 3])
@pytest.mark.parametrize("guided", [False, True])
def test_training_form_of_attention_has_the_plain_forms_gradients(windows: int, guided: bool) -> None:
    qkv = torch.randn(2, 3, 4, 3, 2, 5, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(windows, 2, 4, 4, dtype=torch.float64)
    bias[-1, :, 0, 1] = -torch.inf
    bias.requires_grad_()
    guide = torch.rand(2, 3, 2, 4, 4, dtype=torch.float64, requires_grad=True) if guided else None
    inputs = [tensor for tensor in (qkv, bias, guide) if tensor is not None]
    q, k, v = split(qkv)
    weights = (q @ k.transpose(-2, -1) / 5**0.5 + bias).softmax(-1)
    plain = (weights if guide is None else weights + guide) @ v
    with torch.no_grad():
        torch.testing.assert_close(attend(qkv, bias, guide), plain)
        torch.testing.assert_close(attend_with_map(qkv, bias)[1], weights)
    torch.testing.assert_close(attend(qkv, bias, guide), plain)
    for mine, theirs in zip(gradients(attend(qkv, bias, guide), inputs), gradients(plain, inputs), strict=True):
        torch.testing.assert_close(mine, theirs)
    if guide is None:
        out, own = attend_with_map(qkv, bias)
        for mine, theirs in ((own, weights), (torch.cat((out, own), -1), torch.cat((plain, weights), -1))):
            for a, b in zip(gradients(mine, inputs), gradients(theirs, inputs), strict=True):
                torch.testing.assert_close(a, b)


def gradients(out: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    """Of a loss that weights every element differently."""
    weights = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(1))
    return torch.autograd.grad((out * weights).sum(), inputs, retain_graph=True)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([(3, 0), (3, 1), (4, 1), (4, 2)]))
def test_any_size_is_attention_among_the_real_tokens_of_a_window(
    height: int, width: int, settings: tuple[int, int]
) -> None:
    window, shift = settings
    layer = shuffled(WindowAttention(6, num_heads=2, window_size=window, shift=shift))
    x = torch.randn(1, height, width, 6)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), by_pairs(layer, x), rtol=1e-4, atol=1e-4)


def by_pairs(layer: WindowAttention, x: Tensor) -> Tensor:
    """Attention with the rule written out: each token looks at those that share its window of the shifted grid."""
    window, heads = layer.window_size, layer.num_heads
    _, height, width, channels = x.shape
    shift = [layer.shift if length > window else 0 for length in (height, width)]
    places = [(i, j) for i in range(height) for j in range(width)]
    q, k, v = layer.qkv(x[0]).view(height, width, 3, heads, -1).unbind(2)
    out = torch.zeros(height, width, heads, channels // heads)
    for i, j in places:
        home = ((i - shift[0]) // window, (j - shift[1]) // window)
        others = [(a, b) for a, b in places if ((a - shift[0]) // window, (b - shift[1]) // window) == home]
        rows = [(i - a + window - 1) * (2 * window - 1) + j - b + window - 1 for a, b in others]
        keys, values = (torch.stack([t[place] for place in others]) for t in (k, v))
        scores = torch.einsum("hd,nhd->nh", q[i, j], keys) * (channels // heads) ** -0.5
        weights = (scores + layer.relative_position_bias_table[rows]).softmax(0)
        out[i, j] = torch.einsum("nh,nhd->hd", weights, values)
    return layer.proj(out.flatten(2))[None]


@pytest.mark.parametrize(("size", "shift"), [((8, 8), 0), ((8, 12), 1), ((6, 7), 1)])
def test_map_and_guide(size: tuple[int, int], shift: int) -> None:
    source, layer = (shuffled(SwinBlock(8, num_heads=2, window_size=4, shift=shift)) for _ in range(2))
    x = torch.randn(2, *size, 8)
    out, own = layer.with_map(x)
    torch.testing.assert_close(out, layer(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(own.sum(-1), torch.ones(own.shape[:-1]))
    guide = source.with_map(x)[1]
    assert torch.equal(layer(x, torch.zeros_like(guide)), layer(x))
    for operation in ("add", "mul"):
        guided = layer(x, guide, operation=operation)
        assert not torch.allclose(guided, layer(x), atol=1e-3)
        assert not torch.allclose(guided, layer(x, guide, operation=operation, renormalise=True), atol=1e-3)
    torch.testing.assert_close(layer(x, own, renormalise=True), out, rtol=1e-4, atol=1e-5)
    uniform = torch.full_like(own, 0.3)
    torch.testing.assert_close(layer(x, uniform, operation="mul", renormalise=True), out, rtol=1e-4, atol=1e-5)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(UsageError, match="10 channels cannot be divided among 3 heads"):
        WindowAttention(10, num_heads=3)
    with pytest.raises(UsageError, match="shift is 4"):
        WindowAttention(8, num_heads=2, window_size=4, shift=4)
    layer, x = WindowAttention(8, num_heads=2, window_size=4), torch.zeros(1, 4, 4, 8)
    with pytest.raises(UsageError, match="did you mean 'mul'"):
        layer(x, layer.with_map(x)[1], operation="mull")


def test_the_mask_outlives_inference_mode() -> None:
    layer, x = WindowAttention(8, num_heads=2, window_size=4, shift=2), torch.randn(1, 20, 20, 8)
    with torch.inference_mode():
        layer(x)
    layer(x).sum().backward()
    assert layer.relative_position_bias_table.grad is not None


def test_shifting_and_dropping_hold_no_state() -> None:
    block = SwinBlock(8, num_heads=2, window_size=4, shift=2, drop_path=0.5)
    assert not [name for name in block.state_dict() if "mask" in name or "index" in name]
    x = torch.randn(64, 4, 4, 8)
    kept = (block.train()(x) - x).flatten(1).any(1)
    assert 0 < kept.sum() < 64
    assert (block.eval()(x) - x).flatten(1).any(1).all()

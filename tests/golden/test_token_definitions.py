"""Transformers and the graph network against their definitions: windows, shifts, masks, softmaxes, order, sampling."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from medseg.models import MODELS, create_model

Check = Callable[..., None]
W = Any  # the Weights of conftest; tokens are (B, H, W, C) unless said otherwise


def linear(w: W, x: Tensor) -> Tensor:
    weight, bias = w["weight"].flatten(1), w.get("bias")
    return x @ weight.T if bias is None else x @ weight.T + bias


def layer(w: W, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w["weight"] + w["bias"]


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / 2**0.5))


def last(image: Tensor) -> Tensor:
    return image.permute(0, 2, 3, 1)


def first(tokens: Tensor) -> Tensor:
    return tokens.permute(0, 3, 1, 2)


def conv(w: W, x: Tensor, stride: int = 1, groups: int = 1, dilation: int = 1) -> Tensor:
    """Of tokens, padded to keep the size."""
    pad = w["weight"].shape[-1] // 2 * dilation
    return last(F.conv2d(first(x), w["weight"], w.get("bias"), stride, pad, dilation, groups))


def heads_of(x: Tensor, heads: int) -> Tensor:
    """(..., N, C) -> (..., heads, N, C / heads)."""
    return x.unflatten(-1, (heads, -1)).transpose(-3, -2)


# --- Swin ------------------------------------------------------------------------------------------------------------


def window_attention(
    w: W, x: Tensor, heads: int, size: int, shift: int, guides: list[Tensor] | None = None
) -> tuple[Tensor, list[Tensor]]:
    """softmax(q k / sqrt(d) + B [+ mask]) v of every window, one after the other; the map moved up and left by `shift`.

    Tokens that the cyclic move brings together from different sides of the map do not see each other. A guide is
    another layer's attention of the same window, added before the values are weighted.
    """
    height, width, channels = x.shape[1:]
    moves = [0 if length <= size else shift for length in (height, width)]  # one window: nothing to move
    out, maps = torch.zeros_like(x), []
    inside = [(a, b) for a in range(size) for b in range(size)]
    bias = torch.stack(
        [
            w["relative_position_bias_table"][(a - c + size - 1) * (2 * size - 1) + b - d + size - 1]
            for a, b in inside
            for c, d in inside
        ]
    )
    bias = bias.view(size**2, size**2, heads).permute(2, 0, 1)

    def side(place: int, length: int, move: int) -> int:
        return 0 if not move or place < length - size else 1 if place < length - move else 2

    for top in range(0, height, size):
        for left in range(0, width, size):
            moved = [(top + a, left + b) for a, b in inside]
            rows, columns = ([(p[i] + moves[i]) % (height, width)[i] for p in moved] for i in (0, 1))
            sides = [(side(p[0], height, moves[0]), side(p[1], width, moves[1])) for p in moved]
            apart = torch.tensor([[a != b for b in sides] for a in sides])
            tokens = x[:, rows, columns]  # (B, N, C)
            q, k, v = (heads_of(part, heads) for part in linear(w.at("qkv"), tokens).split(channels, -1))
            scores = q @ k.transpose(-2, -1) / (channels / heads) ** 0.5 + bias
            attention = scores.masked_fill(apart, -torch.inf).softmax(-1)
            maps.append(attention)
            if guides is not None:
                attention = attention + guides[len(maps) - 1]
            out[:, rows, columns] = linear(w.at("proj"), (attention @ v).transpose(1, 2).flatten(2))
    return out, maps


def swin_block(w: W, x: Tensor, heads: int, size: int, shift: int, guides: Any = None) -> tuple[Tensor, list[Tensor]]:
    attended, maps = window_attention(w.at("attn"), layer(w.at("norm1"), x), heads, size, shift, guides)
    x = x + attended
    return x + linear(w.at("mlp.fc2"), gelu(linear(w.at("mlp.fc1"), layer(w.at("norm2"), x)))), maps


def merged(x: Tensor) -> Tensor:
    return torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)


def expanded(w: W, x: Tensor, factor: int) -> Tensor:
    """'b h w (p1 p2 c) -> b (h p1) (w p2) c', then a layer norm."""
    wide = linear(w.at("expand"), x).unflatten(-1, (factor, factor, -1))
    return layer(w.at("norm"), wide.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(1, 2))


def cross_context(w: W, decoder: Tensor, skip: Tensor, replace: bool) -> Tensor:
    """The mean token of each side attends to itself and to the other side's tokens, twice, in turns."""
    sides = [side.flatten(1, 2) for side in (decoder, skip)]
    cls = [side.mean(1, keepdim=True) for side in sides]
    for number in (0, 1):
        for i, name in enumerate(("decoder_layers", "skip_layers")):
            part = w.at(name, number)
            own = layer(part.at("norm"), cls[i])
            seen = torch.cat([own, sides[1 - i][:, 1 if replace else 0 :]], 1)
            q = heads_of(linear(part.at("to_q"), own), 8)
            k, v = (heads_of(half, 8) for half in linear(part.at("to_kv"), seen).chunk(2, -1))
            attention = (q @ k.transpose(-2, -1) / 64**0.5).softmax(-1)
            cls[i] = cls[i] + linear(part.at("to_out"), (attention @ v).transpose(1, 2).flatten(2))
    if replace:
        sides = [torch.cat([c, side[:, 1:]], 1) for c, side in zip(cls, sides, strict=True)]
    else:
        sides = [side + c for c, side in zip(cls, sides, strict=True)]
    return torch.cat(sides, -1).view(*decoder.shape[:3], -1)


def att_swin_unet(w: W, image: Tensor, mode: str, replace: bool, guided: bool, size: int = 2) -> Tensor:
    x = last(F.conv2d(image, w["encoder.patch_embed.proj.weight"], w["encoder.patch_embed.proj.bias"], 4))
    x = layer(w.at("encoder.patch_embed.norm"), x)
    inputs, maps = [], []
    for i in range(3):
        stage = w.at("encoder.layers", i)
        if i:
            x = linear(stage.at("downsample.reduction"), layer(stage.at("downsample.norm"), merged(x)))
        inputs.append(x)
        maps.append([])
        for b in (0, 1):
            x, seen = swin_block(stage.at("blocks", b), x, 2 * 2**i, size, b * size // 2)
            maps[-1].append(seen)
    x = layer(w.at("encoder.norm"), x)
    for i in (1, 0):
        stage, skip = w.at("decoder", i), inputs[i]
        x = expanded(stage.at("expand"), x, 2)
        joined = (
            torch.cat([x, skip], -1) if mode == "swin" else cross_context(w.at("skips.merges", i), x, skip, replace)
        )
        x = linear(stage.at("fuse"), joined)
        for b in (0, 1):
            guides = maps[i][b] if guided else None
            x, _ = swin_block(stage.at("blocks", b), x, 2 * 2**i, size, b * size // 2, guides)
    return first(linear(w.at("head"), expanded(w.at("expand"), layer(w.at("norm"), x), 4)))


@pytest.mark.parametrize(
    ("mode", "cls_mode", "noop"),
    [("cross", "add", False), ("cross", "replace_first", False), ("cross", "add", True), ("swin", "add", False)],
)
def test_att_swin_unet(assert_defined: Check, mode: str, cls_mode: str, noop: bool) -> None:
    model = create_model(
        "att_swin_unet", in_channels=2, out_channels=3, embed_dim=8, depths=(2, 2, 2), num_heads=2, window_size=2,
        drop_path=0.0, mode=mode, cls_mode=cls_mode, official_noop=noop,
    )  # fmt: skip
    define = partial(att_swin_unet, mode=mode, replace=cls_mode == "replace_first", guided=mode == "cross" and not noop)
    name = f"att_swin_unet {mode} {cls_mode}{' noop' if noop else ''}"
    assert_defined(name, model, define, 2, 2, 32, 64)


def barlow_swin(w: W, image: Tensor) -> Tensor:
    """Windows of 4, shift 1; no norm of patches, in mergings or at the end; batch norms of eps 1e-3."""

    def norm(w: W, x: Tensor) -> Tensor:
        return (x - w["running_mean"]) / (w["running_var"] + 1e-3).sqrt() * w["weight"] + w["bias"]

    def separable(w: W, number: int, x: Tensor) -> Tensor:
        x = conv(w.at(number), x, groups=x.shape[-1])
        return norm(w.at(number + 2), linear(w.at(number + 1), x)).relu()

    x = last(F.conv2d(image, w["encoder.patch_embed.proj.weight"], w["encoder.patch_embed.proj.bias"], 4))
    x, skips = x + w["encoder.position"], []
    for i in range(3):
        stage = w.at("encoder.stages", i)
        x = linear(stage.at("0.reduction"), merged(x)) if i else x
        for b in (0, 1):
            x, _ = swin_block(stage.at(b + (i > 0)), x, 2, 4, b)
        skips.append(x)
    for i in range(4):
        x = x.repeat_interleave(2, 1).repeat_interleave(2, 2)
        x = torch.cat([x, skips[1 - i]], -1) if i < 2 else x
        block = w.at("decoder", i)
        main = separable(block.at("main"), 4, separable(block.at("main"), 0, x))
        x = main + norm(block.at("shortcut", 1), linear(block.at("shortcut", 0), x))
    return first(norm(w.at("head", 1), linear(w.at("head", 0), x)))


def test_barlow_swin(assert_defined: Check) -> None:
    model = create_model(
        "barlow_swin", in_channels=2, out_channels=3, embed_dim=8, num_heads=2, decoder_channels=(8, 8, 4, 4),
        image_size=(64, 128),
    )  # fmt: skip
    assert_defined("barlow_swin", model, barlow_swin, 1, 2, 64, 128)


# --- dual attention --------------------------------------------------------------------------------------------------


def mix_ffn(w: W, x: Tensor) -> Tensor:
    u = linear(w.at("widen"), x)
    return linear(w.at("narrow"), gelu(layer(w.at("norm"), conv(w.at("depthwise"), u, groups=u.shape[-1]) + u)))


def efficient(w: W, x: Tensor) -> Tensor:
    """rho_q(Q) rho_k(K)^T V as written, with the N x N matrix."""
    q, k, v = linear(w.at("qkv"), x).flatten(1, 2).chunk(3, -1)
    attention = q.softmax(-1) @ k.softmax(1).transpose(1, 2)
    return linear(w.at("project"), (attention @ v).view(x.shape))


def channel(w: W, x: Tensor, heads: int = 2) -> Tensor:
    """softmax(tau Q^ K^^T) V between the channels of a head, Q^ and K^ of unit length along the tokens."""
    q, k, v = (
        part.flatten(1, 2).transpose(1, 2).unflatten(1, (heads, -1)) for part in linear(w.at("qkv"), x).chunk(3, -1)
    )  # (B, heads, C / heads, N)
    q, k = (part / part.square().sum(-1, keepdim=True).sqrt() for part in (q, k))
    attention = (w["temperature"] * (q @ k.transpose(-2, -1))).softmax(-1)
    return linear(w.at("project"), (attention @ v).flatten(1, 2).transpose(1, 2).reshape(x.shape))


def spatial(w: W, x: Tensor, heads: int = 2) -> Tensor:
    """Keys and values from a grid that a strided convolution made coarser."""
    seen = x
    if w.get("reduce.0.weight") is not None:
        weight = w["reduce.0.weight"]
        seen = last(F.conv2d(first(x), weight, w["reduce.0.bias"], weight.shape[-1]))
        seen = layer(w.at("reduce", 1), seen)
    q = heads_of(linear(w.at("query"), x.flatten(1, 2)), heads)
    k, v = (heads_of(half, heads) for half in linear(w.at("key_value"), seen.flatten(1, 2)).chunk(2, -1))
    attention = (q @ k.transpose(-2, -1) / (x.shape[-1] / heads) ** 0.5).softmax(-1)
    return linear(w.at("project"), (attention @ v).transpose(1, 2).flatten(2).view(x.shape))


def dual_block(w: W, x: Tensor, attentions: list[Any], parallel: bool) -> Tensor:
    if parallel:
        x = x + sum(f(w.at("attentions", i, 1), layer(w.at("attentions", i, 0), x)) for i, f in enumerate(attentions))
        return x + mix_ffn(w.at("ffns.0", 1), layer(w.at("ffns.0", 0), x))
    for i, attention in enumerate(attentions):
        x = x + attention(w.at("attentions", i, 1), layer(w.at("attentions", i, 0), x))
        x = x + mix_ffn(w.at("ffns", i, 1), layer(w.at("ffns", i, 0), x))
    return x


def skip_cross_attention(w: W, decoder: Tensor, skip: Tensor) -> Tensor:
    """Keys and queries of the encoder, values of the decoder, one norm for both; added to [decoder, skip]."""
    where, what = layer(w.at("norm"), skip).flatten(1, 2), layer(w.at("norm"), decoder).flatten(1, 2)
    attended = where.softmax(-1) @ where.softmax(1).transpose(1, 2) @ what
    x = torch.cat([decoder, skip], -1) + layer(w.at("project_norm"), linear(w.at("project"), attended.view(skip.shape)))
    return x + mix_ffn(w.at("ffn"), layer(w.at("ffn_norm"), x))


def inter_scale(w: W, decoder: Tensor, skip: Tensor) -> Tensor:
    fused = linear(w.at("fuse"), torch.cat([decoder, skip], -1))
    groups = fused.shape[-1]
    gate = conv(w.at("gate", 1), conv(w.at("gate", 0), fused, groups=groups), dilation=3, groups=groups)
    return fused + linear(w.at("gate", 2), gate) * fused


def dual_attention_unet(w: W, image: Tensor, attentions: list[Any], merge: Any, parallel: bool = False) -> Tensor:
    x, skips = last(image), []
    for i, stride in enumerate((4, 2, 2)):
        stage = w.at("encoder.stages", i)
        x = layer(stage.at("0.1"), conv(stage.at("0.0"), x, stride))
        x = layer(stage.at(2), dual_block(stage.at(1), x, attentions, parallel))
        skips.append(x)
    for number, level in enumerate((1, 0)):
        stage = w.at("decoder.stages", number)
        x = linear(stage.at("adapt"), expanded(w.at("decoder.expand", number), x, 2))
        x = linear(stage.at("narrow"), merge(w.at("skips.merges", level), x, skips[level]))
        x = dual_block(stage.at("blocks.0"), x, attentions, parallel)
    return first(linear(w.at("head"), expanded(w.at("decoder.expand.2"), x, 4)))


TINY: dict[str, Any] = {
    "in_channels": 2,
    "out_channels": 3,
    "widths": (8, 16, 16),
    "blocks_per_stage": 1,
    "num_heads": 2,
}


def test_dae_former(assert_defined: Check) -> None:
    define = partial(dual_attention_unet, attentions=[efficient, channel], merge=skip_cross_attention)
    assert_defined("dae_former", create_model("dae_former", **TINY), define, 2, 2, 32, 48)


@pytest.mark.parametrize("order", ["spatial_first", "channel_first", "parallel_sum"])
def test_transdae(assert_defined: Check, order: str) -> None:
    pair = [efficient, spatial] if order == "channel_first" else [spatial, efficient]
    define = partial(dual_attention_unet, attentions=pair, merge=inter_scale, parallel=order == "parallel_sum")
    model = create_model("transdae", **TINY, reductions=(4, 2, 1), order=order)
    assert_defined(f"transdae {order}", model, define, 2, 2, 32, 48)


# --- HybridGNet ------------------------------------------------------------------------------------------------------


def hybridgnet(w: W, image: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Encoder, mean of the latent vector, graph convolutions on the coarse and the full rings, two skips (6, 5)."""

    def batch(w: W, x: Tensor) -> Tensor:
        mean, variance, scale, shift = (
            w[key][:, None, None] for key in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (variance + 1e-5).sqrt() * scale + shift

    def block(w: W, x: Tensor) -> Tensor:
        hidden = F.conv2d(batch(w.at("norm1"), x).relu(), w["conv1.weight"], w["conv1.bias"], padding=1)
        hidden = F.conv2d(batch(w.at("norm2"), hidden).relu(), w["conv2.weight"], w["conv2.bias"], padding=1)
        if w.get("shortcut.0.weight") is not None:
            x = batch(w.at("shortcut.1"), F.conv2d(x, w["shortcut.0.weight"]))
        return (hidden + x).relu()

    def ring(sizes: list[int]) -> Tensor:
        """-1/2 to each neighbour on a ring of its own."""
        blocks = [-0.5 * (torch.eye(n).roll(1, 0) + torch.eye(n).roll(-1, 0)) for n in sizes]
        return torch.block_diag(*blocks).double()

    def cheb(w: W, x: Tensor, laplacian: Tensor) -> Tensor:
        terms = [x, laplacian @ x]
        while len(terms) < len(w["weight"]):
            terms.append(2 * laplacian @ terms[-1] - terms[-2])
        out = sum(t @ weight for t, weight in zip(terms, w["weight"], strict=False))
        return out if w.get("bias") is None else out + w["bias"]

    def normed(x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return (centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()).relu()

    def at(features: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Bilinear value of (C, h, w) at a place, as RoIAlign reads it: 0 beyond one pixel outside."""
        h, width = features.shape[1:]
        if not (-1 <= y <= h and -1 <= x <= width):
            return features.new_zeros(len(features))
        x, y = x.clamp(0, width - 1), y.clamp(0, h - 1)
        left, top = int(x), int(y)
        right, below = min(left + 1, width - 1), min(top + 1, h - 1)
        a, b = x - left, y - top
        upper = (1 - a) * features[:, top, left] + a * features[:, top, right]
        return (1 - b) * upper + b * ((1 - a) * features[:, below, left] + a * features[:, below, right])

    def look(w: W, x: Tensor, features: Tensor) -> Tensor:
        """Each node says where it lies, and gets the mean of 3 x 3 places about pixel p * size."""
        places, size = x @ w["position.weight"][0], features.shape[-1]
        window = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
        seen = [
            torch.stack([sum(at(f, px * size + i, py * size + j) for i, j in window) / 9 for px, py in points])
            for f, points in zip(features, places, strict=True)
        ]
        return torch.cat([x, torch.stack(seen), places], -1)

    maps: list[Tensor] = []
    for i in range(6):
        maps.append(block(w.at("encoder.blocks", i), F.max_pool2d(maps[-1], 2) if maps else image))
    latent = maps[-1].flatten(1) @ w["mean.weight"].T + w["mean.bias"]
    coarse, full = ring([-(-n // 2) for n in sizes]), ring(list(sizes))
    d, starts = w.at("decoder"), (0, -(-sizes[0] // 2))
    x = (latent @ d["linear.weight"].T + d["linear.bias"]).relu().view(len(image), len(coarse), -1)
    x = normed(cheb(d.at("convs.1"), normed(cheb(d.at("convs.0"), x, coarse)), coarse))
    x = normed(cheb(d.at("convs.2"), look(d.at("skips.0"), x, maps[5]), coarse))
    nodes = []
    for start, n in zip(starts, sizes, strict=True):
        for node in range(n):
            other = start + min((node + 1) // 2, -(-n // 2) - 1)
            nodes.append((x[:, start + node // 2] + x[:, other]) / 2)
    x = normed(cheb(d.at("convs.3"), torch.stack(nodes, 1), full))
    x = normed(cheb(d.at("convs.4"), look(d.at("skips.1"), x, maps[4]), full))
    return x @ d["position.weight"][0]


def test_hybridgnet(assert_defined: Check) -> None:
    model = create_model("hybridgnet", image_size=64, structures=(6, 5), base_channels=2, features=8, latent=6, terms=4)
    assert_defined("hybridgnet", model, partial(hybridgnet, sizes=(6, 5)), 2, 1, 64, 64)


def test_every_registered_network_has_a_definition(stored: dict[str, list[float]]) -> None:
    assert {name.split()[0] for name in stored} >= set(MODELS.names())

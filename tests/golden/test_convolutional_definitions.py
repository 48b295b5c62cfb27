"""Convolutional networks and blocks against their definitions: order of layers, padding, sampling, concatenation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medseg.blocks.dense import MultiDilatedDenseBlock
from medseg.blocks.skip import EDITS, MERGES, PYRAMID, SkipContext
from medseg.blocks.vovnet import OneShotAggregation
from medseg.models import create_model

CONVS = {4: F.conv2d, 5: F.conv3d}
POOLS = {4: F.max_pool2d, 5: F.max_pool3d}
AVERAGES = {4: F.avg_pool2d, 5: F.avg_pool3d}
Check = Callable[..., None]
W = Any  # the Weights of conftest


def conv(w: W, x: Tensor, stride: Any = 1, dilation: int = 1, groups: int = 1) -> Tensor:
    kernel = w["weight"].shape[-1]
    return CONVS[x.ndim](x, w["weight"], w.get("bias"), stride, kernel // 2 * dilation, dilation, groups)


def transposed(w: W, x: Tensor) -> Tensor:
    """Kernel = stride: each voxel becomes a block of its own."""
    weight, dims = w["weight"], x.ndim - 2
    blocks = torch.tensordot(x.movedim(1, -1), weight, dims=1)  # (B, *S, out, *K)
    axes = [axis for d in range(dims) for axis in (1 + d, 2 + dims + d)]
    out = blocks.permute(0, 1 + dims, *axes)
    out = out.reshape(*out.shape[:2], *(n * k for n, k in zip(x.shape[2:], weight.shape[2:], strict=True)))
    return out if w.get("bias") is None else out + shaped(w["bias"], x)


def shaped(values: Tensor, x: Tensor) -> Tensor:
    return values.view(1, -1, *[1] * (x.ndim - 2))


def affine(w: W, x: Tensor) -> Tensor:
    return x * shaped(w["weight"], x) + shaped(w["bias"], x)


def instance(w: W, x: Tensor) -> Tensor:
    axes = tuple(range(2, x.ndim))
    return affine(w, (x - x.mean(axes, keepdim=True)) / (x.var(axes, correction=0, keepdim=True) + 1e-5).sqrt())


def batch(w: W, x: Tensor, eps: float = 1e-5) -> Tensor:
    return affine(w, (x - shaped(w["running_mean"], x)) / (shaped(w["running_var"], x) + eps).sqrt())


def leaky(x: Tensor, slope: float = 0.01) -> Tensor:
    return torch.where(x > 0, x, slope * x)


def conv_norm_leaky(w: W, x: Tensor, stride: Any = 1) -> Tensor:
    return leaky(instance(w.at("norm"), conv(w.at("conv"), x, stride)))


def conv_batch_relu(w: W, x: Tensor, stride: Any = 1) -> Tensor:
    return batch(w.at("norm"), conv(w.at("conv"), x, stride)).relu()


def conv_relu(w: W, x: Tensor, stride: Any = 1) -> Tensor:
    return conv(w.at("conv"), x, stride).relu()


def residual(w: W, x: Tensor, stride: Any) -> Tensor:
    """nnU-Net's BasicBlock-D."""
    main = instance(w.at("norm"), conv(w.at("second"), conv_norm_leaky(w.at("first"), x, stride)))
    if w.get("shortcut.1.weight") is not None:
        x = instance(w.at("shortcut", 2), conv(w.at("shortcut", 1), AVERAGES[x.ndim](x, stride, stride)))
    return leaky(main + x)


def unet(w: W, x: Tensor, strides: Sequence[Any], layer: Any, blocks: Sequence[int], block: Any = None) -> Tensor:
    skips = []
    if block is not None:
        x = layer(w.at("encoder.stem", 0), x)
    for level, stride in enumerate(strides):
        for number in range(blocks[level]):
            step = stride if number == 0 else (1,) * len(stride)
            x = (block or layer)(w.at("encoder.stages", level, number), x, step)
        skips.append(x)
    for level in reversed(range(len(strides) - 1)):
        x = torch.cat([transposed(w.at("decoder.up", level), x), skips[level]], 1)
        for number in range(1 if block else 2):
            x = layer(w.at("decoder.stages", level, number), x)
    return conv(w.at("heads", 0), x)


def steps(dims: int) -> list[tuple[int, ...]]:
    return [(1,) * dims, (2,) * dims, (2, 1, 2)[:dims]]


@pytest.mark.parametrize("dims", [2, 3])
def test_unet(assert_defined: Check, dims: int) -> None:
    model = create_model("unet", spatial_dims=dims, in_channels=2, out_channels=3, base_channels=4, strides=steps(dims))
    define = partial(unet, strides=steps(dims), layer=conv_norm_leaky, blocks=[2, 2, 2])
    assert_defined(f"unet {dims}D", model, define, 2, 2, *(12, 8, 4)[:dims])


@pytest.mark.parametrize("dims", [2, 3])
def test_unet_with_a_residual_encoder(assert_defined: Check, dims: int) -> None:
    model = create_model(
        "unet_resenc", spatial_dims=dims, in_channels=2, out_channels=3, base_channels=4, strides=steps(dims)
    )
    define = partial(unet, strides=steps(dims), layer=conv_norm_leaky, blocks=[1, 3, 4], block=residual)
    assert_defined(f"unet_resenc {dims}D", model, define, 2, 2, *(12, 8, 4)[:dims])


@pytest.mark.parametrize("name", ["unet_classic", "unet_wide"])
def test_unets_of_the_unetpp_paper(assert_defined: Check, name: str) -> None:
    def define(w: W, x: Tensor) -> Tensor:
        x0 = conv_relu(w.at("encoder.stages", 0, 1), conv_relu(w.at("encoder.stages", 0, 0), x))
        x1 = F.max_pool2d(x0, 2)
        x1 = conv_relu(w.at("encoder.stages", 1, 2), conv_relu(w.at("encoder.stages", 1, 1), x1))
        x = torch.cat([transposed(w.at("decoder.up", 0), x1), x0], 1)
        return conv(w.at("heads", 0), conv_relu(w.at("decoder.stages.0", 1), conv_relu(w.at("decoder.stages.0", 0), x)))

    narrow = {} if name == "unet_wide" else {"base_channels": 4}
    model = create_model(name, in_channels=2, out_channels=3, strides=[1, 2], **narrow)
    assert_defined(name, model, define, 2, 2, 8, 6)


def unetpp(w: W, x: Tensor, up: Any, layer: Any, pool: bool, depth: int = 2) -> Tensor:
    """X^{i,j} = H([Up(X^{i+1,j-1}), X^{i,0}, ..., X^{i,j-1}]), the head of X^{0,depth}."""
    nodes: dict[tuple[int, int], Tensor] = {}
    for i in range(depth + 1):
        shift, step = (1, 1) if pool and i else (0, 1 if pool or i == 0 else 2)
        x = POOLS[x.ndim](x, 2) if shift else x
        x = layer(w.at(f"nodes.{i}_0", shift + 1), layer(w.at(f"nodes.{i}_0", shift), x, step))
        nodes[i, 0] = x
    for j in range(1, depth + 1):
        for i in range(depth + 1 - j):
            x = torch.cat([up(w.at(f"ups.{i}_{j}"), nodes[i + 1, j - 1]), *(nodes[i, k] for k in range(j))], 1)
            nodes[i, j] = layer(w.at(f"nodes.{i}_{j}", 1), layer(w.at(f"nodes.{i}_{j}", 0), x))
    return conv(w.at("heads", depth), nodes[0, depth])


def bilinear(w: W, x: Tensor) -> Tensor:
    """Twice the size, corners on corners, by the weights of each row and column."""
    for axis in (2, 3):
        n = x.shape[axis]
        place = torch.arange(2 * n, dtype=torch.float64) * (n - 1) / (2 * n - 1)
        hat = (1 - (place[:, None] - torch.arange(n)).abs()).clamp(min=0)  # (2n, n)
        x = torch.tensordot(x, hat, dims=([axis], [1])).movedim(-1, axis)
    return x


@pytest.mark.parametrize(
    ("name", "up", "layer", "pool", "dims"),
    [
        ("unetpp", transposed, conv_relu, True, 2),
        ("unetpp", transposed, conv_relu, True, 3),
        ("unetpp_batchnorm", bilinear, conv_batch_relu, True, 2),
        ("unetpp_nnunet", transposed, conv_norm_leaky, False, 2),
        ("unetpp_nnunet", transposed, conv_norm_leaky, False, 3),
    ],
)
def test_unetpp(assert_defined: Check, name: str, up: Any, layer: Any, pool: bool, dims: int) -> None:
    model = create_model(name, spatial_dims=dims, in_channels=2, out_channels=3, base_channels=4, depth=2)
    assert_defined(f"{name} {dims}D", model, partial(unetpp, up=up, layer=layer, pool=pool), 2, 2, *(12, 8, 4)[:dims])


@pytest.mark.parametrize("dims", [2, 3])
def test_residual_unet(assert_defined: Check, dims: int) -> None:
    def layer(w: W, number: int, x: Tensor, stride: Any = 1) -> Tensor:
        return leaky(instance(w.at(number + 1), conv(w.at(number), x, stride)), 0.3)

    def define(w: W, x: Tensor) -> Tensor:
        levels = []
        for i, stride in enumerate(steps(dims)):
            c = layer(w.at("context", i, "entry"), 0, x, stride)
            context = w.at("context", i, "context")
            hidden = leaky(instance(context.at(1), conv(context.at(0), c)), 0.3)
            x = c + leaky(instance(context.at(4), conv(context.at(3), hidden)), 0.3)
            levels.append(x)
        logits: Any = 0.0
        for i in (1, 0):
            for axis, factor in enumerate(steps(dims)[i + 1]):
                x = x.repeat_interleave(factor, axis + 2)
            x = torch.cat([layer(w.at("localisation", i, "up"), 1, x), levels[i]], 1)
            x = layer(w.at("localisation", i, "merge"), 2, layer(w.at("localisation", i, "merge"), 0, x))
            logits = logits + conv(w.at("heads", i), x)
            if i:
                for axis, factor in enumerate(steps(dims)[i]):
                    logits = logits.repeat_interleave(factor, axis + 2)
        return logits

    model = create_model(
        "residual_unet", spatial_dims=dims, in_channels=2, out_channels=3, base_channels=4, strides=steps(dims)
    )
    assert_defined(f"residual_unet {dims}D", model, define, 2, 2, *(12, 8, 4)[:dims])


class Part(nn.Module):
    """A skip part, or all levels of a pyramid operation, with features made of one image."""

    def __init__(self, part: nn.Module, role: str) -> None:
        super().__init__()
        self.part, self.role = part, role
        self.context = SkipContext(0, 3, 2, {})

    @staticmethod
    def levels(image: Tensor) -> tuple[Tensor, ...]:
        """Sizes 12x8, 6x4 and 3x2 of 4, 6 and 8 channels."""
        maps = [F.avg_pool2d(image, 2**i) if i else image for i in range(3)]
        wide = [torch.cat([(x + j) * (j + 1) % 1.7 for j in range(8)], 1) for x in maps]
        return wide[0][:, :4], wide[1][:, :6], wide[2]

    def forward(self, image: Tensor) -> Tensor:
        fine, *rest = self.levels(image)
        if self.role == "pyramid":
            return torch.cat([x.flatten() for x in self.part((fine, *rest), self.context)])
        if self.role == "merge":
            return self.part(fine, fine.flip(1, 2), self.context)
        return self.part(fine, None, self.context)


def on_levels(define: Callable[[W, tuple[Tensor, ...]], tuple[Tensor, ...]]) -> Callable[[W, Tensor], Tensor]:
    return lambda w, image: torch.cat([x.flatten() for x in define(w.at("part"), Part.levels(image))])


def on_skip(define: Callable[[W, Tensor], Tensor]) -> Callable[[W, Tensor], Tensor]:
    return lambda w, image: define(w.at("part"), Part.levels(image)[0])


def resized(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)


@on_levels
def dense_fpn(w: W, levels: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """T_i gathers the laterals of all coarser levels, B_i the T of all finer ones."""

    def bottleneck(w: W, x: Tensor) -> Tensor:
        for number in (0, 2, 4):
            x = instance(w.at(number + 1), conv(w.at(number), x))
        return x

    lateral = [instance(w.at("laterals", i, 1), conv(w.at("laterals", i, 0), x)) for i, x in enumerate(levels)]
    top, out = [], []
    for i, x in enumerate(lateral):
        shares = w["coarser.0"].softmax(0) if i == 0 else [1.0]
        coarser = [share * resized(y, x) for share, y in zip(shares, lateral[i + 1 :], strict=False)]
        top.append(bottleneck(w.at("down.0", i), sum([x, *coarser]).relu()))
    for i, x in enumerate(lateral):
        shares = w["finer.2"].softmax(0) if i == 2 else [1.0]
        finer = [share * F.adaptive_max_pool2d(t, x.shape[2:]) for share, t in zip(shares, top[:i], strict=False)]
        out.append(conv(w.at("project", i), bottleneck(w.at("up.0", i), sum([x + top[i], *finer]).relu())))
    return tuple(out)


@on_levels
def spatial_context(w: W, levels: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    out = []
    for i, x in enumerate(levels):
        share = conv(w.at("keys", i), x).flatten(2).softmax(-1)
        vector = (conv(w.at("values", i), x).flatten(2) * share).sum(-1)[..., None, None]
        out.append(x + conv(w.at("out", i), vector) * conv(w.at("gates", i), x).sigmoid())
    return tuple(out)


@on_skip
def sc_tuner(w: W, x: Tensor) -> Tensor:
    hidden = conv(w.at("down"), x)
    return x + conv(w.at("up"), 0.5 * hidden * (1 + torch.erf(hidden / 2**0.5)))


@on_skip
def attention_gate(w: W, x: Tensor) -> Tensor:
    decoder = x.flip(1, 2)
    alpha = conv(w.at("attention"), (conv(w.at("skip"), x) + conv(w.at("decoder"), decoder)).relu()).sigmoid()
    return torch.cat([decoder, alpha * x], 1)


@on_skip
def gated_add(w: W, x: Tensor) -> Tensor:
    decoder = x.flip(1, 2)
    return decoder + conv(w.at("gate"), torch.cat([decoder, x], 1)).sigmoid() * x


@on_skip
def inter_scale(w: W, x: Tensor) -> Tensor:
    fused = conv(w.at("fuse"), torch.cat([x.flip(1, 2), x], 1))
    gate = conv(w.at("gate", 1), conv(w.at("gate", 0), fused, groups=4), dilation=3, groups=4)
    return fused + conv(w.at("gate", 2), gate) * fused


PARTS = {
    ("pyramid", "dense_fpn"): dense_fpn,
    ("pyramid", "spatial_context"): spatial_context,
    ("edit", "sc_tuner"): sc_tuner,
    ("merge", "attention_gate"): attention_gate,
    ("merge", "gated_add"): gated_add,
    ("merge", "inter_scale"): inter_scale,
}


@pytest.mark.parametrize(("role", "name"), PARTS)
def test_skip_part(assert_defined: Check, role: str, name: str) -> None:
    if role == "pyramid":
        part = PYRAMID.build(name, spatial_dims=2, channels=(4, 6, 8))
    elif role == "edit":
        part = EDITS.build(name, spatial_dims=2, channels=4)
    else:
        part = MERGES.build(name, spatial_dims=2, skip_channels=4, decoder_channels=4)
    assert_defined(name, Part(part, role), PARTS[role, name], 2, 1, 12, 8)


@pytest.mark.parametrize("order", ["td3net", "sum_first", "d3net"])
def test_multi_dilated_dense_block(assert_defined: Check, order: str) -> None:
    """Source i goes through dilation 2^i to all later layers; the three orders of norm, activation, sum."""

    def act(w: W, x: Tensor) -> Tensor:
        return batch(w.at(0), x).relu()

    def define(w: W, x: Tensor) -> Tensor:
        sources, sums = [x], [torch.zeros(())] * 3
        for i in range(3):
            seen = act(w.at("acts", i), sources[i]) if order == "d3net" else sources[i]
            dealt = conv(w.at("convs", i), seen, dilation=2**i)
            dealt = act(w.at("acts", i), dealt) if order == "td3net" else dealt
            for later in range(i, 3):
                sums[later] = sums[later] + dealt[:, 2 * (later - i) : 2 * (later - i + 1)]
            sums[i] = act(w.at("acts", i), sums[i]) if order == "sum_first" else sums[i]
            sources.append(sums[i])
        return torch.cat(sources[1:], 1)

    block = MultiDilatedDenseBlock(
        3, 2, layers=3, spatial_dims=2, norm="batch", activation="relu",
        norm_before_sum=order == "td3net", pre_activation=order == "d3net",
    )  # fmt: skip
    assert all((c.bias is not None) == (order == "d3net") for c in block.convs)
    assert_defined(f"multi_dilated {order}", block, define, 2, 3, 11, 9)


def test_one_shot_aggregation(assert_defined: Check) -> None:
    def define(w: W, x: Tensor) -> Tensor:
        outputs = [x]
        for i in range(3):
            outputs.append(conv_batch_relu(w.at("chain", i), outputs[-1]))
        joined = conv_batch_relu(w.at("join"), torch.cat(outputs, 1))
        excite = conv(w.at("excite.full"), joined.mean((2, 3), keepdim=True))
        return joined * ((excite + 3).clamp(0, 6) / 6) + x

    block = OneShotAggregation(4, 3, 4, layers=3, spatial_dims=2)
    assert_defined("one_shot_aggregation", block, define, 2, 4, 7, 6)

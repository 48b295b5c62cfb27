"""DAE-Former, and a reconstruction of TransDAE on its skeleton: U-shaped transformers with dual attention.

Papers: R. Azad et al., "DAE-Former: Dual Attention-guided Efficient Transformer for Medical Image Segmentation"
(arXiv 2212.13504); B. Azad, Adibfar and Fu, "TransDAE" (arXiv 2409.02018).

DAE-Former follows its official code (xmindflow/DAEFormer a13909b): overlapping patch embeddings, two dual blocks per
stage, skip connection cross-attention, patch expanding. Decoder, skips and head start with Xavier-uniform weights and
zero biases, the encoder as PyTorch's layers do. That code also owns modules that it never calls; they are built with
``mirror_dead`` only, to prove the published count.

TransDAE has no public code and only its abstract was at hand. Taken from it: an overlapping patch embedding, stages of
two dual-attention blocks, efficient attention as the channel path, self-attention with spatial reduction as the spatial
path, a module in the skips that decomposes a large kernel and fuses encoder and decoder. Everything else, from the
widths, the order of the two attentions and the first weights to the form of that module, is DAE-Former's or our choice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from torch import Tensor, nn

from medseg.blocks.attention.channel import ChannelAttention
from medseg.blocks.attention.efficient import EfficientAttention
from medseg.blocks.attention.mix_ffn import MixFFN
from medseg.blocks.attention.overlap import OverlapPatchEmbed
from medseg.blocks.attention.patch import ImageExpand
from medseg.blocks.attention.spatial_reduction import SpatialReductionAttention
from medseg.blocks.attention.tokens import ChannelNorm
from medseg.blocks.conv import conv
from medseg.blocks.initialization import glorot_uniform
from medseg.blocks.skip import SkipSettings
from medseg.blocks.skip.path import SkipPath
from medseg.blocks.stages import check_size
from medseg.errors import UsageError, nearest
from medseg.models import MODELS

ORDERS = ("spatial_first", "channel_first", "parallel_sum")
STRIDES = (4, 2, 2)  # of the three patch embeddings
MakeBlock = Callable[[int], nn.Module]


@MODELS.register("transdae")
def transdae(
    *,
    spatial_dims: int = 2,
    in_channels: int = 1,
    out_channels: int = 2,
    widths: Sequence[int] = (128, 320, 512),
    blocks_per_stage: int | Sequence[int] = 2,
    num_heads: int | Sequence[int] = (2, 5, 8),
    reductions: Sequence[int] = (8, 4, 2),
    order: str = "spatial_first",
    skips: SkipSettings = None,
) -> DualAttentionUNet:
    """Dual attention of space and channels with large-kernel skips, a reconstruction.

    Source: reconstruction after B. Azad et al. 2024, arXiv 2409.02018

    Args:
        spatial_dims: 2, or 3 (ours: the paper is 2D).
        in_channels: image channels.
        out_channels: logits per voxel: classes with background, or 1 for a sigmoid.
        widths: channels of the three stages.
        blocks_per_stage: one number or one per stage, for the encoder and the decoder alike.
        num_heads: heads of the spatial attention, one number or one per stage.
        reductions: of the spatial attention's keys and values along every axis, per stage.
        order: of the two attentions: ``"spatial_first"``, ``"channel_first"``, or ``"parallel_sum"``: both see the same
            features, and one feed-forward follows their sum.
        skips: the skip path, see `medseg.blocks.skip`. None: inter-scale interaction.

    Raises:
        UsageError: for unknown names or contradicting settings.
    """
    if order not in ORDERS:
        raise UsageError(f"unknown order '{order}': {nearest(order, ORDERS)}")
    depths, heads = per_stage(blocks_per_stage), per_stage(num_heads)
    _check(spatial_dims, widths=widths, blocks_per_stage=depths, num_heads=heads, reductions=reductions)

    def block(stage: int) -> nn.Module:
        channels, reduction = widths[stage], reductions[stage]
        spatial = SpatialReductionAttention(spatial_dims, channels, heads=heads[stage], reduction=reduction)
        pair: list[nn.Module] = [spatial, EfficientAttention(channels)]
        parallel = order == "parallel_sum"
        return DualBlock(spatial_dims, channels, pair[::-1] if order == "channel_first" else pair, parallel=parallel)

    path = make_path(skips, "inter_scale", spatial_dims, widths)
    model = DualAttentionUNet(spatial_dims, in_channels, out_channels, widths, depths, block, path)
    scales = [math.prod(STRIDES[: stage + 1]) * reductions[stage] for stage in range(len(widths))]
    model.divisor = (math.lcm(*scales, *model.divisor),) * spatial_dims
    return model


@MODELS.register("dae_former")
def dae_former(
    *,
    spatial_dims: int = 2,
    in_channels: int = 3,
    out_channels: int = 9,
    widths: Sequence[int] = (128, 320, 512),
    blocks_per_stage: int | Sequence[int] = 2,
    num_heads: int = 8,
    skips: SkipSettings = None,
    mirror_dead: bool = False,
) -> DualAttentionUNet:
    """Efficient and transpose attention with cross-attention in the skips.

    Source: R. Azad et al. 2022, arXiv 2212.13504

    The paper repeats a grey image to three channels; here ``in_channels=1`` builds an embedding for one channel. With
    three channels and nine classes it has 29,690,201 parameters.

    Args:
        spatial_dims: 2, or 3 (ours: the paper is 2D).
        in_channels: image channels.
        out_channels: logits per voxel: classes with background, or 1 for a sigmoid.
        widths: channels of the three stages.
        blocks_per_stage: one number or one per stage, for the encoder and the decoder alike.
        num_heads: heads of the transpose attention.
        skips: the skip path, see `medseg.blocks.skip`. None: cross-attention.
        mirror_dead: build what the official code owns and never calls too, which receives no gradient: 48,073,065
            parameters.

    Raises:
        UsageError: for unknown names or contradicting settings.
    """
    depths = per_stage(blocks_per_stage)
    _check(spatial_dims, widths=widths, blocks_per_stage=depths)

    def block(stage: int) -> nn.Module:
        channels = widths[stage]
        attentions = [EfficientAttention(channels), ChannelAttention(channels, heads=num_heads)]
        return DualBlock(spatial_dims, channels, attentions)

    path = make_path(skips, "cross_attention", spatial_dims, widths)
    model = DualAttentionUNet(spatial_dims, in_channels, out_channels, widths, depths, block, path)
    if mirror_dead:
        deepest = make_path(skips, "cross_attention", spatial_dims, [widths[-1]] * 2)  # its skip joins equal widths
        blocks = [block(2) for _ in range(depths[-1])]
        stage = DecoderStage(spatial_dims, widths[-1], deepest.out_channels["0"], widths[-1], blocks)
        model.unused = nn.ModuleList([nn.ModuleList([deepest, stage])])
        ffns = [module for module in model.modules() if isinstance(module, MixFFN)]
        model.unused.extend(nn.LayerNorm(ffn.norm.normalized_shape) for ffn in ffns for _ in range(2))
    return model


class DualAttentionUNet(nn.Module):
    """Encoder, decoder and head that both networks share.

    Args:
        spatial_dims: 2 or 3.
        in_channels: image channels.
        out_channels: logits per voxel.
        widths: channels per stage.
        depths: blocks per stage.
        block: builds a block of a stage.
        skips: joins the skips with decoder features of their own width.
    """

    divisor: tuple[int, ...]
    head_names = ("head.*",)

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        widths: Sequence[int],
        depths: Sequence[int],
        block: MakeBlock,
        skips: SkipPath,
    ) -> None:
        super().__init__()
        self.divisor = (math.prod(STRIDES),) * spatial_dims
        self.encoder = Encoder(spatial_dims, in_channels, widths, depths, block)
        self.skips = skips
        self.decoder = Decoder(spatial_dims, widths, depths, block, skips.out_channels)
        self.head = conv(spatial_dims, widths[0], out_channels, kernel=1)
        _start(self.decoder)
        _start(self.head)

    def forward(self, image: Tensor) -> Tensor:
        """image (B, in_channels, *S), S a multiple of `divisor` -> logits (B, out_channels, *S)."""
        check_size(image, self.divisor)
        return self.head(self.decoder(self.skips(self.encoder(image)), self.skips))


class DualBlock(nn.Module):
    """x += A1(LN x); x += FFN(LN x); x += A2(LN x); x += FFN(LN x).

    With `parallel`: x += A1(LN x) + A2(LN x); x += FFN(LN x).
    """

    def __init__(
        self, spatial_dims: int, channels: int, attentions: Sequence[nn.Module], *, parallel: bool = False
    ) -> None:
        super().__init__()
        self.parallel = parallel
        self.attentions = nn.ModuleList(nn.Sequential(ChannelNorm(channels), a) for a in attentions)
        self.ffns = nn.ModuleList(
            nn.Sequential(ChannelNorm(channels), MixFFN(spatial_dims, channels, 4 * channels))
            for _ in (attentions[:1] if parallel else attentions)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *S) -> (B, C, *S)."""
        if self.parallel:
            x = x + self.attentions[0](x) + self.attentions[1](x)
            return x + self.ffns[0](x)
        for attention, ffn in zip(self.attentions, self.ffns, strict=True):
            x = x + attention(x)
            x = x + ffn(x)
        return x


class Encoder(nn.Module):
    """Per stage an overlapping patch embedding, blocks, and a layer norm."""

    def __init__(
        self, spatial_dims: int, in_channels: int, widths: Sequence[int], depths: Sequence[int], block: MakeBlock
    ) -> None:
        super().__init__()
        self.stages, previous = nn.ModuleList(), in_channels
        for stage, (width, depth, stride) in enumerate(zip(widths, depths, STRIDES, strict=True)):
            embed = OverlapPatchEmbed(spatial_dims, previous, width, kernel=2 * stride - 1, stride=stride)
            self.stages.append(nn.Sequential(embed, *(block(stage) for _ in range(depth)), ChannelNorm(width)))
            previous = width

    def forward(self, image: Tensor) -> list[Tensor]:
        """image (B, in_channels, *S) -> features of strides 4, 8 and 16, each (B, C_i, *S_i)."""
        x, features = image, []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


class Decoder(nn.Module):
    """From the lowest stage up: expand the patches, meet the skip, blocks; the last expansion gives full resolution."""

    def __init__(
        self,
        spatial_dims: int,
        widths: Sequence[int],
        depths: Sequence[int],
        block: MakeBlock,
        merged: Mapping[str, int],
    ) -> None:
        super().__init__()
        self.expand, self.stages = nn.ModuleList(), nn.ModuleList()
        for stage in reversed(range(len(widths) - 1)):
            below = widths[stage + 1]
            self.expand.append(ImageExpand(below, below // 2, factor=STRIDES[stage + 1], spatial_dims=spatial_dims))
            blocks = [block(stage) for _ in range(depths[stage])]
            self.stages.append(DecoderStage(spatial_dims, below // 2, merged[str(stage)], widths[stage], blocks))
        self.expand.append(ImageExpand(widths[0], widths[0], factor=STRIDES[0], spatial_dims=spatial_dims))

    def forward(self, features: Sequence[Tensor], skips: SkipPath) -> Tensor:
        """Encoder features, finest first -> (B, widths[0], *S) at the image's resolution."""
        x = features[-1]
        for expand, stage, level in zip(self.expand, self.stages, reversed(range(len(self.stages))), strict=False):
            x = stage(expand(x), partial(skips.join, level, features[level]))
        return self.expand[-1](x)


class DecoderStage(nn.Module):
    """Map the decoder to the skip's width, merge both, map to that width again, blocks."""

    def __init__(
        self, spatial_dims: int, in_channels: int, merged: int, width: int, blocks: Sequence[nn.Module]
    ) -> None:
        super().__init__()
        self.adapt = conv(spatial_dims, in_channels, width, kernel=1)
        self.narrow = conv(spatial_dims, merged, width, kernel=1)
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor, join: Callable[[Tensor], Tensor]) -> Tensor:
        """x (B, in_channels, *S) -> (B, width, *S); `join` merges (B, width, *S) with the skip to (B, merged, *S)."""
        return self.blocks(self.narrow(join(self.adapt(x))))


def make_path(skips: SkipSettings, merge: str, spatial_dims: int, widths: Sequence[int]) -> SkipPath:
    """The skip path of stages whose decoder features have the width of the skip that they meet."""
    return SkipPath(skips, spatial_dims=spatial_dims, channels=widths, decoder_channels=widths[:-1], merge=merge)


def _start(part: nn.Module) -> None:
    """Xavier-uniform weights and zero biases."""
    glorot_uniform(part)
    for module in part.modules():
        if isinstance(module, EfficientAttention):
            module.start_glorot()


def per_stage(value: int | Sequence[int]) -> list[int]:
    """One number for every stage, or those given."""
    return [value] * len(STRIDES) if isinstance(value, int) else list(value)


def _check(spatial_dims: int, **per_stage: Sequence[int]) -> None:
    """Refuse what cannot be built, in one line."""
    if spatial_dims not in (2, 3):
        raise UsageError(f"spatial_dims is {spatial_dims} (must be 2 or 3)")
    for name, numbers in per_stage.items():
        if len(numbers) != len(STRIDES) or min(numbers) < 1:
            raise UsageError(f"{name} is {list(numbers)} (needs {len(STRIDES)} whole numbers of at least 1)")
        if name == "widths" and any(width % 2 for width in numbers):
            raise UsageError(f"widths is {list(numbers)} (must be even: a patch expansion halves them)")

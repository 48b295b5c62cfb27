"""Att-SwinU-Net: Swin-Unet whose decoder reuses the encoder's attention, with cross-contextual attention in the skips.

Papers: Aghdam et al., "Attention Swin U-Net: Cross-Contextual Attention Mechanism for Skin Lesion Segmentation", ISBI
2023 (arXiv 2210.16898); Cao et al. 2022, Swin-Unet (arXiv 2105.05537); Liu et al. 2021, Swin (arXiv 2103.14030).

Read in the official repository (snapshot 4b14f37): the backbone, the cross-contextual layers, and the figure, in which
a decoder block weights its values with the sum of its own attention and the encoder's. The published code adds the
encoder's attention to a tensor that it then discards: it has no effect (`official_noop=True`). Here the figure is
followed. Ours, since neither figure nor code decides it: encoder block b guides decoder block b, so W-MSA meets W-MSA
and SW-MSA meets SW-MSA (the code hands on the last block's attention only); the class token is added to all tokens
instead of replacing the first (`cls_mode`); `skip_count` below 3 keeps the finest; `renormalise`. The skips are
exchanged before the decoder's blocks, as in the code; the figure has the opposite order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor, nn

from medseg.blocks.attention.patch import PatchEmbed, PatchExpand, PatchMerging, shuffle
from medseg.blocks.attention.swin import SwinBlock, initialise_tokens
from medseg.blocks.attention.window import OPERATIONS
from medseg.blocks.skip import SkipSettings
from medseg.blocks.skip.path import SkipPath, SkipSite
from medseg.blocks.stages import check_size
from medseg.errors import UsageError, nearest
from medseg.models import MODELS
from medseg.models.swin_weights import load_swin_weights

MODES = ("cross", "swin")
SPATIAL = (*OPERATIONS, "none")
PATCH = 4
OFFICIAL_CLASSES = 9


@MODELS.register("att_swin_unet")
class AttSwinUNet(nn.Module):
    """Swin-Unet with the encoder's attention in the decoder and cross-contextual skips.

    Source: Aghdam et al. 2023, arXiv 2210.16898

    Sizes must be multiples of `divisor` only: windows are padded where they do not divide the tokens, and padding is
    never attended to. At 224x224 all windows are whole, and the network is the paper's.

    Args:
        spatial_dims: 2.
        in_channels: image channels.
        out_channels: logits per pixel: classes with background, or 1 for a sigmoid.
        embed_dim: channels of the first stage, doubled at every further stage.
        depths: blocks per encoder stage; the decoder mirrors all but the last. (2, 2, 6, 2) is Swin-T's encoder.
        num_heads: heads per stage, or those of the first stage, doubled at every further stage.
        window_size: side of a window in tokens; blocks alternate between shift 0 and window_size // 2.
        drop_path: stochastic depth of the last encoder block, rising linearly from 0 at the first.
        mode: ``"cross"``: cross-contextual attention in the skips; ``"swin"``: concatenation, as in Swin-Unet.
        skip_count: number of skips, the finest ones. None: all.
        spatial_attention: how the encoder's attention joins the decoder's where there is a skip: ``"add"``,
            ``"mul"`` or ``"none"``. None: ``"add"`` in mode ``"cross"``, else ``"none"``.
        renormalise: make the joined attention's rows sum to 1 again.
        cls_mode: what becomes of the class token, see `medseg.blocks.skip.cross_context.CrossContext`.
        skips: the skip path, see `medseg.blocks.skip`. None: the merge of `mode`, which it may exchange.
        official: the layout of the published code: two parts without use, and nine logits whatever `out_channels`.
        official_noop: the encoder's attention has no effect, as in the published code.
        pretrained: weights of timm's swin_tiny_patch4_window7_224 for the encoder: a .safetensors or .pth file, or
            True to download them.

    Raises:
        UsageError: for 3D, unknown names, contradicting settings or weights of another architecture.
        UnreadableFile, UnsafeArtefact: weights that cannot be read, or that are more than weights.
        ResourceError: weights that cannot be downloaded.
    """

    head_names = ("head.*",)

    def __init__(
        self,
        *,
        spatial_dims: int = 2,
        in_channels: int = 3,
        out_channels: int = 1,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 2, 2),
        num_heads: int | Sequence[int] = 3,
        window_size: int = 7,
        drop_path: float = 0.1,
        mode: str = "cross",
        skip_count: int | None = None,
        spatial_attention: str | None = None,
        renormalise: bool = False,
        cls_mode: str = "add",
        skips: SkipSettings = None,
        official: bool = False,
        official_noop: bool = False,
        pretrained: str | Path | Literal[True] | None = None,
    ) -> None:
        super().__init__()
        if spatial_dims != 2:
            raise UsageError(f"att_swin_unet takes images, not spatial_dims {spatial_dims}", fix="use spatial_dims=2")
        spatial = spatial_attention or ("add" if mode == "cross" else "none")
        for key, value, known in (("mode", mode, MODES), ("spatial_attention", spatial, SPATIAL)):
            if value not in known:
                raise UsageError(f"unknown {key} '{value}': {nearest(value, known)}")
        heads = stage_heads(num_heads, len(depths))
        kept = len(depths) - 1 if skip_count is None else skip_count
        if len(depths) < 2 or min(depths) < 1 or not 0 <= kept < len(depths):
            raise UsageError(
                f"depths is {tuple(depths)}, skip_count {skip_count} (needs two or more stages, fewer skips than those)"
            )
        self.divisor = (PATCH * 2 ** (len(depths) - 1),) * 2
        self.guided = 0 if official_noop or spatial == "none" else kept
        rates = split_rates(drop_path, depths)
        self.encoder = Encoder(in_channels, embed_dim, depths, heads, window_size, rates)
        widths = [embed_dim * 2**i for i in range(len(depths))]
        sites = {str(i): SkipSite(i, widths[i], widths[i]) for i in range(kept)}
        merge = {"name": "cross_context", "cls_mode": cls_mode} if mode == "cross" else "concat"
        self.skips = SkipPath(skips, spatial_dims=2, channels=widths, sites=sites, merge=merge)
        self.decoder = nn.ModuleList(
            DecoderStage(
                widths[i], heads[i], window_size, rates[i], self.skips.out_channels.get(str(i)), spatial, renormalise
            )
            for i in range(len(depths) - 1)
        )
        self.norm = nn.LayerNorm(embed_dim)
        self.expand = PatchExpand(embed_dim, embed_dim, factor=PATCH)
        self.head = nn.Linear(embed_dim, OFFICIAL_CLASSES if official else out_channels, bias=False)
        if official:
            deepest = embed_dim * 2 ** (len(depths) - 1)
            self.unused = nn.ModuleDict({"patch_embed": PatchEmbed(4, embed_dim), "norm": nn.LayerNorm(deepest)})
        for name, part in self.named_children():
            if name != "head":  # in the code a convolution, which starts as PyTorch's do, as does the patch embedding
                initialise_tokens(part.merges if isinstance(part, SkipPath) else part)  # edits start as they say
        if pretrained:
            load_swin_weights(self.encoder, pretrained)

    def forward(self, image: Tensor) -> Tensor:
        """image (B, in_channels, H, W), H and W multiples of `divisor` -> logits (B, out_channels, H, W)."""
        check_size(image, self.divisor)
        tokens, maps = self.encoder.tokens(image, self.guided)
        features = self.skips([feature.permute(0, 3, 1, 2) for feature in tokens])
        x = features[-1].permute(0, 2, 3, 1)
        for i in reversed(range(len(self.decoder))):
            join = partial(self.skips.join, i, features[i]) if str(i) in self.skips.sites else None
            x = self.decoder[i](x, join, maps[i])
        groups = self.head(self.expand.groups(self.norm(x)))  # few channels are faster to move than embed_dim
        return shuffle(groups).permute(0, 3, 1, 2)


class Encoder(nn.Module):
    """Swin: patch embedding, then stages of blocks, each but the first beginning with a merging.

    Its parameters are named as those of timm's `swin_tiny_patch4_window7_224`.
    """

    def __init__(
        self,
        in_channels: int,
        embed_dim: int,
        depths: Sequence[int],
        heads: Sequence[int],
        window_size: int,
        rates: Sequence[Sequence[float]],
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(in_channels, embed_dim, patch_size=PATCH)
        self.layers = nn.ModuleList(
            EncoderStage(embed_dim * 2**i, heads[i], window_size, rates[i], first=i == 0) for i in range(len(depths))
        )
        self.norm = nn.LayerNorm(embed_dim * 2 ** (len(depths) - 1))

    def forward(self, image: Tensor) -> list[Tensor]:
        """image (B, in_channels, H, W) -> what the decoder sees, finest first, each (B, C_i, H / 2^(i+2), W / 2^(i+2)).

        The input of each stage's blocks, as Swin-Unet's skips, and last the normalised output of the last stage.
        """
        return [tokens.permute(0, 3, 1, 2) for tokens in self.tokens(image, 0)[0]]

    def tokens(self, image: Tensor, guided: int) -> tuple[list[Tensor], list[list[Tensor]]]:
        """The same as tokens (B, H, W, C), and the attention of each block of the first `guided` stages."""
        x, features, maps = self.patch_embed(image), [], []
        for i, stage in enumerate(self.layers):
            merged, x, weights = stage(x, with_maps=i < guided)
            features.append(merged)
            maps.append(weights)
        return [*features[:-1], self.norm(x)], maps


class EncoderStage(nn.Module):
    """A merging, but for the first stage, and blocks that alternate between plain and shifted windows."""

    def __init__(self, channels: int, heads: int, window_size: int, rates: Sequence[float], *, first: bool) -> None:
        super().__init__()
        self.downsample = nn.Identity() if first else PatchMerging(channels // 2)
        self.blocks = make_blocks(channels, heads, window_size, rates)

    def forward(self, x: Tensor, *, with_maps: bool) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Tokens of the stage before -> the input of the blocks, their output, the attention of each if asked for."""
        merged, maps = self.downsample(x), []
        x = merged
        for block in cast(Iterable[SwinBlock], self.blocks):
            if with_maps:
                x, weights = block.with_map(x)
                maps.append(weights)
            else:
                x = block(x)
        return merged, x, maps


class DecoderStage(nn.Module):
    """Expansion to twice the resolution, merge with the skip, blocks guided by the encoder's attention."""

    def __init__(
        self,
        channels: int,
        heads: int,
        window_size: int,
        rates: Sequence[float],
        merged: int | None,
        operation: str,
        renormalise: bool,
    ) -> None:
        super().__init__()
        self.operation, self.renormalise = operation, renormalise
        self.expand = PatchExpand(2 * channels, channels)
        self.fuse = None if merged is None else nn.Linear(merged, channels)
        self.blocks = make_blocks(channels, heads, window_size, rates)

    def forward(self, x: Tensor, join: Callable[[Tensor], Tensor] | None, maps: Sequence[Tensor]) -> Tensor:
        """x (B, H, W, 2C), the merge with the skip if there is one, attention per block or none -> (B, 2H, 2W, C)."""
        x = self.expand(x)
        if join is not None and self.fuse is not None:
            x = self.fuse(join(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        for i, block in enumerate(self.blocks):
            joined = {"guide": maps[i], "operation": self.operation, "renormalise": self.renormalise} if maps else {}
            x = block(x, **joined)
        return x


def make_blocks(channels: int, heads: int, window_size: int, rates: Sequence[float]) -> nn.ModuleList:
    """One Swin block per stochastic-depth rate, the second, fourth, ... shifted by half a window."""
    return nn.ModuleList(
        SwinBlock(
            channels, num_heads=heads, window_size=window_size, shift=window_size // 2 if i % 2 else 0, drop_path=rate
        )
        for i, rate in enumerate(rates)
    )


def stage_heads(num_heads: int | Sequence[int], stages: int) -> list[int]:
    """Heads per stage. Raises UsageError for another number of them than stages."""
    heads = [num_heads * 2**i for i in range(stages)] if isinstance(num_heads, int) else list(num_heads)
    if len(heads) != stages:
        raise UsageError(f"num_heads is {heads} (needs {stages} numbers, one per stage of depths)")
    return heads


def split_rates(drop_path: float, depths: Sequence[int]) -> list[list[float]]:
    """Rates per stage and block, rising linearly from 0 to `drop_path`."""
    with torch.device("cpu"):  # numbers are needed also where the network is built without memory
        rates = torch.linspace(0, drop_path, sum(depths)).tolist()
    starts = [sum(depths[:i]) for i in range(len(depths))]
    return [rates[start : start + count] for start, count in zip(starts, depths, strict=True)]

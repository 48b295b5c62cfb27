"""Barlow-Swin: a three-stage Swin encoder, meant to be pretrained with Barlow Twins, and a light convolutional decoder.

Paper: "Barlow-Swin", 2025 (arXiv 2509.06885). Read in the official notebook (TensorFlow/Keras, snapshot a45ca42):
4x4 patches with a learned absolute position, no normalisation after the embedding nor in the mergings nor at the end;
windows of 4 tokens, shifted by 1 (not by half a window); 8 heads at every stage; a decoder of separable convolutions
whose last layer is batch normalisation. Computed: its parameter counts, 7,001,683 at 512x512.

Ours: the position table is interpolated for images of another size than `image_size`; windows are padded where they do
not divide the tokens. First weights as in the notebook: queries, keys, values, projections and bias tables truncated
normal of 0.02, positions uniform within 0.05 (Keras' default of embeddings), all else Glorot-uniform with zero biases.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from medseg.blocks.attention.patch import PatchEmbed, PatchMerging
from medseg.blocks.attention.swin import SwinBlock
from medseg.blocks.attention.window import WindowAttention
from medseg.blocks.initialization import glorot_uniform, keras_truncated_normal_
from medseg.blocks.skip import SkipSettings
from medseg.blocks.skip.path import SkipPath, SkipSite
from medseg.blocks.stages import check_size
from medseg.errors import UsageError
from medseg.models import MODELS

PATCH = 4
EXTRA_LEVELS = 2  # decoder levels that have no skip: the patch size is 2 ** 2


@MODELS.register("barlow_swin")
class BarlowSwin(nn.Module):
    """Small Swin encoder for Barlow Twins pretraining with a separable-convolution decoder.

    Source: Barlow-Swin 2025, arXiv 2509.06885

    Args:
        spatial_dims: 2.
        in_channels: image channels.
        out_channels: logits per pixel: classes with background, or 1 for a sigmoid.
        image_size: pixels per side (one number or height and width) that the position table is made for; for other
            sizes it is interpolated.
        embed_dim: channels of the first stage, doubled at every further stage.
        depths: blocks per stage.
        num_heads: heads of every stage.
        window_size: side of a window in tokens.
        shift: of the windows of every second block, in tokens.
        decoder_channels: per decoder level, from the lowest; two more than there are mergings.
        dropout: probability of zeroing an element at the end of a decoder block's main path.
        head_norm: batch normalisation of the logits, as in the notebook; in training they then depend on the batch.
        skips: the skip path, see `medseg.blocks.skip`. None: concatenation.

    Raises:
        UsageError: for 3D or contradicting settings.
    """

    head_names = ("head.*",)

    def __init__(
        self,
        *,
        spatial_dims: int = 2,
        in_channels: int = 3,
        out_channels: int = 1,
        image_size: int | Sequence[int] = 512,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 2),
        num_heads: int = 8,
        window_size: int = 4,
        shift: int = 1,
        decoder_channels: Sequence[int] = (192, 128, 64, 32),
        dropout: float = 0.1,
        head_norm: bool = True,
        skips: SkipSettings = None,
    ) -> None:
        super().__init__()
        if spatial_dims != 2:
            raise UsageError(f"barlow_swin takes images, not spatial_dims {spatial_dims}", fix="use spatial_dims=2")
        levels = len(depths) - 1 + EXTRA_LEVELS
        if not depths or min(depths) < 1 or len(decoder_channels) != levels:
            raise UsageError(
                f"decoder_channels is {tuple(decoder_channels)} (needs {levels} numbers for depths {depths})"
            )
        self.divisor = (PATCH * 2 ** (len(depths) - 1),) * 2
        self.encoder = Encoder(in_channels, image_size, embed_dim, depths, num_heads, window_size, shift)
        widths = [embed_dim * 2**i for i in range(len(depths))]
        above = [widths[-1], *decoder_channels]  # of the decoder features that come up to each level, lowest first
        sites = {str(i): SkipSite(i, widths[i], above[levels - EXTRA_LEVELS - 1 - i]) for i in range(len(depths) - 1)}
        path = SkipPath(skips, spatial_dims=2, channels=widths, sites=sites)
        merged = [path.out_channels[name] for name in reversed(sites)] + above[len(sites) : -1]
        self.decoder = nn.ModuleList(map(DecoderBlock, merged, decoder_channels, [dropout] * levels))
        self.head = nn.Sequential(Pointwise(decoder_channels[-1], out_channels))
        if head_norm:
            self.head.append(keras_norm(out_channels))
        _start(self)
        self.skips = path  # after the initialisation: its parts start as they need to

    def forward(self, image: Tensor) -> Tensor:
        """image (B, in_channels, H, W), H and W multiples of `divisor` -> logits (B, out_channels, H, W)."""
        check_size(image, self.divisor)
        *skips, x = self.skips(self.encoder(image))
        for block in self.decoder:
            level = len(skips) - 1
            x = block(x, partial(self.skips.join, level, skips.pop()) if skips else None)
        return self.head(x)


class Encoder(nn.Module):
    """Patches with a position, then stages of Swin blocks with mergings between them."""

    def __init__(
        self,
        in_channels: int,
        image_size: int | Sequence[int],
        embed_dim: int,
        depths: Sequence[int],
        num_heads: int,
        window_size: int,
        shift: int,
    ) -> None:
        super().__init__()
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        self.patch_embed = PatchEmbed(in_channels, embed_dim, patch_size=PATCH, norm=False)
        self.position = nn.Parameter(torch.empty(1, -(-height // PATCH), -(-width // PATCH), embed_dim))
        self.stages = nn.ModuleList()
        for i, count in enumerate(depths):
            stage = nn.Sequential() if i == 0 else nn.Sequential(PatchMerging(embed_dim * 2 ** (i - 1), norm=False))
            for block in range(count):
                moved = shift if block % 2 else 0
                stage.append(SwinBlock(embed_dim * 2**i, num_heads=num_heads, window_size=window_size, shift=moved))
            self.stages.append(stage)

    def forward(self, image: Tensor) -> list[Tensor]:
        """image (B, in_channels, H, W) -> output per stage, finest first, each (B, C_i, H / 2^(i+2), W / 2^(i+2))."""
        x, features = self.patch_embed(image), []
        x = x + self._position((int(x.shape[1]), int(x.shape[2])))
        for stage in self.stages:
            x = stage(x)
            features.append(x.permute(0, 3, 1, 2))
        return features

    def _position(self, size: tuple[int, int]) -> Tensor:
        """The position table (1, *size, C), interpolated linearly if it was made for another size."""
        if tuple(self.position.shape[1:3]) == size:
            return self.position
        return functional.interpolate(self.position.permute(0, 3, 1, 2), size=size, mode="bilinear").permute(0, 2, 3, 1)


class DecoderBlock(nn.Module):
    """Twice the resolution, the skip beside it, twice (separable convolution, normalisation, ReLU), dropout; plus a
    normalised 1x1 convolution of the same input.

    1x1 convolutions are linear layers of channels-last pixels. That of the shortcut comes before the up-sampling where
    there is no skip: repeating pixels changes neither it nor the statistics of the normalisation.
    """

    def __init__(self, in_channels: int, out_channels: int, dropout: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels in (in_channels, out_channels):
            layers += [nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)]
            layers += [Pointwise(channels, out_channels), keras_norm(out_channels), nn.ReLU(inplace=True)]
        self.main = nn.Sequential(*layers, nn.Dropout(dropout))
        self.shortcut = nn.Sequential(Pointwise(in_channels, out_channels), keras_norm(out_channels))

    def forward(self, x: Tensor, join: Callable[[Tensor], Tensor] | None) -> Tensor:
        """x (B, C, H, W) -> (B, out_channels, 2H, 2W); `join` gives (B, in_channels, 2H, 2W) of (B, C, 2H, 2W)."""
        wide = functional.interpolate(x, scale_factor=2.0)
        if join is None:
            return self.main(wide) + functional.interpolate(self.shortcut(x), scale_factor=2.0)
        x = join(wide)
        return self.main(x) + self.shortcut(x)


class Pointwise(nn.Linear):
    """A 1x1 convolution as one matrix product, which channels-last pixels already lie for."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_features, H, W) -> (B, out_features, H, W), channels-last."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def keras_norm(channels: int) -> nn.Module:
    """Batch normalisation with Keras' defaults: eps 1e-3, and running statistics that keep 99 %."""
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


def _start(network: BarlowSwin) -> None:
    """Weights as the notebook's Keras layers begin."""
    glorot_uniform(network)
    embedding = network.encoder.patch_embed.proj.weight.data
    nn.init.xavier_uniform_(embedding.view(len(embedding), -1))  # there a dense layer of the patch, with its fans
    nn.init.uniform_(network.encoder.position, -0.05, 0.05)
    for part in network.encoder.modules():
        if isinstance(part, WindowAttention):
            for tensor in (part.qkv.weight, part.proj.weight, part.relative_position_bias_table):
                keras_truncated_normal_(tensor, 0.02)

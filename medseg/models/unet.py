"""U-Net: the baseline that users compare with, plain and with a residual encoder.

Papers: Ronneberger et al. 2015 (arXiv 1505.04597, the architecture); Isensee et al. 2021 (Nature Methods 18, 203-211,
nnU-Net: strided convolutions, instance normalisation, leaky ReLU, deep supervision); Isensee et al. 2024 (arXiv
2404.09556, residual encoder). Written from their descriptions. The one intended difference from nnU-Net: a convolution
that instance or batch normalisation follows has no bias, because the normalisation subtracts it again.

`unet_classic` and `unet_wide` are the two U-Nets that the UNet++ paper compares with; their layers follow its Keras
code, and their parameter counts, 7,759,521 and 9,282,246 for one input and one output channel, are tested.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from medseg.blocks.conv import MAX_POOLS, ConvNormAct, conv, upsample_conv
from medseg.blocks.encoders import NamedEncoder, encoder_name
from medseg.blocks.initialization import initialize
from medseg.blocks.residual import ResidualBlock
from medseg.blocks.skip import SkipSettings
from medseg.blocks.skip.path import SkipPath
from medseg.blocks.stages import Strides, check_size, resolve_strides, stage_channels, total_stride
from medseg.errors import UsageError, nearest
from medseg.models import MODELS


@MODELS.register("unet")
class UNet(nn.Module):
    """U-Net with nnU-Net's layers.

    Source: Isensee et al. 2021, nnU-Net

    Args:
        spatial_dims: 2 or 3.
        in_channels: image channels.
        out_channels: logits per voxel, e.g. classes with background.
        base_channels: channels of the first stage, doubled at every further stage.
        max_channels: upper limit of the doubling.
        strides: per stage, a number or one per axis, the first 1, e.g. a plan's strides. None: five stages.
        depth: number of down-samplings, instead of `strides`.
        blocks_per_stage: convolutions (or residual blocks) of each encoder stage, one number or one per stage.
        decoder_blocks_per_stage: convolutions of each decoder stage.
        norm: ``"instance"``, ``"batch"``, ``"group"`` or ``"none"``.
        activation: ``"leaky_relu"`` (slope 0.01) or ``"relu"``.
        encoder: ``"plain"`` convolutions, ``"residual"`` blocks, or a backbone by name, ``"vovnet/27_slim"`` or
            ``"timm/resnet34"``, which then decides strides and channels of all levels but the finest; or
            ``{"name": ...}``.
        downsample: ``"stride"`` of the stage's first convolution, or ``"maxpool"`` before it.
        deep_supervision: in training, return logits of every decoder resolution but the lowest, finest first.
        dropout: probability of zeroing an element after each activation.
        initialization: how the weights begin, ``"he"`` (nnU-Net's), ``"keras"`` or ``"torch"``, see
            `medseg.blocks.initialization.initialize`.
        skips: the skip path, by name of its merge or in full, see `medseg.blocks.skip`. None: concatenation.

    Raises:
        UsageError: for unknown names or contradicting settings.
    """

    def __init__(
        self,
        *,
        spatial_dims: int = 3,
        in_channels: int = 1,
        out_channels: int = 2,
        base_channels: int = 32,
        max_channels: int = 320,
        strides: Strides | None = None,
        depth: int | None = None,
        blocks_per_stage: int | Sequence[int] = 2,
        decoder_blocks_per_stage: int = 2,
        norm: str = "instance",
        activation: str = "leaky_relu",
        encoder: str | Mapping[str, str] = "plain",
        downsample: str = "stride",
        deep_supervision: bool = False,
        dropout: float = 0.0,
        initialization: str = "he",
        skips: SkipSettings = None,
    ) -> None:
        super().__init__()
        steps = resolve_strides(strides, depth, spatial_dims)
        channels = stage_channels(base_channels, max_channels, len(steps))
        layers = {"norm": norm, "activation": activation, "dropout": dropout}
        kind = encoder_name(encoder)
        if "/" in kind:
            backbone = NamedEncoder(
                kind, spatial_dims=spatial_dims, in_channels=in_channels, base_channels=base_channels, layers=layers
            )
            self.encoder: nn.Module = backbone
            channels, steps = backbone.channels, backbone.strides
        else:
            self.encoder = Encoder(
                spatial_dims, in_channels, channels, steps, blocks_per_stage, kind, downsample, layers
            )
        self.divisor = total_stride(steps)
        path = SkipPath(skips, spatial_dims=spatial_dims, channels=channels, decoder_channels=channels[:-1])
        self.decoder = Decoder(spatial_dims, channels, steps, decoder_blocks_per_stage, path.out_channels, layers)
        heads = max(1, len(steps) - 2) if deep_supervision else 1
        self.heads = nn.ModuleList(conv(spatial_dims, c, out_channels, kernel=1) for c in channels[:heads])
        for part in (self.encoder, self.decoder, self.heads):
            if not isinstance(part, NamedEncoder):  # a backbone starts as its own family does
                initialize(part, initialization, activation)
        self.skips = path
        for module in self.modules():
            if isinstance(module, ResidualBlock):
                module.start_as_shortcut()

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """image (B, in_channels, *S), S a multiple of `divisor` -> logits (B, out_channels, *S).

        In training with deep supervision: a list of logits, finest first, each at its decoder stage's resolution.
        """
        check_size(image, self.divisor)
        features = self.decoder(self.skips(self.encoder(image)), self.skips)
        if self.training and len(self.heads) > 1:
            return [head(x) for head, x in zip(self.heads, features, strict=False)]
        return self.heads[0](features[0])


class Encoder(nn.Module):
    """Stages of convolutions or residual blocks, each but the first beginning with a down-sampling."""

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        channels: Sequence[int],
        strides: Sequence[Sequence[int]],
        blocks: int | Sequence[int],
        kind: str,
        downsample: str,
        layers: dict,
    ) -> None:
        super().__init__()
        counts = [blocks] * len(channels) if isinstance(blocks, int) else list(blocks)
        if len(counts) != len(channels) or min(counts) < 1:
            raise UsageError(f"blocks_per_stage is {counts} (needs {len(channels)} numbers of at least 1)")
        if kind not in BLOCKS:
            known = [*BLOCKS, "vovnet/NAME", "timm/NAME"]
            raise UsageError(f"unknown encoder '{kind}': {nearest(kind, known)}")
        if downsample not in ("stride", "maxpool"):
            raise UsageError(f"unknown downsample '{downsample}': {nearest(downsample, ('stride', 'maxpool'))}")
        self.stem, previous = nn.Sequential(), in_channels
        if kind == "residual":  # a residual block cannot add an image to features: the stem makes features of it
            self.stem.append(ConvNormAct(spatial_dims, in_channels, channels[0], **layers))
            previous = channels[0]
        self.stages = nn.ModuleList()
        for width, stride, count in zip(channels, strides, counts, strict=True):
            pool = downsample == "maxpool" and max(stride) > 1
            stage = nn.Sequential(MAX_POOLS[spatial_dims](tuple(stride), tuple(stride))) if pool else nn.Sequential()
            for block in range(count):
                step = (1,) * spatial_dims if pool or block else tuple(stride)
                stage.append(BLOCKS[kind](spatial_dims, previous, width, stride=step, **layers))
                previous = width
            self.stages.append(stage)

    def forward(self, image: Tensor) -> list[Tensor]:
        """image (B, in_channels, *S) -> features per stage, finest first, each (B, C_i, *S_i)."""
        x, features = self.stem(image), []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


class Decoder(nn.Module):
    """Transposed convolution, merge with the skip, convolutions: once per stage, from the lowest to the finest."""

    def __init__(
        self,
        spatial_dims: int,
        channels: Sequence[int],
        strides: Sequence[Sequence[int]],
        convs: int,
        merged: Mapping[str, int],
        layers: dict,
    ) -> None:
        super().__init__()
        self.up, self.stages = nn.ModuleList(), nn.ModuleList()
        for level, (width, below, stride) in enumerate(zip(channels, channels[1:], strides[1:], strict=False)):
            self.up.append(upsample_conv(spatial_dims, below, width, stride))
            inputs = [merged[str(level)]] + [width] * (convs - 1)
            self.stages.append(nn.Sequential(*(ConvNormAct(spatial_dims, c, width, **layers) for c in inputs)))

    def forward(self, features: Sequence[Tensor], skips: SkipPath) -> list[Tensor]:
        """Encoder features and the path that joins them -> decoder features, one fewer; finest first."""
        x, out = features[-1], []
        for level in reversed(range(len(self.stages))):
            x = self.stages[level](skips.join(level, features[level], self.up[level](x)))
            out.append(x)
        return out[::-1]


BLOCKS: dict[str, type[nn.Module]] = {"plain": ConvNormAct, "residual": ResidualBlock}


@MODELS.register("unet_resenc")
def unet_resenc(
    *,
    spatial_dims: int = 3,
    in_channels: int = 1,
    out_channels: int = 2,
    base_channels: int = 32,
    max_channels: int = 320,
    strides: Strides | None = None,
    depth: int | None = None,
    norm: str = "instance",
    deep_supervision: bool = False,
    dropout: float = 0.0,
    skips: SkipSettings = None,
) -> UNet:
    """U-Net with a residual encoder and a light decoder.

    Source: Isensee et al. 2024, arXiv 2404.09556

    The encoder has 1, 3, 4, 6, 6, ... blocks per stage, the decoder one convolution. Arguments as in `UNet`.
    """
    steps = resolve_strides(strides, depth, spatial_dims)
    return UNet(
        spatial_dims=spatial_dims, in_channels=in_channels, out_channels=out_channels, base_channels=base_channels,
        max_channels=max_channels, strides=steps, norm=norm, deep_supervision=deep_supervision, dropout=dropout,
        skips=skips, encoder="residual", blocks_per_stage=([1, 3, 4] + [6] * len(steps))[: len(steps)],
        decoder_blocks_per_stage=1,
    )  # fmt: skip


@MODELS.register("unet_classic")
def unet_classic(
    *,
    spatial_dims: int = 2,
    in_channels: int = 1,
    out_channels: int = 1,
    base_channels: int = 32,
    strides: Strides | None = None,
    depth: int | None = None,
    dropout: float = 0.5,
    skips: SkipSettings = None,
) -> UNet:
    """U-Net as in the UNet++ paper: max pooling, ReLU, dropout.

    Source: Zhou et al. 2019, arXiv 1912.05074

    Arguments as in `UNet`; `base_channels` is doubled without a limit.
    """
    steps = resolve_strides(strides, depth, spatial_dims)
    return UNet(
        spatial_dims=spatial_dims, in_channels=in_channels, out_channels=out_channels, base_channels=base_channels,
        max_channels=base_channels * 2 ** len(steps), strides=steps, norm="none", activation="relu",
        downsample="maxpool", dropout=dropout, initialization="keras", skips=skips,
    )  # fmt: skip


@MODELS.register("unet_wide")
def unet_wide(
    *,
    spatial_dims: int = 2,
    in_channels: int = 1,
    out_channels: int = 1,
    strides: Strides | None = None,
    depth: int | None = None,
    skips: SkipSettings = None,
) -> UNet:
    """`unet_classic` with 35..560 channels, about as large as UNet++.

    Source: Zhou et al. 2019, arXiv 1912.05074
    """
    return unet_classic(
        spatial_dims=spatial_dims, in_channels=in_channels, out_channels=out_channels, base_channels=35,
        strides=strides, depth=depth, skips=skips,
    )  # fmt: skip

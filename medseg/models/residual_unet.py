"""The residual U-Net of the glioma paper: context aggregation, localisation, deep supervision summed at the logits.

Papers: Hu et al. 2018 (arXiv 1810.09488), which names a "3D-residual-Unet" with context aggregation and localisation
pathways and puts the multi-level activation (`medseg.targets.NestedClasses`) on it; Isensee et al. 2017 (BRATS, arXiv
1802.10508), whose network that is. No code of Hu et al. is published and the text of the papers was not at hand.

Read in a public port of Isensee's network (ellisdg/3DUnetCNN, 07529f0): base 16, five levels, the layers of a level,
the decoder and the sum of the heads; so the parameter counts, which are tested. Each convolution has a bias, instance
normalisation and a leaky ReLU of Keras' default slope, 0.3. Departure: the port's normalisation (keras-contrib)
divides by the standard deviation + 1e-3, ours by the root of the variance + 1e-5; they differ where a channel hardly
varies. Remembered of the original: pre-activation context blocks (`pre_activation`) and slope 0.01 (`slope`). Ours:
2D, strides of a plan, the limit of the doubling, He-normal initialisation, and that for one logit per voxel the heads
have one channel and their logits (not activations) are summed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn

from medseg.blocks.conv import conv
from medseg.blocks.initialization import he_normal
from medseg.blocks.norm import InstanceNorm
from medseg.blocks.skip import SkipSettings
from medseg.blocks.skip.path import SkipPath
from medseg.blocks.stages import Strides, check_size, resolve_strides, stage_channels, total_stride
from medseg.errors import UsageError
from medseg.models import MODELS

DROPOUTS: dict[int, type[nn.Module]] = {2: nn.Dropout2d, 3: nn.Dropout3d}


@MODELS.register("residual_unet")
class ResidualUNet(nn.Module):
    """Residual U-Net of the glioma paper: one tensor of logits, the sum of heads at three resolutions.

    Source: Hu et al. 2018, arXiv 1810.09488; Isensee et al. 2017

    Args:
        spatial_dims: 2 or 3.
        in_channels: image channels.
        out_channels: logits per voxel, 1 for the multi-level activation.
        base_channels: channels of the first level, doubled at every further level.
        max_channels: upper limit of the doubling.
        strides: per level, a number or one per axis, the first 1, e.g. a plan's strides. None: five levels.
        depth: number of down-samplings, instead of `strides`.
        supervised_levels: heads, from the finest level down; at most one per level of the decoder.
        dropout: probability of zeroing a channel between the two convolutions of a context block.
        slope: negative slope of the leaky ReLUs.
        pre_activation: normalisation and activation before each convolution of a context block, from memory of the
            original; the number of parameters is the same.
        skips: the skip path, see `medseg.blocks.skip`. None: concatenation.

    Raises:
        UsageError: for contradicting settings.
    """

    encoder_names = ("context.*",)

    def __init__(
        self,
        *,
        spatial_dims: int = 3,
        in_channels: int = 1,
        out_channels: int = 2,
        base_channels: int = 16,
        max_channels: int = 320,
        strides: Strides | None = None,
        depth: int | None = None,
        supervised_levels: int = 3,
        dropout: float = 0.3,
        slope: float = 0.3,
        pre_activation: bool = False,
        skips: SkipSettings = None,
    ) -> None:
        super().__init__()
        steps = resolve_strides(strides, depth, spatial_dims)
        channels = stage_channels(base_channels, max_channels, len(steps))
        if supervised_levels < 1 or not 0 <= dropout < 1:
            raise UsageError(f"supervised_levels is {supervised_levels} (at least 1), dropout {dropout} (0 to below 1)")
        self.divisor = total_stride(steps)
        self.sums_heads = True
        inputs = [in_channels, *channels]
        self.context = nn.ModuleList(
            ContextLevel(spatial_dims, a, b, step, dropout, slope, pre_activation)
            for a, b, step in zip(inputs, channels, steps, strict=False)
        )
        path = SkipPath(skips, spatial_dims=spatial_dims, channels=channels, decoder_channels=channels[:-1])
        self.localisation = nn.ModuleList(
            LocalisationLevel(
                spatial_dims, channels[i + 1], channels[i], path.out_channels[str(i)], steps[i + 1], slope
            )
            for i in range(len(steps) - 1)
        )
        supervised = channels[: min(supervised_levels, len(steps) - 1)]
        self.heads = nn.ModuleList(conv(spatial_dims, c, out_channels, kernel=1) for c in supervised)
        self.enlarge = nn.ModuleList(_enlarge(step) for step in steps[1 : len(supervised)])
        he_normal(self, "leaky_relu")
        self.skips = path

    def forward(self, image: Tensor) -> Tensor:
        """image (B, in_channels, *S), S a multiple of `divisor` -> logits (B, out_channels, *S), in training too."""
        check_size(image, self.divisor)
        x, encoded = image, []
        for level in self.context:
            x = level(x)
            encoded.append(x)
        encoded = self.skips(encoded)
        x, features = encoded[-1], []
        for i in reversed(range(len(self.localisation))):
            x = self.localisation[i](x, partial(self.skips.join, i, encoded[i]))
            features.append(x)
        return self._summed(features[::-1])

    def _summed(self, features: Sequence[Tensor]) -> Tensor:
        """Logits of the supervised levels, finest first, added from the coarsest up."""
        logits = self.heads[-1](features[len(self.heads) - 1])
        for level in reversed(range(len(self.heads) - 1)):
            logits = self.enlarge[level](logits) + self.heads[level](features[level])
        return logits


class ContextLevel(nn.Module):
    """A (strided) convolution c, and c + context(c): two convolutions with spatial dropout between them."""

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        channels: int,
        stride: Sequence[int],
        dropout: float,
        slope: float,
        pre_activation: bool,
    ) -> None:
        super().__init__()
        entry = conv(spatial_dims, in_channels, channels, stride=stride)
        convs = [conv(spatial_dims, channels, channels) for _ in range(2)]
        norms = [InstanceNorm(channels, slope=slope) for _ in range(3)]
        drop = DROPOUTS[spatial_dims](dropout)
        if pre_activation:  # the sum is normalised, so that skips and the next level see what they do otherwise
            self.entry, self.close = nn.Sequential(entry), nn.Sequential(norms[2])
            self.context = nn.Sequential(norms[0], convs[0], drop, norms[1], convs[1])
        else:
            self.entry, self.close = nn.Sequential(entry, norms[0]), nn.Sequential()
            self.context = nn.Sequential(convs[0], norms[1], drop, convs[1], norms[2])

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, *S) -> (B, channels, *S / stride)."""
        x = self.entry(x)
        return self.close(x + self.context(x))


class LocalisationLevel(nn.Module):
    """Nearest-neighbour up-sampling and a convolution, the skip, and two convolutions that recombine both."""

    def __init__(
        self, spatial_dims: int, below: int, channels: int, merged: int, stride: Sequence[int], slope: float
    ) -> None:
        super().__init__()
        self.up = nn.Sequential(
            _enlarge(stride), conv(spatial_dims, below, channels), InstanceNorm(channels, slope=slope)
        )
        self.merge = nn.Sequential(
            conv(spatial_dims, merged, channels),
            InstanceNorm(channels, slope=slope),
            conv(spatial_dims, channels, channels, kernel=1),
            InstanceNorm(channels, slope=slope),
        )

    def forward(self, x: Tensor, join: Callable[[Tensor], Tensor]) -> Tensor:
        """x (B, below, *S / stride), the merge of (B, channels, *S) with the skip -> (B, channels, *S)."""
        return self.merge(join(self.up(x)))


def _enlarge(stride: Sequence[int]) -> nn.Module:
    return nn.Upsample(scale_factor=tuple(float(step) for step in stride), mode="nearest")

"""VoVNet: encoders of one-shot aggregation blocks.

Papers: Lee et al. 2019, "An Energy and GPU-Computation Efficient Backbone Network for Real-Time Object Detection"
(arXiv 1904.09730); Lee and Park 2020, CenterMask (arXiv 1911.06667: VoVNetV2 with effective squeeze-excitation, which
its code has in every module, timm only in the last of a stage). Written from a description, not from their code.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from medseg.blocks.conv import MAX_POOLS, ConvNormAct, conv
from medseg.blocks.initialization import he_normal
from medseg.errors import UsageError, nearest


class Variant(NamedTuple):
    """Per stage: width of the inner convolutions, output channels, modules; layers per module; whether it is V2."""

    widths: tuple[int, ...]
    channels: tuple[int, ...]
    modules: tuple[int, ...]
    layers: int
    excite: bool


_SLIM, _FULL = (64, 80, 96, 112), (128, 160, 192, 224)
_SLIM_OUT, _FULL_OUT = (128, 256, 384, 512), (256, 512, 768, 1024)
VARIANTS = {
    "27_slim": Variant(_SLIM, _SLIM_OUT, (1, 1, 1, 1), 5, False),
    "39": Variant(_FULL, _FULL_OUT, (1, 1, 2, 2), 5, False),
    "57": Variant(_FULL, _FULL_OUT, (1, 1, 4, 3), 5, False),
    "19": Variant(_FULL, _FULL_OUT, (1, 1, 1, 1), 3, True),
    "19_slim": Variant(_SLIM, (112, *_SLIM_OUT[1:]), (1, 1, 1, 1), 3, True),
    "99": Variant(_FULL, _FULL_OUT, (1, 3, 9, 3), 5, True),
}


class EffectiveSqueezeExcite(nn.Module):
    """x times a gate per channel: relu6(w mean(x) + 3) / 6, w one full layer.

    Source: Lee and Park 2020, arXiv 1911.06667

    Zero weights and a bias of 3 give the identity.
    """

    def __init__(self, spatial_dims: int, channels: int) -> None:
        super().__init__()
        self.full = conv(spatial_dims, channels, channels, kernel=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *S) -> (B, C, *S)."""
        return x * nn.functional.hardsigmoid(self.full(x.mean(dim=list(range(2, x.ndim)), keepdim=True)))


class OneShotAggregation(nn.Module):
    """A chain of 3x3 convolutions of equal width whose outputs are concatenated once, at the end.

    Source: Lee et al. 2019, arXiv 1904.09730

    Args:
        in_channels: channels of the input.
        width: channels of each convolution of the chain.
        out_channels: channels after the 1x1 convolution that joins input and chain.
        layers: convolutions of the chain.
        spatial_dims: 2 or 3.
        identity: add the input to the output, as VoVNets do in every module but a stage's first. None: where the
            channels allow it.
        excite: gate the output's channels before that (V2).
        norm: see `medseg.blocks.norm.make_norm`.

    Raises:
        UsageError: an identity between different channels.
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        out_channels: int,
        *,
        layers: int = 5,
        spatial_dims: int,
        identity: bool | None = None,
        excite: bool = True,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        self.identity = in_channels == out_channels if identity is None else identity
        if self.identity and in_channels != out_channels:
            raise UsageError(f"identity=True needs equal channels, not {in_channels} and {out_channels}")
        style: dict[str, Any] = {"norm": norm, "activation": "relu"}
        inputs = [in_channels] + [width] * (layers - 1)
        self.chain = nn.ModuleList(ConvNormAct(spatial_dims, c, width, **style) for c in inputs)
        self.join = ConvNormAct(spatial_dims, in_channels + layers * width, out_channels, kernel=1, **style)
        self.excite = EffectiveSqueezeExcite(spatial_dims, out_channels) if excite else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, *S) -> (B, out_channels, *S)."""
        outputs = [x]
        for layer in self.chain:
            outputs.append(layer(outputs[-1]))
        joined = self.excite(self.join(torch.cat(outputs, dim=1)))
        return joined + x if self.identity else joined


class VoVNet(nn.Module):
    """A headless VoVNet.

    Attributes:
        channels: of the five features that `forward` returns.
        reductions: of their resolution: 2, 4, 8, 16, 32.
    """

    def __init__(self, variant: Variant, spatial_dims: int, in_channels: int, norm: str) -> None:
        super().__init__()
        self.channels, self.reductions = (64, *variant.channels), (2, 4, 8, 16, 32)
        style: dict[str, Any] = {"norm": norm, "activation": "relu"}
        self.stem = nn.Sequential(
            ConvNormAct(spatial_dims, in_channels, 64, stride=2, **style), ConvNormAct(spatial_dims, 64, 64, **style)
        )
        self.stem_down = ConvNormAct(spatial_dims, 64, 128, stride=2, **style)
        self.stages, previous = nn.ModuleList(), 128
        for number, (width, out, modules) in enumerate(
            zip(variant.widths, variant.channels, variant.modules, strict=True)
        ):
            stage = nn.Sequential(MAX_POOLS[spatial_dims](3, 2, ceil_mode=True)) if number else nn.Sequential()
            for module in range(modules):
                stage.append(
                    OneShotAggregation(
                        previous,
                        width,
                        out,
                        layers=variant.layers,
                        spatial_dims=spatial_dims,
                        identity=module > 0,
                        excite=variant.excite,
                        norm=norm,
                    )
                )
                previous = out
            self.stages.append(stage)
        he_normal(self, "relu")

    def forward(self, image: Tensor) -> list[Tensor]:
        """image (B, in_channels, *S), S multiples of 32 -> five features, finest first, (B, C_i, *S / reduction_i)."""
        features = [self.stem(image)]
        x = self.stem_down(features[0])
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


def vovnet_encoder(variant: str, *, spatial_dims: int, in_channels: int = 3, norm: str = "batch") -> VoVNet:
    """A VoVNet without its head, in 2D or 3D.

    With three 2D channels ``"27_slim"``, ``"39"`` and ``"57"`` have 3,012,736, 21,575,296 and 35,615,296 parameters.

    Args:
        variant: ``"27_slim"``, ``"39"``, ``"57"``; of V2 ``"19"``, ``"19_slim"``, ``"99"``.
        spatial_dims: 2 or 3.
        in_channels: image channels.
        norm: see `medseg.blocks.norm.make_norm`.

    Raises:
        UsageError: an unknown variant.
    """
    if variant not in VARIANTS:
        raise UsageError(f"unknown VoVNet '{variant}': {nearest(variant, VARIANTS)}")
    return VoVNet(VARIANTS[variant], spatial_dims, in_channels, norm)

"""Encoders by name for U-shaped networks: ``vovnet/27_slim``, or any model of timm with features: ``timm/resnet34``."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from medseg.blocks.conv import double_conv
from medseg.blocks.initialization import he_normal
from medseg.blocks.vovnet import vovnet_encoder
from medseg.errors import InputRefused, UsageError, nearest


class NamedEncoder(nn.Module):
    """A backbone of another family, beside a stem that gives the decoder its features of full resolution.

    Args:
        name: ``family/variant``.
        spatial_dims: 2 or 3.
        in_channels: image channels.
        base_channels: of the stem, two convolutions of the image.
        layers: ``norm``, ``activation`` and ``dropout`` of the stem.

    Attributes:
        channels: per feature, finest first.
        strides: between a feature and the one before it, the first 1, one per axis.

    Raises:
        UsageError: an unknown family or variant, with the nearest; a 2D family in 3D.
    """

    def __init__(
        self, name: str, *, spatial_dims: int, in_channels: int, base_channels: int, layers: Mapping[str, Any]
    ) -> None:
        super().__init__()
        self.name, self.in_channels = name, in_channels
        family, _, variant = name.partition("/")
        if family not in BACKBONES:
            raise UsageError(f"unknown encoder family '{family}': {nearest(family, BACKBONES)}")
        self.backbone, channels, reductions, self.made_for = BACKBONES[family](variant, spatial_dims, in_channels)
        # timm says so; sizes cannot, as height and channels may be equal.
        self.channels_last = str(getattr(self.backbone, "output_fmt", "NCHW")).endswith("NHWC")
        self.stem = double_conv(spatial_dims, in_channels, base_channels, layers)
        he_normal(self.stem, layers["activation"])
        self.channels = [base_channels, *channels]
        steps = [b // a for a, b in zip((1, *reductions), reductions, strict=False)]
        self.strides = tuple((step,) * spatial_dims for step in (1, *steps))

    def forward(self, image: Tensor) -> list[Tensor]:
        """image (B, in_channels, *S) -> features, finest first, each (B, C_i, *S_i).

        Raises:
            UsageError: a size that a backbone of fixed size cannot take.
        """
        features = self.backbone(image) if self.made_for is None else self._at_fixed_size(image)
        return [self.stem(image), *(x.movedim(-1, 1) if self.channels_last else x for x in features)]

    def _at_fixed_size(self, image: Tensor) -> list[Tensor]:
        try:
            return cast(list[Tensor], self.backbone(image))
        except (AssertionError, RuntimeError) as error:
            wanted = "x".join(map(str, self.made_for or ()))
            problem = f"encoder '{self.name}' is made for images of {wanted}: {' '.join(str(error).split())[:120]}"
            fix = f"set plan.patch_size=[{wanted.replace('x', ',')}], or choose an encoder of any size"
            raise UsageError(problem, fix=fix) from error

    def load_backbone(self, state: Mapping[str, Tensor]) -> None:
        """Weights of the whole classifier for a timm backbone, as timm publishes them.

        timm drops the classifier, renames what its feature extractor renames, and adapts the first convolution to the
        image channels. For VoVNet: the state of `medseg.blocks.vovnet.vovnet_encoder`.

        Raises:
            InputRefused: they are not those of this backbone.
        """
        try:
            self.backbone.load_state_dict(self._adapted(state))
        except (RuntimeError, KeyError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputRefused(f"the weights are not those of encoder '{self.name}': {reason}") from None

    def _adapted(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        family, _, variant = self.name.partition("/")
        if family != "timm":
            return state
        found = []
        settings: tuple[dict[str, Any], ...] = (
            {},
            {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": dict(state)}},
        )
        with torch.random.fork_rng([]):
            for cfg in settings:
                torch.manual_seed(0)
                found.append(_features_of(variant, self.in_channels, **cfg)[0].state_dict())
        # timm takes what it finds and leaves the rest as it was: what equals the untrained network was not there.
        left = [name for name, x in found[1].items() if x.ndim > 1 and torch.equal(x, found[0][name])]
        if left:
            raise ValueError(f"they lack {', '.join(left[:3])}")
        return found[1]


def encoder_name(encoder: str | Mapping[str, str]) -> str:
    """``"plain"`` or ``{"name": "plain"}`` -> ``"plain"``. Raises UsageError for another form."""
    name = encoder["name"] if isinstance(encoder, Mapping) and set(encoder) == {"name"} else encoder
    if not isinstance(name, str):
        raise UsageError(f"encoder is {encoder!r} (expected a name, or a mapping with the one key name)")
    return name


# The network, channels and reductions of its features, and the only size that it takes, if there is one.
Backbone = tuple[nn.Module, Sequence[int], Sequence[int], Sequence[int] | None]


def _vovnet(variant: str, spatial_dims: int, in_channels: int) -> Backbone:
    backbone = vovnet_encoder(variant, spatial_dims=spatial_dims, in_channels=in_channels)
    return backbone, backbone.channels, backbone.reductions, None


def _timm(variant: str, spatial_dims: int, in_channels: int) -> Backbone:
    if spatial_dims != 2:
        raise UsageError(f"encoder 'timm/{variant}' is for images only", fix="use vovnet/27_slim or residual in 3D")
    import timm

    if not timm.is_model(variant):
        raise UsageError(f"unknown timm model '{variant}': {_few(nearest(variant, timm.list_models()))}")
    try:
        backbone, made_for = _features_of(variant, in_channels)
    except (RuntimeError, AssertionError, AttributeError) as error:
        raise UsageError(f"timm model '{variant}' gives no features of several resolutions ({error})") from None
    information = cast(Any, backbone).feature_info
    return backbone, information.channels(), information.reduction(), made_for


def _features_of(variant: str, in_channels: int, **more: Any) -> tuple[nn.Module, Sequence[int] | None]:
    """timm's extractor of features, of any image size where it can; and the size of those that cannot."""
    import timm

    shared = {"features_only": True, "in_chans": in_channels, **more}
    if not timm.get_pretrained_cfg_value(variant, "fixed_input_size"):
        return timm.create_model(variant, **shared), None
    with contextlib.suppress(TypeError):  # families that know no such argument
        return timm.create_model(variant, dynamic_img_size=True, **shared), None
    return timm.create_model(variant, **shared), (timm.get_pretrained_cfg_value(variant, "input_size") or ())[1:]


def _few(text: str) -> str:
    return text.partition(" (known")[0] if text.startswith("did") else "timm.list_models() lists them"


BACKBONES: dict[str, Callable[[str, int, int], Backbone]] = {"timm": _timm, "vovnet": _vovnet}

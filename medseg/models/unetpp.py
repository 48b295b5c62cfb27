"""UNet++: U-Nets of depth 1..4 that share one encoder, with decoders densely linked at each resolution.

Papers: Zhou et al., "UNet++: Redesigning Skip Connections to Exploit Multiscale Features in Image Segmentation",
IEEE TMI 2019 (arXiv 1912.05074); Zhou et al., DLMIA 2018 (arXiv 1807.10165).

Node X^{i,j} stands at down-sampling level i and position j along the skip, for i + j <= depth:
X^{i,0} = H(down(X^{i-1,0})) and, for j > 0, X^{i,j} = H([Up(X^{i+1,j-1}), X^{i,0}, ..., X^{i,j-1}]).

Read in the official Keras code (snapshot 2659ddc): the topology; H = (3x3 convolution, ReLU, dropout 0.5) twice, with
biases, without normalisation and with Keras' he_normal weights; 2x2 transposed convolutions with Keras' default
weights, Glorot's; the order of concatenation; a 1x1 head on every X^{0,j}, j >= 1. `unetpp_batchnorm` follows pytorch-
nested-unet (557ea02), `unetpp_nnunet` the official repository's fork of nnU-Net v1. That fork supervises the
shallowest head only (its issue 75); here every head is supervised, as the paper describes it. Ours: `dense=False` is
built from the ablation's rule, since no code of UNet+ is published; 3D with the paper's layers; `inference="ensemble"`
in the form of logits (see `UNetPlusPlus`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from medseg.blocks.conv import MAX_POOLS, conv, double_conv, resize, upsample_conv
from medseg.blocks.encoders import NamedEncoder, encoder_name
from medseg.blocks.initialization import initialize
from medseg.blocks.skip import SkipSettings
from medseg.blocks.skip.nested import decoder_positions
from medseg.blocks.skip.path import SkipPath, SkipSite
from medseg.blocks.stages import Strides, check_size, resolve_strides, stage_channels, total_stride
from medseg.errors import UsageError, nearest
from medseg.models import MODELS

INFERENCE = ("last", "ensemble")
UPSAMPLE = ("transpose", "linear")
DOWNSAMPLE = ("maxpool", "stride")


@MODELS.register("unetpp")
class UNetPlusPlus(nn.Module):
    """UNet++ with the layers of the official code.

    Source: Zhou et al. 2019, arXiv 1912.05074

    Args:
        spatial_dims: 2 or 3.
        in_channels: image channels.
        out_channels: logits per voxel: classes with background, or 1 for a sigmoid.
        depth: number of down-samplings. None: what `strides` says, else 4. Depth k is the paper's L^k.
        base_channels: channels of level 0, doubled at every further level.
        max_channels: upper limit of the doubling.
        strides: per level, a number or one per axis, the first 1, e.g. a plan's strides.
        deep_supervision: a head on every X^{0,j}, j >= 1, instead of X^{0,depth} only; training then returns the
            list of logits [X^{0,depth}, ..., X^{0,1}], all of full resolution. None: from the paper's depth of 4 on,
            because L^1..L^3 are its pruned networks, which have one head.
        dense: each node sees all nodes before it on its level; False: the last only, the paper's ablation UNet+.
        norm: ``"none"`` (paper), ``"batch"``, ``"instance"`` or ``"group"``.
        activation: ``"relu"`` (paper) or ``"leaky_relu"``.
        dropout: probability of zeroing an element after each activation.
        downsample: ``"maxpool"`` (paper) or ``"stride"`` of the level's first convolution.
        upsample: ``"transpose"`` (paper) convolution or ``"linear"`` interpolation, which keeps the channels.
        bias: biases of transposed convolutions and heads.
        conv_bias: biases of the other convolutions.
        inference: what evaluation returns: the logits of the ``"last"`` head, of head k (1..depth; deeper nodes are not
            computed), or of the ``"ensemble"``: the mean of the heads' probabilities, given as the logits that the same
            activation turns into that mean, so that targets and exported models need not know of it.
        encoder: ``"plain"``, the paper's backbone X^{i,0}, or one by name, ``"vovnet/27_slim"`` or ``"timm/resnet34"``,
            which then decides strides and channels of all levels but the finest; or ``{"name": ...}``.
        skips: the skip paths, see `medseg.blocks.skip`: each decoder node has one of its own, whose skip is what the
            node sees of its level; pyramid operations see the backbone X^{i,0}. None: concatenation, the paper's.
        initialization: how the weights begin, ``"keras"`` (the paper's code), ``"he"`` (nnU-Net's) or ``"torch"``, see
            `medseg.blocks.initialization.initialize`.
        probabilities: the activation that ``"ensemble"`` averages over: ``"softmax"`` or ``"sigmoid"``. None: softmax
            for two and more channels.

    Raises:
        UsageError: for unknown names or contradicting settings.
    """

    encoder_names = ("nodes.?_0.*", "encoder.*")  # for `medseg.blocks.skip.attach.attach_skips`

    def __init__(
        self,
        *,
        spatial_dims: int = 2,
        in_channels: int = 1,
        out_channels: int = 1,
        depth: int | None = None,
        base_channels: int = 32,
        max_channels: int = 512,
        strides: Strides | None = None,
        deep_supervision: bool | None = None,
        dense: bool = True,
        norm: str = "none",
        activation: str = "relu",
        dropout: float = 0.5,
        downsample: str = "maxpool",
        upsample: str = "transpose",
        bias: bool = True,
        conv_bias: bool = True,
        inference: str | int = "last",
        probabilities: str | None = None,
        initialization: str = "keras",
        encoder: str | Mapping[str, str] = "plain",
        skips: SkipSettings = None,
    ) -> None:
        super().__init__()
        self.strides = resolve_strides(strides, depth, spatial_dims)
        self.probabilities = probabilities or ("softmax" if out_channels > 1 else "sigmoid")
        _check_names(downsample, upsample, self.probabilities)
        width = stage_channels(base_channels, max_channels, len(self.strides))
        layers = {"norm": norm, "activation": activation, "dropout": dropout, "bias": conv_bias}
        self.nodes, self.ups, self.heads = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        sites: dict[str, SkipSite] = {}
        previous, kind = in_channels, encoder_name(encoder)
        if kind != "plain":
            self.encoder = NamedEncoder(
                kind, spatial_dims=spatial_dims, in_channels=in_channels, base_channels=base_channels, layers=layers
            )
            width, self.strides = self.encoder.channels, self.encoder.strides
        else:
            for i, stride in enumerate(self.strides):
                self.nodes[f"{i}_0"] = backbone_node(spatial_dims, previous, width[i], stride, downsample, layers)
                previous = width[i]
        self.depth, self.dense, self.upsample = len(self.strides) - 1, dense, upsample
        self.divisor = total_stride(self.strides)
        for i, j in decoder_positions(self.depth):
            from_below = width[i + 1] if upsample == "linear" else width[i]
            if upsample == "transpose":
                self.ups[f"{i}_{j}"] = upsample_conv(
                    spatial_dims, width[i + 1], width[i], self.strides[i + 1], bias=bias
                )
            sites[f"{i}_{j}"] = SkipSite(i, width[i] * (j if dense else 1), from_below)
        path = SkipPath(skips, spatial_dims=spatial_dims, channels=width, sites=sites)
        for name, site in sites.items():
            self.nodes[name] = double_conv(spatial_dims, path.out_channels[name], width[site.level], layers)
        supervised = self.depth >= 4 if deep_supervision is None else deep_supervision
        for j in range(1 if supervised else self.depth, self.depth + 1):
            self.heads[str(j)] = conv(spatial_dims, width[0], out_channels, kernel=1, bias=bias)
        self.inference = inference
        for part in (self.nodes, self.ups, self.heads):  # a backbone by name starts as its own family does
            initialize(part, initialization, activation)
        self.skips = path  # after the initialisation: its parts start as they need to

    @property
    def inference(self) -> str | int:
        """What evaluation returns: ``"last"``, ``"ensemble"`` or a head's number; may be set at any time."""
        return self._inference

    @inference.setter
    def inference(self, value: str | int) -> None:
        known = [*INFERENCE, *self.heads]
        if str(value) not in known:
            raise UsageError(f"unknown inference '{value}': {nearest(str(value), known)}")
        self._inference = value if value in INFERENCE else int(value)

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """image (B, in_channels, *S), S a multiple of `divisor` -> logits (B, out_channels, *S).

        In training with deep supervision: logits of every head, the deepest (best) first, all of shape (B, K, *S).
        """
        check_size(image, self.divisor)
        if self.training and len(self.heads) > 1:
            return self.head_logits(image)[::-1]
        if self.inference == "ensemble" and not self.training:
            return mean_logits(self.head_logits(image), self.probabilities)
        k = self.depth if self.training or self.inference == "last" else int(self.inference)
        return self.heads[str(k)](self.top_nodes(image, k)[k - 1])

    def head_logits(self, image: Tensor) -> list[Tensor]:
        """image (B, in_channels, *S) -> logits (B, K, *S) of every head, the shallowest first."""
        tops = self.top_nodes(image, self.depth)
        return [head(tops[int(j) - 1]) for j, head in self.heads.items()]

    def top_nodes(self, image: Tensor, depth: int) -> list[Tensor]:
        """image (B, in_channels, *S) -> [X^{0,1}, ..., X^{0,depth}], computing only nodes with i + j <= `depth`."""
        rows = [[x] for x in self.skips(self.backbone(image, self.depth if self.skips.needs_all_features else depth))]
        for i, j in decoder_positions(depth):
            seen = rows[i] if self.dense else rows[i][-1:]
            skip = torch.cat(seen, dim=1) if len(seen) > 1 else seen[0]
            below = self._up(rows[i + 1][j - 1], i, j)
            rows[i].append(self.nodes[f"{i}_{j}"](self.skips.join(f"{i}_{j}", skip, below)))
        return rows[0][1:]

    def backbone(self, image: Tensor, depth: int) -> list[Tensor]:
        """image (B, in_channels, *S) -> [X^{0,0}, ..., X^{depth,0}]."""
        if hasattr(self, "encoder"):
            return self.encoder(image)[: depth + 1]
        features, x = [], image
        for i in range(depth + 1):
            x = self.nodes[f"{i}_0"](x)
            features.append(x)
        return features

    def prune(self, k: int) -> UNetPlusPlus:
        """The paper's pruned network L^k: only nodes with i + j <= k and head k, sharing this model's weights.

        Raises:
            UsageError: when there is no head k, because it was not supervised or lies deeper than the network, when
                the skip path needs the levels that would go, or when the encoder is one by name.
        """
        if hasattr(self, "encoder"):
            raise UsageError("a network with an encoder by name cannot be pruned", fix=f"set inference={k} instead")
        if str(k) not in self.heads:
            raise UsageError(f"cannot prune to depth {k} (the model has heads {', '.join(self.heads)})")
        if self.skips.needs_all_features and k < self.depth:
            raise UsageError(f"cannot prune to depth {k}: the skip path looks at all {self.depth + 1} levels")
        shared = {id(tensor): tensor for tensor in (*self.parameters(), *self.buffers())}
        pruned = copy.deepcopy(self, shared)  # copies the structure; tensors already in the memo are not copied
        kept = {f"{i}_{j}" for i in range(k + 1) for j in range(k + 1 - i)}
        for parts, names in ((pruned.nodes, kept), (pruned.ups, kept), (pruned.heads, {str(k)})):
            for name in set(parts) - names:
                del parts[name]
        pruned.skips.keep_sites(kept)
        pruned.depth, pruned.strides = k, self.strides[: k + 1]
        pruned.divisor, pruned.inference = total_stride(pruned.strides), "last"
        return pruned

    def _up(self, x: Tensor, i: int, j: int) -> Tensor:
        if self.upsample == "transpose":
            return self.ups[f"{i}_{j}"](x)
        size = [n * step for n, step in zip(x.shape[2:], self.strides[i + 1], strict=True)]
        return resize(x, size, align_corners=True)


def backbone_node(
    spatial_dims: int, inputs: int, width: int, stride: Sequence[int], downsample: str, layers: dict
) -> nn.Module:
    """X^{i,0}: down-sampling and H."""
    if downsample == "stride" or max(stride) == 1:
        return double_conv(spatial_dims, inputs, width, layers, stride)
    pool = MAX_POOLS[spatial_dims](tuple(stride), tuple(stride))
    return nn.Sequential(pool, *double_conv(spatial_dims, inputs, width, layers))


def mean_logits(heads: Sequence[Tensor], probabilities: str) -> Tensor:
    """Logits whose softmax or sigmoid is the mean of the heads' softmax or sigmoid; float32 at least.

    Computed from log-probabilities, so that certain heads do not overflow: for the sigmoid,
    logit(mean p) = log(sum p) - log(sum (1 - p)).
    """
    stacked = torch.stack([h.to(torch.promote_types(h.dtype, torch.float32)) for h in heads])
    if probabilities == "softmax":
        return stacked.log_softmax(2).logsumexp(0) - math.log(len(heads))
    log_sigmoid = nn.functional.logsigmoid
    return log_sigmoid(stacked).logsumexp(0) - log_sigmoid(-stacked).logsumexp(0)


def _check_names(downsample: str, upsample: str, probabilities: str) -> None:
    for key, value, known in (
        ("downsample", downsample, DOWNSAMPLE),
        ("upsample", upsample, UPSAMPLE),
        ("probabilities", probabilities, ("softmax", "sigmoid")),
    ):
        if value not in known:
            raise UsageError(f"unknown {key} '{value}': {nearest(value, known)}")


@MODELS.register("unetpp_batchnorm")
def unetpp_batchnorm(
    *,
    spatial_dims: int = 2,
    in_channels: int = 1,
    out_channels: int = 1,
    depth: int | None = None,
    base_channels: int = 32,
    strides: Strides | None = None,
    deep_supervision: bool = False,
    inference: str | int = "last",
    skips: SkipSettings = None,
) -> UNetPlusPlus:
    """UNet++ with batch normalisation and linear up-sampling.

    Source: pytorch-nested-unet (557ea02), after Zhou et al. 2018

    Arguments as in `UNetPlusPlus`.
    """
    return UNetPlusPlus(
        spatial_dims=spatial_dims, in_channels=in_channels, out_channels=out_channels, depth=depth,
        base_channels=base_channels, strides=strides, deep_supervision=deep_supervision, inference=inference,
        norm="batch", upsample="linear", dropout=0.0, initialization="torch", skips=skips,
    )  # fmt: skip


@MODELS.register("unetpp_nnunet")
def unetpp_nnunet(
    *,
    spatial_dims: int = 3,
    in_channels: int = 1,
    out_channels: int = 2,
    depth: int | None = None,
    base_channels: int = 32,
    max_channels: int = 320,
    strides: Strides | None = None,
    norm: str = "instance",
    deep_supervision: bool = True,
    dropout: float = 0.0,
    inference: str | int = "last",
    encoder: str | Mapping[str, str] = "plain",
    skips: SkipSettings = None,
) -> UNetPlusPlus:
    """UNet++ with nnU-Net's layers, for volumes.

    Source: the UNet++ repository's fork of nnU-Net v1

    Arguments as in `UNetPlusPlus`; without `strides` and `depth` it has the fork's five down-samplings.
    """
    return UNetPlusPlus(
        spatial_dims=spatial_dims, in_channels=in_channels, out_channels=out_channels,
        depth=5 if depth is None and strides is None else depth, base_channels=base_channels, max_channels=max_channels,
        strides=strides, norm=norm, deep_supervision=deep_supervision, dropout=dropout, inference=inference,
        activation="leaky_relu", downsample="stride", bias=False, initialization="he", encoder=encoder,
        skips=skips,
    )  # fmt: skip

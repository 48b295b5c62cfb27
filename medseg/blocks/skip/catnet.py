"""CATNet's two operations on a pyramid: dense feature pyramid and spatial context pyramid.

Paper: Liu et al. 2023, "Learning to Aggregate Multi-Scale Context for Instance Segmentation in Remote Sensing Images"
(arXiv 2111.11057). Written from a description, not from its code, which is under another licence.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from medseg.blocks.conv import conv, resize
from medseg.blocks.norm import make_norm
from medseg.blocks.skip import PYRAMID, PyramidOperation, SkipContext
from medseg.blocks.skip.checks import check_counts
from medseg.blocks.skip.tuner import set_zero

ADAPTIVE_MAX_POOLS = {2: nn.functional.adaptive_max_pool2d, 3: nn.functional.adaptive_max_pool3d}


@PYRAMID.register("dense_fpn")
class DenseFeaturePyramid(PyramidOperation):
    """Every level gathers from all coarser ones, then from all finer ones, weighted by learnt softmax weights.

    Source: Liu et al. 2023, CATNet, arXiv 2111.11057

    Per stack, with inputs L_i: T_i = f_i(relu(L_i + sum over coarser j of softmax(a_i)_j up(L_j))), then B_i =
    g_i(relu(L_i + T_i + sum over finer j of softmax(b_i)_j maxpool(T_j))); f and g are 1x1 to C/2, 3x3, 1x1 to C, each
    normalised, and so are the laterals, 1x1 convolutions that bring each level to C channels (in the official
    configurations, with synchronised batch normalisation; here `norm`). The weights a and b start equal, are shared by
    the stacks, and are absent where there is one source: 18 with five levels. Ours: a 1x1 convolution brings the
    result back to each level's channels.

    Args:
        spatial_dims: 2 or 3.
        channels: per level, finest first.
        width: C. None: the smallest of `channels` (256 in the paper).
        stacks: 5 in the paper, which is much for a U-Net.
        reduction: C over the channels inside f and g.
        norm: see `medseg.blocks.norm.make_norm`.

    Raises:
        ValueError: `width`, `stacks` or `reduction` is not at least 1.
    """

    def __init__(
        self,
        *,
        spatial_dims: int,
        channels: Sequence[int],
        width: int | None = None,
        stacks: int = 1,
        reduction: int = 2,
        norm: str = "instance",
    ) -> None:
        super().__init__()
        width, levels = min(channels) if width is None else width, len(channels)
        check_counts(width=width, stacks=stacks, reduction=reduction)
        self.laterals = nn.ModuleList(nn.Sequential(*conv_norm(spatial_dims, c, width, 1, norm)) for c in channels)
        self.project = nn.ModuleList(conv(spatial_dims, width, c, kernel=1) for c in channels)
        self.down, self.up = (
            nn.ModuleList(
                nn.ModuleList(bottleneck(spatial_dims, width, reduction, norm) for _ in channels) for _ in range(stacks)
            )
            for _ in range(2)
        )
        self.coarser = _weights(levels - 1 - level for level in range(levels))
        self.finer = _weights(range(levels))

    def forward(self, features: tuple[Tensor, ...], context: SkipContext) -> tuple[Tensor, ...]:
        """Per level (B, C_l, *S_l) -> the same shapes."""
        stage = [lateral(x) for lateral, x in zip(self.laterals, features, strict=True)]
        for down, up in cast(Iterable[tuple[nn.ModuleList, nn.ModuleList]], zip(self.down, self.up, strict=True)):
            top = []
            for level, x in enumerate(stage):
                coarser = [resize(source, x.shape[2:], align_corners=False) for source in stage[level + 1 :]]
                top.append(down[level]((x + _mean(coarser, self.coarser, level)).relu()))
            new = []
            for level, x in enumerate(stage):
                finer = [_pool(source, x) for source in top[:level]]
                new.append(up[level]((x + top[level] + _mean(finer, self.finer, level)).relu()))
            stage = new
        return tuple(project(x) for project, x in zip(self.project, stage, strict=True))


@PYRAMID.register("spatial_context")
class SpatialContextPyramid(PyramidOperation):
    """Adds to each level one vector per image, the attended mean of its voxels, gated per voxel.

    Source: Liu et al. 2023, CATNet, arXiv 2111.11057

    x + m(sum over voxels p of softmax_p(k(x)) v(x)) * sigmoid(a(x)), m zero at first: the untrained part passes its
    input on bit for bit.

    Args:
        spatial_dims: 2 or 3.
        channels: per level.
        reduction: channels over those of v.

    Raises:
        ValueError: `reduction` is not at least 1.
    """

    neutral_at_init = True

    def __init__(self, *, spatial_dims: int, channels: Sequence[int], reduction: int = 1) -> None:
        super().__init__()
        check_counts(reduction=reduction)
        self.keys, self.values, self.gates, self.out = (nn.ModuleList() for _ in range(4))
        for c in channels:
            hidden = max(1, c // reduction)
            self.keys.append(conv(spatial_dims, c, 1, kernel=1, bias=False))  # the softmax would subtract a bias
            self.values.append(conv(spatial_dims, c, hidden, kernel=1))
            self.gates.append(conv(spatial_dims, c, 1, kernel=1))
            self.out.append(conv(spatial_dims, hidden, c, kernel=1))
            set_zero(self.out[-1])

    def forward(self, features: tuple[Tensor, ...], context: SkipContext) -> tuple[Tensor, ...]:
        """Per level (B, C_l, *S_l) -> the same shapes."""
        return tuple(x + self.context_of(x, level) for level, x in enumerate(features))

    def context_of(self, x: Tensor, level: int) -> Tensor:
        """What is added to the level-th features (B, C, *S)."""
        keys = self.keys[level](x).flatten(2)
        # In float32, and no matrix product, which autocast would bring back: weights of 1 / N are lost in float16.
        attention = keys.softmax(-1, dtype=torch.promote_types(keys.dtype, torch.float32))  # (B, 1, N)
        vector = (self.values[level](x).flatten(2) * attention).sum(-1)  # (B, hidden)
        vector = vector.reshape(*vector.shape[:2], *(1,) * (x.ndim - 2))
        return self.out[level](vector) * self.gates[level](x).sigmoid()


def bottleneck(spatial_dims: int, width: int, reduction: int, norm: str) -> nn.Sequential:
    """1x1 to width / reduction, 3x3, 1x1 back, each normalised, without activations."""
    hidden = max(1, width // reduction)
    shapes = ((width, hidden, 1), (hidden, hidden, 3), (hidden, width, 1))
    layers: list[nn.Module] = []
    for inputs, outputs, kernel in shapes:
        layers += conv_norm(spatial_dims, inputs, outputs, kernel, norm)
    return nn.Sequential(*layers)


def conv_norm(spatial_dims: int, inputs: int, outputs: int, kernel: int, norm: str) -> list[nn.Module]:
    """A convolution and its normalisation; a bias only where there is none."""
    convolution = conv(spatial_dims, inputs, outputs, kernel=kernel, bias=norm == "none")
    return [convolution, make_norm(norm, spatial_dims, outputs)]


def _weights(sources: Iterable[int]) -> nn.ParameterDict:
    """Level -> a vector of ones as long as its number of sources; none where there is nothing to weight."""
    counts = {str(level): count for level, count in enumerate(sources) if count > 1}
    return nn.ParameterDict({level: nn.Parameter(torch.ones(count)) for level, count in counts.items()})


def _mean(fitted: Sequence[Tensor], weights: nn.ParameterDict, level: int) -> Tensor | float:
    """Mean of feature maps of one size with the softmax of the level's weights; 0 without any."""
    if len(fitted) < 2:
        return fitted[0] if fitted else 0.0
    total: Any = 0.0
    for share, x in zip(weights[str(level)].softmax(0), fitted, strict=True):
        total = total + share * x
    return total


def _pool(x: Tensor, like: Tensor) -> Tensor:
    """Max-pooled to the size of `like`."""
    return ADAPTIVE_MAX_POOLS[x.ndim - 2](x, tuple(like.shape[2:]))

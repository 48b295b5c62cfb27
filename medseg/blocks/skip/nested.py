"""UNet++'s nested skips for any U-shaped network: a triangle of nodes between its encoder and its decoder.

Paper: Zhou et al., "UNet++: Redesigning Skip Connections to Exploit Multiscale Features in Image Segmentation",
IEEE TMI 2019 (arXiv 1912.05074). `medseg.models.unetpp` is the network itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medseg.blocks.conv import double_conv, resize
from medseg.blocks.initialization import he_normal
from medseg.blocks.skip import PYRAMID, PyramidOperation, SkipContext


def decoder_positions(depth: int) -> list[tuple[int, int]]:
    """Positions (i, j) of nodes with j > 0 and i + j <= `depth`, each after those whose outputs it takes."""
    return [(i, j) for j in range(1, depth + 1) for i in range(depth + 1 - j)]


@PYRAMID.register("nested")
class NestedSkips(PyramidOperation):
    """Each skip passes through nodes that also see the level below it: the finer the level, the more of them.

    Source: Zhou et al. 2019, UNet++, arXiv 1912.05074

    X^{i,0} is the encoder's level i and X^{i,j} = H([up(X^{i+1,j-1}), X^{i,0}, ..., X^{i,j-1}]) for i + j < L, H two
    3x3 convolutions. Level i hands on its last node, X^{i,L-1-i}; the node after it, X^{i,L-i}, is the host's decoder.
    With ``dense=False`` that is the paper's ablation UNet+. With ``dense=True`` the decoder sees the last node of its
    level where UNet++ shows it all of them, because an operation on the pyramid keeps every shape; for UNet++ as it is
    published take ``model=unetpp``. Ours: the normalisation, as our U-Nets have it (``norm="none"``,
    ``activation="relu"`` are the paper's), and linear up-sampling, which any ratio of sizes allows.

    Args:
        spatial_dims: 2 or 3.
        channels: per level, finest first; a bottleneck beyond the skips is passed on.
        num_levels: levels that have a skip, at most L.
        dense: a node sees all nodes before it on its level; False: the last one.
        norm: see `medseg.blocks.norm.make_norm`.
        activation: ``"leaky_relu"`` or ``"relu"``.
    """

    def __init__(
        self,
        *,
        spatial_dims: int,
        channels: Sequence[int],
        num_levels: int,
        dense: bool = True,
        norm: str = "instance",
        activation: str = "leaky_relu",
    ) -> None:
        super().__init__()
        self.dense, self.positions = dense, decoder_positions(min(len(channels), num_levels) - 1)
        layers = {"norm": norm, "activation": activation}
        self.nodes = nn.ModuleDict()
        for i, j in self.positions:
            inputs = channels[i + 1] + channels[i] * (j if dense else 1)
            self.nodes[f"{i}_{j}"] = double_conv(spatial_dims, inputs, channels[i], layers)
        he_normal(self, activation)

    def forward(self, features: tuple[Tensor, ...], context: SkipContext) -> tuple[Tensor, ...]:
        """Per level (B, C_l, *S_l) -> the same shapes."""
        rows = [[x] for x in features]
        for i, j in self.positions:
            seen = rows[i] if self.dense else rows[i][-1:]
            below = resize(rows[i + 1][j - 1], seen[0].shape[2:], align_corners=True)
            rows[i].append(self.nodes[f"{i}_{j}"](torch.cat([below, *seen], dim=1)))
        return tuple(row[-1] for row in rows)

"""Densely connected blocks whose dilations grow with the source: multi-dilated convolution (D3Net, TD3Net).

Papers: Takahashi and Mitsufuji 2021, D3Net (arXiv 2011.11844); TD3Net (arXiv 2506.16073). Written from a description of
them; the orders of normalisation, activation, convolution and sum are those of the two official codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from medseg.blocks.conv import CONVS
from medseg.blocks.norm import make_norm_act
from medseg.errors import UsageError


class MultiDilatedDenseBlock(nn.Module):
    """Layers that each see every source before them, source i with dilation 2^i.

    Source: Takahashi and Mitsufuji 2021, D3Net, arXiv 2011.11844

    y_l = sum over sources i < l of x_i convolved with dilation 2^i. Source i has a receptive field of 2^(i+1) - 1,
    never less than its dilation, so that no path through the block has holes; the block's is 2^(layers + 1) - 1 per
    axis. All convolutions of one source are computed as one, whose output channels are dealt to the later layers.

    Args:
        in_channels: channels of the input.
        growth: channels of each layer.
        layers: number of layers.
        spatial_dims: 2 or 3.
        max_dilation: upper limit, one number or one per axis, e.g. (1, 4, 4) where slices are thick. None: no limit.
        norm_before_sum: normalise and activate each convolution before the sum, as TD3Net's code does, or the sum.
        pre_activation: D3Net's order instead: what a convolution sees is normalised and activated first, and the sums
            stay raw, those that are returned too. The first layer sees the input so, as the official code has it.
        norm: see `medseg.blocks.norm.make_norm`.
        activation: ``"leaky_relu"`` or ``"relu"``; TD3Net's code has a PReLU.
        dropout: probability of zeroing an element after each activation.

    Raises:
        UsageError: `max_dilation` is not of whole numbers from 1, one or one per axis.
    """

    def __init__(
        self,
        in_channels: int,
        growth: int,
        *,
        layers: int = 5,
        spatial_dims: int,
        max_dilation: int | Sequence[int] | None = None,
        norm_before_sum: bool = True,
        pre_activation: bool = False,
        norm: str = "instance",
        activation: str = "leaky_relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.growth, self.layers = growth, layers
        self.norm_before_sum, self.pre_activation = norm_before_sum, pre_activation
        self.out_channels = layers * growth
        limit = (max_dilation,) * spatial_dims if isinstance(max_dilation, int) else max_dilation
        if limit is not None and (len(limit) != spatial_dims or any(type(n) is not int or n < 1 for n in limit)):
            raise UsageError(f"max_dilation is {max_dilation} (must be one or {spatial_dims} whole numbers from 1)")
        self.convs, self.acts = nn.ModuleList(), nn.ModuleList()
        for source in range(layers):
            inputs, outputs = in_channels if source == 0 else growth, (layers - source) * growth
            dilation = tuple(min(2**source, axis) for axis in limit) if limit else (2**source,) * spatial_dims
            self.convs.append(
                CONVS[spatial_dims](
                    inputs, outputs, 3, padding=dilation, dilation=dilation, bias=norm == "none" or pre_activation
                )
            )
            width = inputs if pre_activation else outputs if norm_before_sum else growth
            self.acts.append(nn.Sequential(*make_norm_act(norm, activation, spatial_dims, width), nn.Dropout(dropout)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, *S) -> (B, layers * growth, *S), the layers' outputs in order."""
        sums: list[Tensor] = []
        for source in range(self.layers):
            for offset, part in enumerate(self._dealt(source, x).split(self.growth, dim=1)):
                if source == 0:
                    sums.append(part)
                else:
                    sums[source + offset] = sums[source + offset] + part
            if not (self.norm_before_sum or self.pre_activation):
                sums[source] = self.acts[source](sums[source])
            x = sums[source]
        return torch.cat(sums, dim=1)

    def _dealt(self, source: int, x: Tensor) -> Tensor:
        """What source x adds to the later layers, side by side."""
        if self.pre_activation:
            return self.convs[source](self.acts[source](x))
        dealt = self.convs[source](x)
        return self.acts[source](dealt) if self.norm_before_sum else dealt


class DilationAudit(NamedTuple):
    """What `audit_dilations` found along one axis: the receptive field, and the paths with and without holes."""

    receptive_field: int
    gapped: int
    paths: int


def audit_dilations(dilations: Sequence[Sequence[int]], kernel: int = 3) -> DilationAudit:
    """Receptive field and holes of a densely connected block.

    A path source -> layer has a hole where the dilation exceeds the receptive field of the source: voxels between two
    taps are then never seen by it.

    Args:
        dilations: for layer l = 1, 2, ... the dilations of its sources 0..l-1, source 0 being the input.
        kernel: taps per axis.

    Example:
        >>> audit_dilations([[2**i for i in range(layer)] for layer in range(1, 6)])
        DilationAudit(receptive_field=63, gapped=0, paths=15)
    """
    fields, gapped, paths = [1], 0, 0
    for sources in dilations:
        gapped += sum(dilation > field for field, dilation in zip(fields, sources, strict=True))
        paths += len(sources)
        fields.append(max(field + (kernel - 1) * dilation for field, dilation in zip(fields, sources, strict=True)))
    return DilationAudit(fields[-1], gapped, paths)

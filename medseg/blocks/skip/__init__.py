"""What a U-shaped network does where a skip connection meets its decoder, by name.

A merge is built as ``MERGES.build(name, spatial_dims=..., skip_channels=..., decoder_channels=...)``. Register one to
make it available to every model: ``model.skip=NAME``.
"""

from __future__ import annotations

from torch import nn

from medseg.registry import Registry


class SkipMerge(nn.Module):
    """``forward(skip, decoder)`` of equal batch and spatial shape -> (B, out_channels, *S).

    `out_channels` is set by the constructor: a merge is the only place of a skip path where channels may change.
    """

    out_channels: int


MERGES: Registry[SkipMerge] = Registry("skip merge", "medseg.blocks.skip")

"""The two classical merges: concatenation (Ronneberger et al. 2015) and addition (Drozdzal et al. 2016)."""

from __future__ import annotations

import torch
from torch import Tensor

from medseg.blocks.skip import MERGES, SkipMerge
from medseg.errors import UsageError


@MERGES.register("concat")
class Concat(SkipMerge):
    """Decoder channels first, then the skip's, as in nnU-Net and the UNet++ code."""

    def __init__(self, *, spatial_dims: int, skip_channels: int, decoder_channels: int) -> None:
        super().__init__()
        self.out_channels = skip_channels + decoder_channels

    def forward(self, skip: Tensor, decoder: Tensor) -> Tensor:
        """skip (B, C, *S), decoder (B, D, *S) -> (B, D + C, *S)."""
        return torch.cat((decoder, skip), dim=1)


@MERGES.register("add")
class Add(SkipMerge):
    """The sum; both sides need the same channels."""

    def __init__(self, *, spatial_dims: int, skip_channels: int, decoder_channels: int) -> None:
        super().__init__()
        if skip_channels != decoder_channels:
            raise UsageError(f"skip 'add' needs equal channels, not {skip_channels} and {decoder_channels}")
        self.out_channels = skip_channels

    def forward(self, skip: Tensor, decoder: Tensor) -> Tensor:
        """skip (B, C, *S), decoder (B, C, *S) -> (B, C, *S)."""
        return skip + decoder

"""Merges of a skip with the decoder: concatenation, addition, and both with a learnt gate."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medseg.blocks.conv import conv
from medseg.blocks.skip import MERGES, SkipContext, SkipMerge
from medseg.blocks.skip.checks import check_counts
from medseg.errors import UsageError


@MERGES.register("concat")
class Concat(SkipMerge):
    """Concatenation: decoder channels first, then the skip's, as in nnU-Net and the UNet++ code.

    Source: Ronneberger et al. 2015, arXiv 1505.04597
    """

    def __init__(self, *, skip_channels: int, decoder_channels: int) -> None:
        super().__init__()
        self.out_channels = skip_channels + decoder_channels

    def forward(self, skip: Tensor, decoder: Tensor, context: SkipContext) -> Tensor:
        """skip (B, C, *S), decoder (B, D, *S) -> (B, D + C, *S)."""
        return torch.cat((decoder, skip), dim=1)


@MERGES.register("add")
class Add(SkipMerge):
    """Addition; both sides need the same channels.

    Source: Drozdzal et al. 2016, arXiv 1608.04117
    """

    def __init__(self, *, skip_channels: int, decoder_channels: int) -> None:
        super().__init__()
        if skip_channels != decoder_channels:
            raise UsageError(f"skip 'add' needs equal channels, not {skip_channels} and {decoder_channels}")
        self.out_channels = skip_channels

    def forward(self, skip: Tensor, decoder: Tensor, context: SkipContext) -> Tensor:
        """skip (B, C, *S), decoder (B, C, *S) -> (B, C, *S)."""
        return skip + decoder


@MERGES.register("gated_add")
class GatedAdd(SkipMerge):
    """Addition of the skip times a gate of (0, 1) per voxel and channel, which both sides decide.

    Source: ours, after the gates of highway networks, Srivastava et al. 2015, arXiv 1505.00387

    decoder + sigmoid(W [decoder, skip]) * P skip, with 1x1 convolutions W and, where the channels differ, P.
    """

    def __init__(self, *, spatial_dims: int, skip_channels: int, decoder_channels: int) -> None:
        super().__init__()
        same = skip_channels == decoder_channels
        self.project = nn.Identity() if same else conv(spatial_dims, skip_channels, decoder_channels, kernel=1)
        self.gate = conv(spatial_dims, decoder_channels + skip_channels, decoder_channels, kernel=1)
        self.out_channels = decoder_channels

    def forward(self, skip: Tensor, decoder: Tensor, context: SkipContext) -> Tensor:
        """skip (B, C, *S), decoder (B, D, *S) -> (B, D, *S)."""
        gate = self.gate(torch.cat((decoder, skip), dim=1)).sigmoid()
        return decoder + gate * self.project(skip)


@MERGES.register("attention_gate")
class AttentionGate(SkipMerge):
    """Concatenation of the decoder with the skip times one attention coefficient per voxel.

    Source: Oktay et al. 2018, Attention U-Net, arXiv 1804.03999, equations 1 and 2

    alpha = sigmoid(psi(relu(W_x skip + W_g decoder + b)) + b_psi). In the paper the gating signal comes from the
    coarser level and the coefficients are resampled; here the decoder is at the skip's resolution already, so nothing
    is.

    Args:
        spatial_dims: 2 or 3.
        skip_channels: channels of the skip.
        decoder_channels: channels of the decoder.
        hidden: channels of the additive attention. None: half of the skip's (our choice).

    Raises:
        ValueError: `hidden` is not at least 1.
    """

    def __init__(
        self, *, spatial_dims: int, skip_channels: int, decoder_channels: int, hidden: int | None = None
    ) -> None:
        super().__init__()
        width = max(1, skip_channels // 2) if hidden is None else hidden
        check_counts(hidden=width)
        self.skip = conv(spatial_dims, skip_channels, width, kernel=1, bias=False)
        self.decoder = conv(spatial_dims, decoder_channels, width, kernel=1)
        self.attention = conv(spatial_dims, width, 1, kernel=1)
        self.out_channels = skip_channels + decoder_channels

    def coefficients(self, skip: Tensor, decoder: Tensor) -> Tensor:
        """skip (B, C, *S), decoder (B, D, *S) -> attention (B, 1, *S) in (0, 1)."""
        return self.attention((self.skip(skip) + self.decoder(decoder)).relu()).sigmoid()

    def forward(self, skip: Tensor, decoder: Tensor, context: SkipContext) -> Tensor:
        """skip (B, C, *S), decoder (B, D, *S) -> (B, D + C, *S)."""
        return torch.cat((decoder, skip * self.coefficients(skip, decoder)), dim=1)

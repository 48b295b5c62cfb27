"""Skip connection cross-attention of DAE-Former: where the skip looks decides what the decoder's features mix."""

from __future__ import annotations

import torch
from torch import Tensor

from medseg.blocks.attention.efficient import efficient_attention
from medseg.blocks.attention.mix_ffn import MixFFN
from medseg.blocks.attention.tokens import ChannelNorm, to_image, to_tokens
from medseg.blocks.conv import conv
from medseg.blocks.initialization import glorot_uniform
from medseg.blocks.skip import MERGES, SkipContext, SkipMerge
from medseg.errors import UsageError


@MERGES.register("cross_attention")
class SkipCrossAttention(SkipMerge):
    """DAE-Former's SCCA: efficient attention with values from the decoder, then a Mix-FFN.

    Source: Azad et al. 2022, arXiv 2212.13504

    As in the official code, keys **and** queries are the skip; the paper's figure takes the keys from the decoder,
    and its authors say that the code is right (issue 13 of their repository). Both sides share one layer norm.
    It starts with Xavier-uniform weights and zero biases.
    """

    def __init__(self, *, spatial_dims: int, skip_channels: int, decoder_channels: int) -> None:
        super().__init__()
        if skip_channels != decoder_channels:
            raise UsageError(f"skip 'cross_attention' needs equal channels, not {skip_channels} and {decoder_channels}")
        self.out_channels = 2 * skip_channels
        self.norm = ChannelNorm(skip_channels)
        self.project = conv(spatial_dims, skip_channels, self.out_channels, kernel=1)
        self.project_norm = ChannelNorm(self.out_channels)
        self.ffn_norm = ChannelNorm(self.out_channels)
        self.ffn = MixFFN(spatial_dims, self.out_channels, 2 * self.out_channels)
        glorot_uniform(self)

    def forward(self, skip: Tensor, decoder: Tensor, context: SkipContext | None = None) -> Tensor:
        """skip (B, C, *S), decoder (B, C, *S) -> (B, 2 C, *S)."""
        where, what = to_tokens(self.norm(skip)), to_tokens(self.norm(decoder))
        attended = to_image(efficient_attention(where, where, what), skip.shape[2:])
        x = torch.cat((decoder, skip), dim=1) + self.project_norm(self.project(attended))
        return x + self.ffn(self.ffn_norm(x))

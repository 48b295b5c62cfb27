"""Inter-scale interaction: a large-kernel gate on the fused skip and decoder, after the abstract of TransDAE.

TransDAE (arXiv 2409.02018) describes its Inter-Scale Interaction Module as a decomposed large-kernel convolution in the
skips that fuses encoder and decoder. No code is public and the text was not at hand, so this is a reconstruction: the
decomposition is the published one of VAN (Guo et al. 2022, arXiv 2202.09741), and where the gate stands is our choice.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medseg.blocks.conv import CONVS, conv
from medseg.blocks.skip import MERGES, SkipContext, SkipMerge


class LargeKernelAttention(nn.Sequential):
    """A 21-wide depthwise kernel, decomposed: depthwise 5, depthwise 7 with dilation 3, 1x1 (VAN, figure 2).

    Its impulse response is 5 + (7 - 1) * 3 = 23 voxels wide along every axis.
    """

    def __init__(self, spatial_dims: int, channels: int) -> None:
        depthwise = CONVS[spatial_dims](channels, channels, 5, padding=2, groups=channels)
        dilated = CONVS[spatial_dims](channels, channels, 7, padding=9, dilation=3, groups=channels)
        super().__init__(depthwise, dilated, conv(spatial_dims, channels, channels, kernel=1))


@MERGES.register("inter_scale")
class InterScaleInteraction(SkipMerge):
    """x = W [decoder, skip]; x + gate(x) * x, with a large-kernel gate. A reconstruction, see the module.

    Source: reconstruction after B. Azad et al. 2024, arXiv 2409.02018
    """

    def __init__(self, *, spatial_dims: int, skip_channels: int, decoder_channels: int) -> None:
        super().__init__()
        self.out_channels = decoder_channels
        self.fuse = conv(spatial_dims, decoder_channels + skip_channels, decoder_channels, kernel=1)
        self.gate = LargeKernelAttention(spatial_dims, decoder_channels)

    def forward(self, skip: Tensor, decoder: Tensor, context: SkipContext | None = None) -> Tensor:
        """skip (B, C, *S), decoder (B, D, *S) -> (B, D, *S)."""
        fused = self.fuse(torch.cat((decoder, skip), dim=1))
        return fused + self.gate(fused) * fused

"""The feed-forward part of a transformer block whose depthwise convolution makes position encodings needless."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import gelu

from medseg.blocks.conv import CONVS


class MixFFN(nn.Module):
    """u = W1 x; W2 GELU(LN(DWConv3(u) + u)): the Mix-FFN of MISSFormer (Huang et al. 2021, arXiv 2109.07162).

    Args:
        spatial_dims: 2 or 3.
        channels: C of input and output.
        hidden: channels of u.
    """

    def __init__(self, spatial_dims: int, channels: int, hidden: int) -> None:
        super().__init__()
        self.widen = nn.Linear(channels, hidden)
        self.depthwise = CONVS[spatial_dims](hidden, hidden, 3, padding=1, groups=hidden)
        self.norm = nn.LayerNorm(hidden)
        self.narrow = nn.Linear(hidden, channels)

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, *S) -> (B, C, *S)."""
        widened = self.widen(image.movedim(1, -1)).movedim(-1, 1)
        mixed = self.norm((self.depthwise(widened) + widened).movedim(1, -1))
        return self.narrow(gelu(mixed)).movedim(-1, 1)

"""Squeeze-and-excitation on a skip."""

from __future__ import annotations

from torch import Tensor, nn

from medseg.blocks.conv import conv
from medseg.blocks.skip import EDITS, SkipContext, SkipEdit
from medseg.blocks.skip.checks import check_counts

LEAST_HIDDEN = 8


@EDITS.register("squeeze_excite")
class SqueezeExcite(SkipEdit):
    """Multiplies each channel of a skip by a gate of (0, 1) that the means of all channels decide.

    Source: Hu et al. 2018, Squeeze-and-Excitation, arXiv 1709.01507

    Args:
        spatial_dims: 2 or 3.
        channels: of the skip.
        reduction: channels per hidden unit, 16 in the paper; never fewer than 8 hidden units (ours).

    Raises:
        ValueError: `reduction` is not at least 1.
    """

    def __init__(self, *, spatial_dims: int, channels: int, reduction: int = 16) -> None:
        super().__init__()
        check_counts(reduction=reduction)
        hidden = max(LEAST_HIDDEN, channels // reduction)
        self.squeeze = conv(spatial_dims, channels, hidden, kernel=1)
        self.excite = conv(spatial_dims, hidden, channels, kernel=1)

    def forward(self, skip: Tensor, decoder: Tensor | None, context: SkipContext) -> Tensor:
        """(B, C, *S) -> (B, C, *S)."""
        means = skip.mean(dim=list(range(2, skip.ndim)), keepdim=True)
        return skip * self.excite(nn.functional.relu(self.squeeze(means))).sigmoid()

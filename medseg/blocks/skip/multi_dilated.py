"""A multi-dilated dense block on a skip."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from medseg.blocks.conv import conv
from medseg.blocks.dense import MultiDilatedDenseBlock
from medseg.blocks.skip import EDITS, SkipContext, SkipEdit
from medseg.blocks.skip.checks import check_counts


@EDITS.register("multi_dilated")
class MultiDilatedSkip(SkipEdit):
    """A dense block whose dilations grow with the source, and a 1x1 convolution back to the skip's channels.

    Source: Takahashi and Mitsufuji 2021, D3Net, arXiv 2011.11844; TD3Net, arXiv 2506.16073

    The block on a skip is our use of it; there it is a stage. For small patches keep `layers` at 4 or fewer.

    Args:
        spatial_dims: 2 or 3.
        channels: of the skip.
        growth: channels of each layer. None: a quarter of `channels`.
        layers: the receptive field is 2^(layers + 1) - 1 voxels per axis.
        max_dilation: upper limit, one number or one per axis. None: no limit.
        norm: see `medseg.blocks.norm.make_norm`.
        pre_activation: D3Net's order (normalise, activate, convolve, raw sums) instead of TD3Net's.

    Raises:
        ValueError: `growth` or `layers` is not at least 1.
        UsageError: as the block.
    """

    def __init__(
        self,
        *,
        spatial_dims: int,
        channels: int,
        growth: int | None = None,
        layers: int = 3,
        max_dilation: int | Sequence[int] | None = None,
        norm: str = "instance",
        pre_activation: bool = False,
    ) -> None:
        super().__init__()
        growth = max(1, channels // 4) if growth is None else growth
        check_counts(growth=growth, layers=layers)
        self.block = MultiDilatedDenseBlock(
            channels, growth, layers=layers, spatial_dims=spatial_dims,
            max_dilation=max_dilation, norm=norm, pre_activation=pre_activation,
        )  # fmt: skip
        self.project = conv(spatial_dims, self.block.out_channels, channels, kernel=1)

    def forward(self, skip: Tensor, decoder: Tensor | None, context: SkipContext) -> Tensor:
        """(B, C, *S) -> (B, C, *S)."""
        return self.project(self.block(skip))

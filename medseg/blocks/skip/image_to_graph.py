"""The skip from an encoder's feature map to the nodes of a graph, IGSC (Gaggion et al. 2022, arXiv 2203.10977)."""

from __future__ import annotations

import torch
from torch import Tensor

from medseg.blocks.graph import ChebConv
from medseg.blocks.skip import SkipContext, SkipMerge

WINDOW = 3  # pixels of the feature map that are averaged around a node


class ImageToGraph(SkipMerge):
    """Each node says where it lies, and is given what the encoder saw there.

    It keeps the protocol of `SkipMerge` with nodes instead of pixels on the decoder's side, which is why no U-Net can
    ask for it by name. The last two channels that it returns are the positions, to be supervised.

    Args:
        skip_channels: channels of the feature map.
        decoder_channels: features of each node.
    """

    def __init__(self, *, skip_channels: int, decoder_channels: int) -> None:
        super().__init__()
        self.out_channels = decoder_channels + skip_channels + 2
        self.position = ChebConv(decoder_channels, 2, terms=1, bias=False)

    def forward(self, skip: Tensor, decoder: Tensor, context: SkipContext | None = None) -> Tensor:
        """skip (B, C, h, w), decoder (B, N, F) -> (B, N, F + C + 2): node features, sampled ones, (x, y) in 0..1."""
        positions = self.position(decoder, decoder.new_empty(0))  # one term: the Laplacian is not used
        return torch.cat((decoder, sample_at(skip, positions), positions), 2)


def sample_at(features: Tensor, positions: Tensor) -> Tensor:
    """RoIAlign (He et al. 2017) of one bin: the mean over a window of 3x3 pixels about each position.

    A position p of 0..1 is centred on the pixel with index p * size, as in the official code.

    Args:
        features: (B, C, h, w).
        positions: (B, N, 2), x and y in units of the map's width and height.

    Returns:
        (B, N, C) in the type of the positions; no gradient flows to the positions.
    """
    batch, nodes = positions.shape[:2]
    exact = torch.promote_types(positions.dtype, torch.float32)  # boxes of bfloat16 would lie on 1/256 of a width
    low = positions.detach().to(exact) * positions.new_tensor([features.shape[3], features.shape[2]], dtype=exact) - 1
    numbers = torch.arange(batch, device=low.device, dtype=low.dtype)[:, None, None].expand(-1, nodes, -1)
    boxes = torch.cat((numbers, low, low + WINDOW), 2).flatten(0, 1)
    from torchvision.ops import roi_align  # a second that other networks do without

    sampled = roi_align(features.to(exact), boxes, output_size=1, sampling_ratio=WINDOW, aligned=True)
    return sampled.view(batch, nodes, features.shape[1]).to(positions.dtype)

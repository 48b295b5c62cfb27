"""A 2D network in the place of a 3D one: volumes one slice thick go in, logits of the same shape come out."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class SliceNetwork(nn.Module):
    """Takes the slice axis out of a batch before a 2D network and puts it back after it.

    Everything around it (sampling, sliding window, restoring, loss) works on volumes, so that a prediction is stacked
    by itself.

    Args:
        network: 2D; maps (B, C, *R) to logits (B, K, *R), or a list of them in training.
        axis: spatial axis, 0 to 2, along which what comes in is one voxel thick.
    """

    def __init__(self, network: nn.Module, *, axis: int) -> None:
        super().__init__()
        self.network, self.axis = network, axis
        divisor: Sequence[int] = network.divisor  # type: ignore[assignment]
        self.divisor = (*divisor[:axis], 1, *divisor[axis:])

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """image: (B, C, *S), S one voxel thick along the axis -> logits (B, K, *S), or a list of them."""
        logits = self.network(image.squeeze(2 + self.axis))
        if isinstance(logits, Tensor):
            return logits.unsqueeze(2 + self.axis)
        return [head.unsqueeze(2 + self.axis) for head in logits]


def with_slices(network: nn.Module, axis: int | None) -> nn.Module:
    """The network in a `SliceNetwork`, or, without a slice axis, itself."""
    return network if axis is None else SliceNetwork(network, axis=axis)


def without_slices(network: nn.Module) -> nn.Module:
    """The 2D network of a `SliceNetwork`, whose weights a model folder holds; any other network itself."""
    return network.network if isinstance(network, SliceNetwork) else network

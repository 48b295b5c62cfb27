"""Exponential moving average of the weights: what is validated and exported."""

from __future__ import annotations

import copy

import torch
from torch import nn


class WeightAverage(nn.Module):
    """A copy of a network whose weights follow it as a moving average; a submodule, so it is saved with the rest.

    The decay grows with the number of updates as min(decay, (1 + n) / (10 + n)), so that the random initial weights
    do not linger in short trainings.

    Args:
        network: the network to follow.
        decay: 0..1; the average looks back about 1 / (1 - decay) steps.
    """

    updates: torch.Tensor

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay = decay
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move a step towards the network; buffers (running statistics) are copied."""
        n = int(self.updates)
        weight = 1 - min(self.decay, (1 + n) / (10 + n))
        torch._foreach_lerp_(list(self.network.parameters()), list(network.parameters()), weight)
        for mine, theirs in zip(self.network.buffers(), network.buffers(), strict=True):
            mine.copy_(theirs)
        self.updates += 1

    def train(self, mode: bool = True) -> WeightAverage:
        """Stays in evaluation mode."""
        return super().train(False)

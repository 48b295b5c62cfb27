"""Monte Carlo dropout: a network that was trained with dropout stands for many, which agree where it is sure.

A pass keeps one mask per dropout layer, drawn from the numbers of pass and layer: it is one thinned network for all
windows of all cases (our choice; Gal and Ghahramani draw anew for every input). So overlapping windows agree on what
was dropped, and a result repeats whatever the batch of windows and in whichever thread: nothing is ever written to the
trained network. Masks are drawn on the device, so those of a GPU are others than those of a CPU.

Source: Gal, Ghahramani, "Dropout as a Bayesian approximation", ICML 2016.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from medseg.errors import UsageError
from medseg.inference.member import Member
from medseg.inference.onnx_network import OnnxNetwork

ELEMENTS = (nn.Dropout,)
CHANNELS = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


class FixedDropout(nn.Module):
    """Dropout with the same mask at every call.

    Args:
        rate: share that is dropped, above 0 and below 1; what stays is divided by ``1 - rate``.
        channels: drop whole channels instead of elements.
        seed: of the mask.
    """

    def __init__(self, rate: float, *, channels: bool, seed: int) -> None:
        super().__init__()
        self.rate, self.channels, self.seed = rate, channels, seed

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, ...) -> the same shape; all of a batch share the mask."""
        shape = (1, x.shape[1], *[1] * (x.ndim - 2)) if self.channels else (1, *x.shape[1:])
        # The meta device, on which memory is counted, has neither numbers nor generators.
        random = None if x.is_meta else torch.Generator(x.device).manual_seed(self.seed)
        kept = torch.empty(shape, dtype=x.dtype, device=x.device).bernoulli_(1 - self.rate, generator=random)
        return x * kept.div_(1 - self.rate)


def thinned_members(member: Member, passes: int) -> list[Member]:
    """The networks of ``passes`` passes, which share their weights with the member; the member itself for 0.

    Raises:
        UsageError: it has no dropout layer (`torch.nn.Dropout`, ``Dropout1d`` to ``3d``) with a rate between 0 and 1.
    """
    if passes and isinstance(member.network, OnnxNetwork):
        raise UsageError("mc_dropout needs the torch model (an ONNX model has no dropout layers)", fix="mc_dropout=0")
    if passes and next(_dropouts(member.network), None) is None:
        raise UsageError("mc_dropout: the model has no dropout layer", fix="mc_dropout=0, or train with model.dropout")
    return [replace(member, network=thinned(member.network, number)) for number in range(passes)] or [member]


def thinned(network: nn.Module, number: int) -> nn.Module:
    """A network of the same weights, not copied, whose dropout layers keep the masks of that pass."""
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    twin = copy.deepcopy(network, dict(shared))
    for layer, (name, module) in enumerate(list(_dropouts(twin))):
        parent, _, child = name.rpartition(".")
        fixed = FixedDropout(module.p, channels=isinstance(module, CHANNELS), seed=number * 1_000_003 + layer)
        setattr(twin.get_submodule(parent), child, fixed)
    return twin


def _dropouts(network: nn.Module) -> Iterator[tuple[str, nn.Dropout]]:
    for name, module in network.named_modules(remove_duplicate=False):
        if isinstance(module, (*ELEMENTS, *CHANNELS)) and 0 < module.p < 1:
            yield name, module  # type: ignore[misc]

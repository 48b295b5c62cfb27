"""How the weights of a network begin, as the codes of the papers have it.

Papers: He et al. 2015 (arXiv 1502.01852); Glorot and Bengio 2010. Keras draws its normal weights truncated at two
deviations; its ``he_normal`` scales what is left to the deviation of its name, its ``TruncatedNormal`` does not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from medseg.blocks.norm import activation_slope
from medseg.errors import UsageError, nearest

CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose2d, nn.ConvTranspose3d)
CUT_DEVIATION = 0.87962566103423978  # of a standard normal variable that is kept within -2 and 2


def initialize(module: nn.Module, initialization: str, activation: str) -> None:
    """Begin the convolutions of a network, or of a part of it, in the named way.

    Args:
        module: its convolutions and transposed convolutions, itself included.
        initialization: ``"he"``, nnU-Net's: He-normal for the activation's slope, transposed convolutions too, and zero
            biases; ``"keras"``, of codes that say ``he_normal``: that of ReLUs for convolutions, Glorot-uniform for
            transposed ones, Keras' default, and zero biases; ``"torch"``: PyTorch's own.
        activation: ``"leaky_relu"`` or ``"relu"``.

    Raises:
        UsageError: for an unknown name.
    """
    if initialization not in INITIALIZATIONS:
        raise UsageError(f"unknown initialization '{initialization}': {nearest(initialization, INITIALIZATIONS)}")
    INITIALIZATIONS[initialization](module, activation)


def he_normal(module: nn.Module, activation: str) -> None:
    """He-normal weights for the activation's slope (fan-in) and zero biases in every convolution of `module`."""
    slope = activation_slope(activation)
    for part in _parts(module, *CONVOLUTIONS, *TRANSPOSED):
        nn.init.kaiming_normal_(part.weight, a=slope)
        _zero_bias(part)


def keras_convolutions(module: nn.Module, activation: str) -> None:
    """Keras' ``he_normal`` in every convolution, its default in every transposed one, and zero biases."""
    for part in _parts(module, *CONVOLUTIONS):
        fan_in = part.weight[0].numel()
        keras_truncated_normal_(part.weight, (2 / fan_in) ** 0.5 / CUT_DEVIATION)
        _zero_bias(part)
    glorot_uniform(module, *TRANSPOSED)


def glorot_uniform(module: nn.Module, *kinds: type[nn.Module]) -> None:
    """Glorot-uniform weights and zero biases, Keras' default, in the layers of these kinds.

    Args:
        module: of which all parts are meant, itself included.
        kinds: none given: linear layers and convolutions.
    """
    for part in _parts(module, *(kinds or (nn.Linear, *CONVOLUTIONS))):
        nn.init.xavier_uniform_(part.weight)
        _zero_bias(part)


def keras_truncated_normal_(tensor: Tensor, std: float) -> None:
    """Keras' ``TruncatedNormal``: of that deviation before it is cut at two of them, 0.88 times as much after."""
    nn.init.trunc_normal_(tensor, std=std, a=-2 * std, b=2 * std)


def _parts(module: nn.Module, *kinds: type[nn.Module]) -> list[Any]:
    return [part for part in module.modules() if isinstance(part, kinds)]


@torch.no_grad()
def _zero_bias(part: Any) -> None:
    if part.bias is not None:
        part.bias.zero_()


INITIALIZATIONS: dict[str, Callable[[nn.Module, str], None]] = {
    "he": he_normal,
    "keras": keras_convolutions,
    "torch": lambda module, activation: None,
}

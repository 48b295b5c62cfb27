"""Optimisers by name, with weight decay on weights only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from medseg.errors import UsageError, nearest

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
}
_SCHEDULE_KEYS = ("schedule", "warmup")


def make_optimizer(network: nn.Module, settings: Mapping[str, Any]) -> torch.optim.Optimizer:
    """Build an optimiser from ``{"name", "lr", "weight_decay", **its own arguments}``.

    Norm weights and biases (parameters of one dimension) are not decayed. On a CPU one fused pass updates each
    parameter: its default is a loop of a dozen passes, a tenth of a step of a network with many weights.

    Raises:
        UsageError: for an unknown optimiser or an argument that it does not have.
    """
    arguments = {key: value for key, value in settings.items() if key not in ("name", "weight_decay", *_SCHEDULE_KEYS)}
    name = settings["name"]
    if name not in OPTIMIZERS:
        raise UsageError(f"unknown optimizer '{name}': {nearest(name, OPTIMIZERS)}")
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": settings.get("weight_decay", 0.0)},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    on_cpu = all(parameter.device.type == "cpu" for parameter in trained)
    try:
        return OPTIMIZERS[name](groups, **({"fused": True} if on_cpu else {}) | arguments)
    except TypeError as error:
        raise UsageError(f"optimizer '{name}': {error}") from error

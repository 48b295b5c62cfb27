"""Segmentation models by name: one file per architecture.

A model takes an image (B, C, *S) and returns logits (B, K, *S); while training with deep supervision, a list of logits,
best first. `model.divisor` holds, per spatial axis, what S must be a multiple of: the caller pads, a
model never resizes. The convolutions that make the logits are `model.heads`, finest first, so that a target may choose
where they begin; `model.sums_heads` says that their logits are added up.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from typing import Any

from torch import nn

from medseg.registry import Registry

MODELS: Registry[nn.Module] = Registry("model", "medseg.models")


def create_model(name: str, **arguments: Any) -> nn.Module:
    """Build a registered model, e.g. ``create_model("unetpp", spatial_dims=2, in_channels=1, out_channels=1)``.

    Raises:
        UsageError: for an unknown name or argument, naming the nearest known one.
    """
    if "skip" in arguments and "skips" not in arguments and "skip" not in MODELS.arguments(name):
        arguments["skips"] = arguments.pop("skip")  # as model folders of the first versions name it
    return MODELS.build(name, **arguments)


def list_models(pattern: str | None = None) -> list[str]:
    """Names of all registered models, sorted; `pattern` filters with shell wildcards, e.g. ``"unet*"``."""
    return [name for name in MODELS.names() if pattern is None or fnmatch.fnmatch(name, pattern)]


def models_command(cfg: Mapping[str, Any]) -> None:
    """``medseg models``: print every model with its paper, size and purpose; `cfg` may hold `pattern`."""
    from rich.console import Console

    from medseg.models.table import model_table

    Console().print(model_table(list_models(cfg.get("pattern"))))

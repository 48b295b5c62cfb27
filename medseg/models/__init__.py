"""Segmentation models by name: one file per architecture.

A model takes an image (B, C, *S) and returns logits (B, K, *S); while training with deep supervision, a list of logits,
best first. `model.divisor` holds, per spatial axis, what S must be a multiple of: the caller pads, a
model never resizes. The convolutions that make the logits are `model.heads`, finest first, so that a target may choose
where they begin; `model.sums_heads` says that their logits are added up.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

from torch import nn

from medseg.errors import UsageError
from medseg.registry import Registry, cannot_be_built

MODELS: Registry[nn.Module] = Registry("model", "medseg.models")
COUNTS = ("in_channels", "out_channels", "base_channels", "embed_dim", "num_heads", "window_size", "image_size")
RATES = ("dropout", "drop_path")


def create_model(name: str, **arguments: Any) -> nn.Module:
    """Build a registered model, e.g. ``create_model("unetpp", spatial_dims=2, in_channels=1, out_channels=1)``.

    Raises:
        UsageError: for an unknown name or argument, naming the nearest known one; for numbers that no network has.
    """
    if "skip" in arguments and "skips" not in arguments and "skip" not in MODELS.arguments(name):
        arguments["skips"] = arguments.pop("skip")  # as model folders of the first versions name it
    for key, value in arguments.items():
        _check_numbers(key, value)
    try:
        return MODELS.build(name, **arguments)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise cannot_be_built(f"model '{name}'", arguments, error) from error


def _check_numbers(key: str, value: Any) -> None:
    """Refuse a width, count or size below 1, and a rate outside of 0 to 1."""
    numbers = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    if key in COUNTS and any(isinstance(n, Real) and (not isinstance(n, Integral) or n < 1) for n in numbers):
        raise UsageError(f"{key} is {value} (expected whole numbers of at least 1)")
    if key in RATES and not (isinstance(value, Real) and 0 <= float(value) <= 1):
        raise UsageError(f"{key} is {value} (expected a share, 0 to 1)")


def list_models(pattern: str | None = None) -> list[str]:
    """Names of all registered models, sorted; `pattern` filters with shell wildcards, e.g. ``"unet*"``."""
    return [name for name in MODELS.names() if pattern is None or fnmatch.fnmatch(name, pattern)]


def models_command(cfg: Mapping[str, Any]) -> None:
    """``medseg models``: print every model with its paper, size and purpose; `cfg` may hold `pattern`."""
    from medseg.models.table import model_table
    from medseg.tables import print_table

    print_table(model_table(list_models(cfg.get("pattern"))))

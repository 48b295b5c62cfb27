"""Losses by name.

A loss is called with logits (B, K, *S) in any precision and labels (B, 1, *S) int64 that hold channel numbers 0..K-1,
or `IGNORE` where a voxel has no label, and returns a scalar in float32 (float64 for float64 logits). K = 1 means one
sigmoid channel, with labels 0 and 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from medseg.errors import UsageError, nearest
from medseg.registry import Registry

IGNORE = -1
Loss = Callable[[Tensor, Tensor], Tensor]
LOSSES: Registry[Loss] = Registry("loss", "medseg.losses")


def build_loss(loss: str | Mapping[str, Any]) -> Loss:
    """Build a loss from its name, or from a mapping with ``name`` and the loss's arguments.

    Raises:
        UsageError: for an unknown name or argument.
    """
    if isinstance(loss, str):
        return LOSSES.build(loss)
    if "name" not in loss:
        raise UsageError(f"loss {dict(loss)} has no 'name' (known: {', '.join(LOSSES.names())})")
    return LOSSES.build(loss["name"], **{key: value for key, value in loss.items() if key != "name"})


def loss_terms(loss: str | Mapping[str, float], known: Mapping[str, Any]) -> dict[str, float]:
    """A sum of named terms: ``"dice"`` -> ``{"dice": 1.0}``, and a mapping of terms to their weights as it is.

    Raises:
        UsageError: an unknown term (with the nearest known one), a weight that is no number, or no term at all.
    """
    terms = {loss: 1.0} if isinstance(loss, str) else dict(loss)
    for name, weight in terms.items():
        if name not in known:
            raise UsageError(f"unknown term '{name}' of the loss: {nearest(str(name), known)}")
        if not isinstance(weight, int | float) or weight < 0:
            raise UsageError(f"term '{name}' of the loss has the weight {weight!r} (must be a number >= 0)")
    if not any(terms.values()):
        raise UsageError(f"the loss has no term (known: {', '.join(known)})")
    return {name: float(weight) for name, weight in terms.items() if weight}

"""SC-Tuner and CSC-Tuner: small residual adapters on the skips of a frozen network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from medseg.blocks.conv import conv
from medseg.blocks.skip import EDITS, SkipContext, SkipEdit
from medseg.blocks.skip.checks import check_finite
from medseg.errors import UsageError

HINT_CHANNELS = 16


@EDITS.register("sc_tuner")
class SkipTuner(SkipEdit):
    """A residual bottleneck of 1x1 convolutions on a skip; adapts a frozen network to a new site.

    Source: Jiang et al. 2024, SCEdit, arXiv 2312.11392

    x + strength * (up(gelu(down(x)))), `up` zero at first: the untrained part passes the skip on bit for bit.

    Args:
        spatial_dims: 2 or 3.
        channels: of the skip.
        ratio: hidden channels as a share of `channels`; with 1 it has 2 C^2 + 2 C parameters.
        strength: 0 is the host without the tuner, 1 the tuner as trained; may be changed at any time.

    Raises:
        ValueError: `ratio` or `strength` is no finite number, or `ratio` not above 0.
    """

    neutral_at_init = True

    def __init__(self, *, spatial_dims: int, channels: int, ratio: float = 1.0, strength: float = 1.0) -> None:
        super().__init__()
        check_finite(ratio=ratio, strength=strength)
        if ratio <= 0:
            raise ValueError(f"ratio is {ratio} (must be above 0)")
        hidden = max(1, round(ratio * channels))
        self.strength = strength
        self.down = conv(spatial_dims, channels, hidden, kernel=1)
        self.up = conv(spatial_dims, hidden, channels, kernel=1)
        set_zero(self.up)

    def forward(self, skip: Tensor, decoder: Tensor | None, context: SkipContext) -> Tensor:
        """(B, C, *S) -> (B, C, *S)."""
        return skip + self.strength * self.change(skip)

    def change(self, skip: Tensor) -> Tensor:
        """What is added: (B, C, *S) -> (B, C, *S)."""
        return self.up(nn.functional.gelu(self.down(skip)))


@EDITS.register("csc_tuner")
class ConditionalSkipTuner(SkipEdit):
    """A skip tuner that is steered by conditions: a prior mask, an atlas, edges, landmarks as heat maps.

    Source: Jiang et al. 2024, SCEdit, arXiv 2312.11392 (CSC-Tuner)

    x + strength * sum_m weight_m (c_m + T_m(x + c_m)), T_m a skip tuner, c_m the features of condition m. Ours: each
    level makes c_m of its own from the condition averaged to its resolution (two 3x3 convolutions with SiLU and a third
    that starts at zero), in place of the paper's one hint encoder with a cascade of zero convolutions, so that levels
    stay independent. The untrained part passes the skip on bit for bit.

    Args:
        spatial_dims: 2 or 3.
        channels: of the skip.
        conditions: name -> channels of its tensor, see `medseg.blocks.skip.path.skip_conditions`. None: one, ``prior``,
            of one channel.
        weights: name -> weight, 1 if not given; a condition of weight 0 is not looked at.
        ratio: as in `SkipTuner`.
        strength: as in `SkipTuner`.

    Raises:
        UsageError: a weight for a condition that is not there; when called, a condition that the batch lacks.
        ValueError: as `SkipTuner`, and for weights.
    """

    neutral_at_init = True

    def __init__(
        self,
        *,
        spatial_dims: int,
        channels: int,
        conditions: Mapping[str, int] | None = None,
        weights: Mapping[str, float] | None = None,
        ratio: float = 1.0,
        strength: float = 1.0,
    ) -> None:
        super().__init__()
        conditions = {"prior": 1} if conditions is None else conditions
        unknown = set(weights or ()) - set(conditions)
        if unknown:
            raise UsageError(f"csc_tuner has a weight for '{min(unknown)}' (its conditions: {', '.join(conditions)})")
        check_finite(strength=strength, **{f"weights.{name}": weight for name, weight in (weights or {}).items()})
        self.weights, self.strength = dict.fromkeys(conditions, 1.0) | dict(weights or {}), strength
        self.conditions_needed = {name: n for name, n in conditions.items() if self.weights[name]}
        self.hints = nn.ModuleDict({name: hint_encoder(spatial_dims, n, channels) for name, n in conditions.items()})
        self.tuners = nn.ModuleDict(
            {name: SkipTuner(spatial_dims=spatial_dims, channels=channels, ratio=ratio) for name in conditions}
        )

    def forward(self, skip: Tensor, decoder: Tensor | None, context: SkipContext) -> Tensor:
        """(B, C, *S) -> (B, C, *S)."""
        change: Any = 0.0
        for name, weight in self.weights.items():
            if weight:
                given = context.need(name, "csc_tuner").to(skip.dtype)
                hint = self.hints[name](nn.functional.interpolate(given, size=skip.shape[2:], mode="area"))
                change = change + weight * (hint + cast(SkipTuner, self.tuners[name]).change(skip + hint))
        return skip + self.strength * change


def hint_encoder(spatial_dims: int, inputs: int, channels: int) -> nn.Sequential:
    """A condition (B, inputs, *S) -> features (B, channels, *S), zero at first."""
    layers = [conv(spatial_dims, inputs, HINT_CHANNELS), nn.SiLU(), conv(spatial_dims, HINT_CHANNELS, HINT_CHANNELS)]
    last = conv(spatial_dims, HINT_CHANNELS, channels)
    set_zero(last)
    return nn.Sequential(*layers, nn.SiLU(), last)


@torch.no_grad()
def set_zero(layer: nn.Module) -> None:
    """Zero a layer's parameters, so that what it feeds starts as if it were not there."""
    for parameter in layer.parameters():
        parameter.zero_()

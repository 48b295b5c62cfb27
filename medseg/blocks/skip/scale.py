"""Skip-Tuning: multiply a trained network's skips by factors that a few labelled cases decide."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from medseg.blocks.skip import EDITS, SkipContext, SkipEdit
from medseg.blocks.skip.path import SkipPath, skip_path
from medseg.errors import UsageError, nearest

GRID = (0.2, 0.4, 0.6, 0.8, 1.0, 1.2)
MODES = ("linear", "coordinate")
Score = Callable[[nn.Module], float]


@EDITS.register("scale")
class SkipScale(SkipEdit):
    """Multiplies a skip by a factor, interpolated linearly from `bottom` at the deepest skip to `top` at the finest.

    Source: Ma et al. 2024, Skip-Tuning, arXiv 2402.15170 (there for diffusion sampling)

    The orientation of the ramp is from memory of the paper. A factor of 1 passes the skip on bit for bit. Where a
    normalisation sees the scaled skip alone, before it is fused, scaling has no effect.

    Args:
        level: of the skip, 0 = finest.
        num_levels: levels that have a skip.
        bottom: factor of the deepest skip.
        top: factor of the finest skip.
        per_level: factors, finest first, instead of the ramp.
        learnable: make the factor a parameter; otherwise it is not part of the state.

    Raises:
        UsageError: `per_level` does not have a factor for every level.
    """

    neutral_at_init = True

    def __init__(
        self,
        *,
        level: int,
        num_levels: int,
        bottom: float = 1.0,
        top: float = 1.0,
        per_level: Sequence[float] | None = None,
        learnable: bool = False,
    ) -> None:
        super().__init__()
        if per_level is not None and len(per_level) != num_levels:
            raise UsageError(f"skip edit 'scale': per_level has {len(per_level)} factors (needs {num_levels})")
        factors = ramp(num_levels, bottom, top) if per_level is None else list(per_level)
        factor = float(factors[min(level, num_levels - 1)])
        self.factor = nn.Parameter(torch.tensor([factor])) if learnable else factor
        self.neutral_at_init = factor == 1

    def forward(self, skip: Tensor, decoder: Tensor | None, context: SkipContext) -> Tensor:
        """(B, C, *S) -> (B, C, *S)."""
        return skip if isinstance(self.factor, float) and self.factor == 1 else skip * self.factor


def ramp(num_levels: int, bottom: float, top: float = 1.0) -> list[float]:
    """Factors, finest first: linear from `top` to `bottom`; a single level has `bottom`."""
    last = num_levels - 1
    return [bottom if last == 0 else top + (bottom - top) * level / last for level in range(num_levels)]


@dataclass(frozen=True)
class Calibration:
    """What `calibrate_skips` found: factors per level, finest first, and the score without and with them."""

    per_level: tuple[float, ...]
    before: float
    after: float


def calibrate_skips(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    metric: Callable[[Tensor, Tensor], Tensor | float],
    *,
    grid: Sequence[float] = GRID,
    mode: str = "linear",
    tolerance: float = 0.0,
) -> Calibration:
    """Choose the factors of the model's skips on a few cases and leave them set; see `calibrate`.

    Args:
        model: hosts a skip path; where that has no fixed ``scale`` edit, one is appended.
        loader: (image (B, C, *S), label) batches; gone through once for each set of factors.
        metric: (logits, label) -> a number, the higher the better, e.g. Dice, or minus the entropy where there are no
            labels.
        grid: factors to try.
        mode: as for `calibrate`.
        tolerance: as for `calibrate`.
    """
    batches, training = list(loader), model.training

    @torch.no_grad()
    def score(model: nn.Module) -> float:
        return sum(float(metric(model(image), label)) for image, label in batches) / len(batches)

    model.eval()
    try:
        return calibrate(model, score, grid=grid, mode=mode, tolerance=tolerance)
    finally:
        model.train(training)


def calibrate(
    model: nn.Module, score: Score, *, grid: Sequence[float] = GRID, mode: str = "linear", tolerance: float = 0.0
) -> Calibration:
    """Choose the factors of the model's skips by a score of the whole model, the higher the better.

    Args:
        model: hosts a skip path; where that has no fixed ``scale`` edit, one is appended.
        score: model -> number; the factors are set when it is called.
        grid: factors to try.
        mode: ``"linear"`` tries ramps down to each factor; ``"coordinate"`` tries every factor on one level after the
            other, from the deepest to the finest, keeping what is better.
        tolerance: a factor other than 1 must gain more than this, so that the score never falls.

    Raises:
        UsageError: an unknown mode.
    """
    if mode not in MODES:
        raise UsageError(f"unknown mode '{mode}' of calibrate_skips: {nearest(mode, MODES)}")
    path = skip_path(model)
    levels = path.num_levels
    set_factors(path, [1.0] * levels)
    kept, before = [1.0] * levels, score(model)
    best = before
    for trial in (None,) if mode == "linear" else reversed(range(levels)):
        start = list(kept)
        for factor in grid:
            factors = ramp(levels, factor) if trial is None else [*start[:trial], factor, *start[trial + 1 :]]
            set_factors(path, factors)
            found = score(model)
            if found > best + tolerance:
                best, kept = found, factors
    set_factors(path, kept)
    return Calibration(tuple(kept), before, best)


def set_factors(path: SkipPath, per_level: Sequence[float]) -> None:
    """Set the factors, finest first, of the path's last fixed ``scale`` edit, which is appended if there is none."""
    fixed = [edit for edit in path.edits if all(map(_is_fixed, edit.children()))]
    if not fixed:
        path.extend({"edit": [{"name": "scale"}]})
        fixed = [path.edits[-1]]
    for name, part in cast(nn.ModuleDict, fixed[-1]).items():
        if name in path.sites:
            cast(SkipScale, part).factor = float(per_level[path.sites[name].level])


def _is_fixed(part: nn.Module) -> bool:
    return isinstance(part, SkipScale) and isinstance(part.factor, float)

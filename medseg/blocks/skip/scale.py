"""Skip-Tuning: multiply a trained network's skips by factors that a few labelled cases decide."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from medseg.blocks.skip import EDITS, SkipContext, SkipEdit
from medseg.blocks.skip.checks import check_finite, is_number
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
        ValueError: a factor is no finite number.
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
        given = {"bottom": bottom, "top": top}
        check_finite(**given, **{f"per_level[{i}]": factor for i, factor in enumerate(per_level or ())})
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
    """What `calibrate_skips` found: factors per level, finest first, and the score without and with them.

    The factors come on top of those that the model has of its own.
    """

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
        model: hosts a skip path; a ``scale`` edit is appended to it, once, which `detach_skips` removes.
        loader: (image (B, C, *S), label) batches; gone through once for each set of factors.
        metric: (logits, label) -> a number, the higher the better, e.g. Dice, or minus the entropy where there are no
            labels. The model's modules are in evaluation mode for it, and then as they were.
        grid: factors to try.
        mode: as for `calibrate`.
        tolerance: as for `calibrate`.

    Raises:
        UsageError: as `calibrate`, or the loader is empty.
    """
    batches, modes = list(loader), {module: module.training for module in model.modules()}

    @torch.no_grad()
    def score(model: nn.Module) -> float:
        if not batches:
            raise UsageError("calibrate_skips: the loader gives no batch", fix="give at least one labelled case")
        return sum(float(metric(model(image), label)) for image, label in batches) / len(batches)

    model.eval()
    try:
        return calibrate(model, score, grid=grid, mode=mode, tolerance=tolerance)
    finally:
        model.train(modes[model])  # what was appended
        for module, training in modes.items():
            module.training = training


def calibrate(
    model: nn.Module, score: Score, *, grid: Sequence[float] = GRID, mode: str = "linear", tolerance: float = 0.0
) -> Calibration:
    """Choose the factors of the model's skips by a score of the whole model, the higher the better.

    Args:
        model: hosts a skip path; a ``scale`` edit is appended to it, once, which `detach_skips` removes.
        score: model -> number; the factors are set when it is called.
        grid: factors to try.
        mode: ``"linear"`` tries ramps down to each factor; ``"coordinate"`` tries every factor on one level after the
            other, from the deepest to the finest, keeping what is better.
        tolerance: a factor other than 1 must gain more than this, at least 0, so that the score never falls.

    Raises:
        UsageError: as `check_search`, or the model's score is NaN; the model is as it was.
    """
    check_search(grid=grid, mode=mode, tolerance=tolerance)
    path = skip_path(model)
    former = calibrated_factors(path)
    try:
        found = _search(model, score, grid, mode, tolerance)
    except BaseException:
        set_factors(path, former)
        raise
    set_factors(path, found.per_level)
    return found


def check_search(*, grid: Sequence[float], mode: str, tolerance: float) -> None:
    """Refuse arguments that `calibrate` cannot search with.

    Raises:
        UsageError: an unknown mode, no factors, or a factor or tolerance that is no number or may lose score.
    """
    if mode not in MODES:
        raise UsageError(f"unknown mode '{mode}' of calibrate_skips: {nearest(str(mode), MODES)}")
    if not isinstance(grid, Sequence) or not grid or not all(is_number(factor) for factor in grid):
        raise UsageError(f"grid of calibrate_skips is {grid!r} (expected a list of one or more finite numbers)")
    if not is_number(tolerance) or tolerance < 0:
        raise UsageError(f"tolerance of calibrate_skips is {tolerance!r} (expected a number of at least 0)")


def _search(model: nn.Module, score: Score, grid: Sequence[float], mode: str, tolerance: float) -> Calibration:
    path = skip_path(model)
    levels = path.num_levels
    set_factors(path, [1.0] * levels)
    kept, before = [1.0] * levels, score(model)
    if math.isnan(before):
        raise UsageError("calibrate_skips: the score is NaN", fix="give cases that the metric can judge")
    best = before
    for trial in (None,) if mode == "linear" else reversed(range(levels)):
        start = list(kept)
        for factor in grid:
            factors = ramp(levels, factor) if trial is None else [*start[:trial], factor, *start[trial + 1 :]]
            set_factors(path, factors)
            found = score(model)
            if found > best + tolerance:
                best, kept = found, factors
    return Calibration(tuple(kept), before, best)


def calibrated_factors(path: SkipPath) -> list[float] | None:
    """The factors that a calibration set, finest first; None before the first one."""
    if path.calibrated is None:
        return None
    own = {path.sites[name].level: float(part.factor) for name, part in _calibrated(path).items()}
    return [own.get(level, 1.0) for level in range(path.num_levels)]


def set_factors(path: SkipPath, per_level: Sequence[float] | None) -> None:
    """Set the factors, finest first, of the calibration's own ``scale`` edit, appended at the first call.

    The host's own edits are part of what it learned and are left alone. None: remove the edit.
    """
    if per_level is None:
        if path.calibrated is not None:
            del path.edits[path.calibrated]
            path.calibrated = None
        return
    if path.calibrated is None:
        path.extend({"edit": [{"name": "scale"}]})
        path.calibrated = len(path.edits) - 1
    for name, part in _calibrated(path).items():
        part.factor = float(per_level[path.sites[name].level])


def _calibrated(path: SkipPath) -> dict[str, SkipScale]:
    assert path.calibrated is not None
    return dict(cast(nn.ModuleDict, path.edits[path.calibrated]).items())  # type: ignore[arg-type]

"""What the parts of a plan that came with a model may hold, and what they must say together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le
from pydantic import BaseModel, ConfigDict

from medseg.data.normalize import SCHEMES
from medseg.data.plan import Plan
from medseg.errors import UnreadableFile

MOST_VOXELS = 2**30  # of a window
NEEDED_RANGES = {"case_min", "case_max", "percentile_00_5", "percentile_99_5"}
_STRICT = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

Extent = Annotated[float, Gt(0), Le(1e9)]  # in mm or voxels


class Span(BaseModel):
    """Smallest and largest value of the training cases, one per axis."""

    model_config = _STRICT

    min: list[Extent]
    max: list[Extent]


class Ranges(BaseModel):
    """What the training cases spanned, see `medseg.inference.guard`; an older model lacks some of it."""

    model_config = _STRICT

    cases: Annotated[int, Ge(1)] | None = None
    spacing: Span | None = None
    shape: Span | None = None
    extent: Span | None = None
    intensity: list[dict[str, float]] = []


class Scheme(BaseModel):
    """The normalization of one channel, see `medseg.data.normalize`."""

    model_config = _STRICT

    scheme: Literal["zscore", "ct", "percentile", "none", "unit", "imagenet", "minmax255"]
    nonzero: bool = False
    lower: float | None = None
    upper: float | None = None
    mean: float | None = None
    std: Annotated[float, Gt(0)] | None = None
    full: Annotated[float, Gt(0)] | None = None


def check_ranges(plan: Plan) -> None:
    """Refuse a plan of well-typed settings that do not go together.

    Raises:
        UnreadableFile: naming the setting, its value and what is expected.
    """
    for field, value, expected in _wrong(plan):
        problem = f"model.json: plan.{field} is {value!r:.100} (expected {expected})"
        raise UnreadableFile(problem, fix="copy or train the model again")


def _wrong(plan: Plan) -> Iterator[tuple[str, Any, str]]:
    for name in ("patch_size", "size"):
        size = getattr(plan, name)
        if size is not None and prod(size) > MOST_VOXELS:
            yield name, size, f"at most {MOST_VOXELS} voxels"
    values = list(plan.labels.values())
    if len(set(values)) < len(values):
        yield "labels", plan.labels, "different values"
    axes = set(map(str, range(plan.spatial_dims)))
    pairs = [pair for found in plan.mirror_swaps.values() for pair in found]
    if not set(plan.mirror_swaps) <= axes or any(len(pair) != 2 or len(set(pair) & set(values)) != 2 for pair in pairs):
        yield "mirror_swaps", plan.mirror_swaps, "axis: pairs of label values"
    for scheme in plan.normalization:
        yield from _wrong_scheme(scheme)
    yield from _wrong_ranges(plan)


def _wrong_scheme(scheme: Mapping[str, Any]) -> Iterator[tuple[str, Any, str]]:
    lacking = [key for key in SCHEMES[scheme["scheme"]] if scheme.get(key) is None]
    if lacking or any(value is None for value in scheme.values()):
        yield "normalization", dict(scheme), f"numbers{' for ' + ', '.join(lacking) if lacking else ''}"
    low, high = (0.0, 100.0) if scheme["scheme"] == "percentile" else (float("-inf"), float("inf"))
    lower, upper = scheme.get("lower", low), scheme.get("upper", high)
    if lower is not None and upper is not None and not low <= lower < upper <= high:
        yield "normalization", dict(scheme), "lower below upper"


def _wrong_ranges(plan: Plan) -> Iterator[tuple[str, Any, str]]:
    for name in ("spacing", "shape", "extent"):
        span = plan.ranges.get(name)
        ends = () if span is None else (span["min"], span["max"])
        if any(len(end) != plan.spatial_dims for end in ends) or any(a > b for a, b in zip(*ends, strict=True)):
            yield f"ranges.{name}", span, f"{plan.spatial_dims} numbers from smallest to largest"
    known = plan.ranges.get("intensity")
    if known and (len(known) != len(plan.channel_names) or any(one and not set(one) >= NEEDED_RANGES for one in known)):
        yield "ranges.intensity", known, f"one per channel, with {', '.join(sorted(NEEDED_RANGES))}"

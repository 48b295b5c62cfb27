"""Settings of ``plan``: what a user decides instead of the plan; null keeps what it chooses."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Annotated, Any, Literal, Self

from annotated_types import Ge, Gt, Le, Len
from pydantic import BeforeValidator, Strict, model_validator

from medseg.errors import UsageError
from medseg.settings.base import (
    MOST_IN_BATCH,
    MOST_VOXELS,
    Axis,
    LabelValue,
    Many,
    Pair,
    Said,
    Settings,
    Sizes,
    Some,
    Spacing,
    Sparse,
    UserPath,
)

Scheme = Literal["zscore", "ct", "percentile", "none", "unit", "imagenet", "minmax255"]
Stride = Annotated[int, Ge(1), Le(64)]
StageStride = Stride | Annotated[tuple[Stride, ...], Strict(False), Len(2, 3)]
Strides = Annotated[tuple[StageStride, ...], Strict(False), Len(1, 12)]
BatchSize = Annotated[int, Ge(1), Le(2**16)]
NEEDED = {"ct": ("lower", "upper", "mean", "std"), "unit": ("full",), "imagenet": ("full", "mean", "std")}


def _axis_names(swaps: Any) -> Any:
    """Axes are numbers in a config and names in a plan."""
    return {str(axis): pairs for axis, pairs in swaps.items()} if isinstance(swaps, dict) else swaps


Swaps = Annotated[
    dict[Literal["0", "1", "2"], Many[Pair[LabelValue]]],
    BeforeValidator(_axis_names),
    Said("a mapping of axes to pairs of label values, e.g. {0: [[1, 2]]}"),
]


class ChannelScheme(Sparse):
    """How the intensities of one channel are normalized, see `medseg.data.normalize`."""

    scheme: Scheme
    nonzero: bool = False
    lower: float | None = None
    upper: float | None = None
    mean: float | None = None
    std: Annotated[float, Gt(0)] | None = None
    full: Annotated[float, Gt(0)] | None = None

    @model_validator(mode="after")
    def _together(self) -> Self:
        if lacking := [key for key in NEEDED.get(self.scheme, ()) if getattr(self, key) is None]:
            fix = "set it for all channels by its name, as plan.normalization=imagenet"
            raise UsageError(f"normalization '{self.scheme}' lacks {', '.join(lacking)}", fix=fix)
        low, high = (0.5, 99.5) if self.scheme == "percentile" else (float("-inf"), float("inf"))
        low, high = low if self.lower is None else self.lower, high if self.upper is None else self.upper
        if low >= high or (self.scheme == "percentile" and not 0 <= low < high <= 100):
            raise UsageError(f"normalization '{self.scheme}' has lower {low} and upper {high} (expected lower < upper)")
        return self


class ImagePlanSettings(Settings):
    """The keys of ``plan`` that pretraining knows."""

    file: UserPath | None = None
    spacing: Spacing | None = None
    patch_size: Sizes | None = None
    strides: Strides | None = None
    normalization: Scheme | Some[ChannelScheme] | None = None

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        check_voxels("plan.patch_size", self.patch_size)
        return self


class PlanSettings(ImagePlanSettings):
    """The keys of ``plan`` in ``configs/train.yaml`` and ``configs/prepare.yaml``."""

    batch_size: BatchSize | None = None
    size: Sizes | None = None
    crop_nonzero: bool | None = None
    mirror_axes: Annotated[tuple[Axis, ...], Strict(False), Len(0, 3)] | None = None
    mirror_swaps: Swaps | None = None

    @model_validator(mode="after")
    def _together(self) -> Self:
        check_voxels("plan.size", self.size)
        if len(set(self.mirror_axes or ())) < len(self.mirror_axes or ()):
            raise UsageError(f"plan.mirror_axes is {list(self.mirror_axes or ())} (expected each axis once)")
        voxels = prod(self.patch_size or (1,)) * (self.batch_size or 1)
        if voxels > MOST_IN_BATCH:
            problem = f"plan.batch_size is {self.batch_size}: {voxels:,} voxels in a batch"
            raise UsageError(f"{problem} (expected at most {MOST_IN_BATCH:,})", fix="set a smaller batch or patch")
        return self


def check_voxels(key: str, sizes: Iterable[int] | None) -> None:
    """Refuse a patch or an image that no machine holds. Raises UsageError."""
    if sizes is not None and prod(sizes) > MOST_VOXELS:
        raise UsageError(f"{key} is {list(sizes)}, {prod(sizes):,} voxels (expected at most {MOST_VOXELS:,})")

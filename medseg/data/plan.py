"""The plan: what is done to a dataset and how large the network may be, each choice with its reason, as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from medseg.data import plan_rules as rules
from medseg.data.fingerprint import Fingerprint
from medseg.data.laterality import decide_mirroring
from medseg.data.normalize import check_scheme
from medseg.data.plan_choices import (
    check_axes,
    choose_crop,
    choose_network,
    choose_normalization,
    named_normalization,
    places,
    slice_axis,
    training_ranges,
)
from medseg.errors import BadDataset, UnreadableFile, UsageError, nearest
from medseg.io import read_json, write_json

NEVER_MIRRORED = "is never mirrored"  # a reason of mirror_axes, after the name of a target
LATER = ("ranges", "reasons", "size", "slice_axis", "color")  # settings that an older plan may lack


@dataclass(frozen=True)
class Plan:
    """Axes are those of the canonical (RAS+) array; spacing in mm, sizes in voxels.

    Attributes:
        strides: per stage and axis (given as one number: for every axis); the first stage has 1 everywhere.
        normalization: per channel, ``{"scheme": "zscore", "nonzero": bool}``, ``{"scheme": "ct", "lower", "upper",
            "mean", "std"}``, ``{"scheme": "percentile", "lower": 0.5, "upper": 99.5}``, ``{"scheme": "none"}``, and for
            pictures ``"unit"``, ``"imagenet"`` and ``"minmax255"``, see `medseg.data.normalize`.
        crop_nonzero: crop to the box of voxels that are not 0 before anything else.
        mirror_axes: spatial axes that may be mirrored, in training and in test-time augmentation.
        mirror_swaps: axis, as a string -> pairs of label values that change places when it is mirrored.
        ranges: spacing, shape and intensity ranges of the training cases, for an input guard.
        reasons: name of a choice -> why.
        size: pixels that every image (of slices: every slice) is resized to, whatever its shape; None: by spacing.
        slice_axis: volumes are cut into slices across this axis for a 2D network; the patch is 1 voxel thick there.
        color: what pictures are brought to, "keep", "rgb" or "grey".
    """

    dataset: str
    spatial_dims: int
    channel_names: tuple[str, ...]
    labels: dict[str, int]
    ignore_label: int | None
    spacing: tuple[float, ...]
    patch_size: tuple[int, ...]
    batch_size: int
    strides: tuple[tuple[int, ...], ...]
    normalization: tuple[dict[str, Any], ...]
    crop_nonzero: bool
    mirror_axes: tuple[int, ...]
    mirror_swaps: dict[str, list[list[int]]]
    ranges: dict[str, Any] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    size: tuple[int, ...] | None = None
    slice_axis: int | None = None
    color: str = "keep"

    def in_slice(self) -> Plan:
        """The plan that the network sees: of slices, with two dimensions; else the plan itself."""
        axis = self.slice_axis
        if axis is None:
            return self
        kept = [a for a in range(self.spatial_dims) if a != axis]
        return replace(
            self,
            spatial_dims=len(kept),
            slice_axis=None,
            spacing=tuple(self.spacing[a] for a in kept),
            patch_size=tuple(self.patch_size[a] for a in kept),
            strides=tuple(tuple(stage[a] for a in kept) for stage in self.strides),
            mirror_axes=tuple(kept.index(a) for a in self.mirror_axes),
            mirror_swaps={str(kept.index(int(a))): pairs for a, pairs in self.mirror_swaps.items()},
        )

    def grid(self, shape: Sequence[int], spacing: Sequence[float]) -> tuple[int, ...]:
        """The shape that an image of `shape` voxels of `spacing` mm, both canonical, is resampled to."""
        if self.size is None:
            wanted = rules.resampled_shape(shape, spacing, self.spacing)
        else:
            wanted = self.size if self.slice_axis is None else rules.inserted(self.size, self.slice_axis, 1)
        return tuple(shape[a] if a == self.slice_axis else n for a, n in enumerate(wanted))

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, dicts, numbers and strings."""
        return _plain(asdict(self))

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Plan:
        """Build a plan from ``to_dict``'s answer; `UsageError` for unknown, missing or impossible settings."""
        missing = [f.name for f in fields(cls) if f.name not in (*settings, *LATER)]
        if missing:
            raise UsageError(f"the plan lacks {', '.join(missing)}", fix="make it again with medseg prepare")
        _check_names(settings)
        dims, axis = settings["spatial_dims"], settings.get("slice_axis")
        return _checked(cls(**{name: _frozen(name, value, dims, axis) for name, value in settings.items()}))

    def save(self, path: str | Path) -> None:
        """Write JSON, atomically."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read what ``save`` wrote; `UnreadableFile` for damaged JSON."""
        settings = read_json(path)
        if not isinstance(settings, dict):
            raise UnreadableFile("a plan must be a JSON object", path=path)
        return cls.from_dict(settings)

    def override(self, **settings: Any) -> Plan:
        """The same plan with some settings replaced; None leaves a setting as it is.

        Raises:
            UsageError: unknown name (the nearest one is told) or a value that cannot be.
        """
        _check_names(settings)
        dims, axis = self.spatial_dims, self.slice_axis
        given = {name: _frozen(name, value, dims, axis) for name, value in settings.items() if value is not None}
        reasons = {**self.reasons, **dict.fromkeys(given, "set by the user"), **given.pop("reasons", {})}
        return _checked(replace(self, **given, reasons=reasons))


def make_plan(
    fingerprint: Fingerprint,
    *,
    memory_gib: float | None = None,
    device: str = "cpu",
    slices: str | int | None = None,
    **overrides: Any,
) -> Plan:
    """Choose every setting from the fingerprint; what depends on an overridden setting follows it.

    Args:
        fingerprint: facts of the training cases.
        memory_gib: memory that training may use; default 8 on a GPU and no limit beside time on a CPU.
        device: "cpu" or the name of an accelerator.
        slices: cut volumes into "axial", "coronal" or "sagittal" slices, or across an axis (0, 1, 2 of RAS+), for a 2D
            network.
        overrides: fields of `Plan` that the user sets; None means not set. ``normalization`` may be one name for all
            channels.

    Raises:
        UsageError: as `Plan.override`.
    """
    _check_names(overrides)
    cases, dims = fingerprint.cases, fingerprint.spatial_dims
    axis = slice_axis(slices, dims)
    given = {name: _frozen(name, value, dims, axis) for name, value in overrides.items() if value is not None}
    if axis is not None:
        given = {name: _in_volume(name, value, axis) for name, value in given.items()}
    if isinstance(given.get("normalization"), str):
        given["normalization"] = named_normalization(given["normalization"], fingerprint)
    crop, crop_reason = choose_crop(fingerprint)
    crop = given.get("crop_nonzero", crop)
    shapes = np.array([case.cropped_shape if crop else case.shape for case in cases])
    spacings = np.array([case.spacing for case in cases])
    spacing, spacing_reason = rules.target_spacing(spacings, shapes)
    spacing = check_axes(given.get("spacing", spacing), fingerprint.spatial_dims, "spacing")
    resampled = [rules.resampled_shape(n, mm, spacing) for n, mm in zip(shapes, spacings, strict=True)]
    median = np.median(resampled, axis=0)
    if "size" in given:
        check_axes(given["size"], fingerprint.spatial_dims - (axis is not None), "size")
        median = np.array(given["size"] if axis is None else rules.inserted(given["size"], axis, 1), float)
    network, network_reasons = choose_network(median, spacing, memory_gib, device, given, axis)
    normalization, normalization_reason = choose_normalization(fingerprint)
    mirroring = decide_mirroring(fingerprint.labels, *places(fingerprint), fingerprint.spatial_dims)
    plan = Plan(
        dataset=fingerprint.dataset,
        spatial_dims=fingerprint.spatial_dims,
        channel_names=fingerprint.channel_names,
        labels=fingerprint.labels,
        ignore_label=fingerprint.ignore_label,
        spacing=spacing,
        normalization=normalization,
        crop_nonzero=crop,
        mirror_axes=tuple(a for a in mirroring.axes if a != axis),
        mirror_swaps={a: pairs for a, pairs in mirroring.swaps.items() if a != str(axis)},
        slice_axis=axis,
        color=fingerprint.color,
        ranges=training_ranges(fingerprint, shapes, spacings),
        reasons={
            "spacing": spacing_reason,
            "normalization": normalization_reason,
            "crop_nonzero": crop_reason,
            "mirror_axes": mirroring.reason,
            **network_reasons,
        },
        **network,
    )
    return plan.override(**given)


def check_stages(plan: Plan) -> None:
    """Refuse a plan whose images are too small to be halved once, which every network that takes strides does.

    Raises:
        BadDataset: naming the size.
    """
    if len(plan.strides) < 2:
        size = "x".join(map(str, plan.in_slice().patch_size))
        problem = f"the images are about {size} voxels at the plan's spacing: too small for a network to halve them"
        raise BadDataset(problem, fix="give images of 8 voxels or more along an axis, or a smaller plan.spacing")


def _check_names(settings: Mapping[str, Any]) -> None:
    known = [f.name for f in fields(Plan)]
    for name in settings:
        if name not in known:
            raise UsageError(f"the plan has no setting '{name}'", fix=nearest(name, known))


def _checked(plan: Plan) -> Plan:
    """Refuse settings that cannot work together, before any data is touched."""
    for name in ("spacing", "patch_size"):
        check_axes(getattr(plan, name), plan.spatial_dims, name)
    for stage in plan.strides:
        check_axes(stage, plan.spatial_dims, "strides")
    if plan.slice_axis is not None and plan.patch_size[plan.slice_axis] != 1:
        raise UsageError(
            f"plan.patch_size {list(plan.patch_size)} is over 1 voxel thick on axis {plan.slice_axis}, which is sliced",
            fix="set 1 there",
        )
    if plan.size is not None:
        check_axes(plan.size, plan.in_slice().spatial_dims, "size")
    steps = rules.total_stride(plan.strides)
    if any(n % step for n, step in zip(plan.patch_size, steps, strict=True)):
        fix = f"make it divisible by {list(steps)} or set plan.strides too"
        raise UsageError(f"plan.patch_size {list(plan.patch_size)} does not fit the strides", fix=fix)
    if isinstance(plan.normalization, str) or len(plan.normalization) != len(plan.channel_names):
        raise UsageError(f"plan.normalization needs one scheme per channel ({len(plan.channel_names)})")
    for scheme in plan.normalization:
        check_scheme(scheme)
    if plan.batch_size < 1 or not set(plan.mirror_axes) <= set(range(plan.spatial_dims)):
        raise UsageError("plan.batch_size must be >= 1 and plan.mirror_axes must name spatial axes")
    return plan


def _frozen(name: str, value: Any, spatial_dims: int, axis: int | None) -> Any:
    """Lists of JSON and of configs become the tuples of the dataclass."""
    if name == "strides":
        return _stages(value, spatial_dims, axis)
    if name in ("channel_names", "spacing", "patch_size", "normalization", "mirror_axes", "size"):
        return value if value is None or isinstance(value, str) else tuple(value)
    return value


def _stages(value: Any, spatial_dims: int, axis: int | None) -> tuple[tuple[int, ...], ...]:
    """Strides per stage and axis; one number is that of every axis but the one that is sliced."""
    try:
        full = [[1 if a == axis else n for a in range(spatial_dims)] if isinstance(n, int) else n for n in value]
        stages = tuple(tuple(int(step) for step in stage) for stage in full)
    except (TypeError, ValueError):
        stages = ()
    lengths = (spatial_dims, spatial_dims - (axis is not None))
    if not stages or any(len(stage) not in lengths or min(stage) < 1 for stage in stages):
        fix = f"give, per stage, a whole number or one per axis ({' or '.join(map(str, sorted(set(lengths))))})"
        raise UsageError(f"plan.strides is {value}", fix=fix)
    return stages


def _in_volume(name: str, value: Any, axis: int) -> Any:
    """Patch and strides of slices, where the user gave two numbers, as those of the volume."""
    if name == "patch_size" and len(value) == 2:
        return rules.inserted(value, axis, 1)
    if name == "strides":
        return tuple(rules.inserted(stage, axis, 1) if len(stage) == 2 else stage for stage in value)
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value

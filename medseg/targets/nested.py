"""Nested classes: one logit per voxel whose thresholds are the borders of regions that contain one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from medseg.errors import UsageError
from medseg.losses.cross_entropy import at_least_float32
from medseg.losses.multi_level import MultiLevel, make_multi_level_loss
from medseg.targets.base import TARGETS, HeadStart, build_target, categorical_entropy
from medseg.targets.coded import CodedTarget
from medseg.targets.label_codes import LabelCodes
from medseg.targets.region_table import check_nested, region_order, regions_of_levels, resolve_regions, swapped_places


@TARGETS.register("nested")
class NestedClasses(CodedTarget):
    """Multi-level activation (Hu et al. 2018, arXiv 1810.09488; Piraud et al. 2018, arXiv 1804.01910).

    Level 0 is outside, level L the innermost region. With one logit x the probability of region j is
    s_j = sigmoid(k (x - t_j)), so an inner region never leaves the one around it, nor does it in means over patches,
    mirrored copies or networks, or after linear resampling. For the formulas see `medseg.losses.multi_level`.

    Args:
        labels: class name -> label value, background included, without the ignore label.
        levels: the labels of each level, by name or value, the outermost first, e.g. ``["edema", "necrosis",
            "enhancing"]``, or ``[2, [1, 3], 4]`` where a level has several labels.
        regions: instead of `levels`, region name -> labels, the outermost first, e.g. ``{"whole": [1, 2, 3, 4], "core":
            [1, 3, 4], "enhancing": 4}``. Both None: what dataset.json declares, where training fills it in.
        class_order: label value that each level becomes when decoded. None: the first of its labels that is in no later
            region.
        ignore_label: value of voxels that count neither in the loss nor as any class.
        k: steepness of the activation's steps.
        h: distance of its thresholds.
        loss: a term, or terms with weights, of `medseg.losses.multi_level.TERMS`. None: modified cross-entropy + Dice
            of the regions.
        class_weights: of levels 0..L in the loss; None: all 1.
        head_weights: weights of deep-supervision heads; None as in `medseg.targets.base.head_weights`.

    Raises:
        UsageError: no regions, both ways of naming them, regions that are not nested or such as
            `medseg.targets.region_table` refuses; label values that clash; settings of the loss that cannot be.
    """

    name = "nested"
    out_channels = 1

    def __init__(
        self,
        *,
        labels: Mapping[str, int],
        levels: Sequence[Any] | None = None,
        regions: Mapping[str, Any] | None = None,
        class_order: Sequence[int] | None = None,
        ignore_label: int | None = None,
        k: float = 10.0,
        h: float = 0.5,
        loss: str | Mapping[str, float] | None = None,
        class_weights: Sequence[float] | None = None,
        head_weights: Sequence[float] | None = None,
    ) -> None:
        self.labels = {name: int(value) for name, value in labels.items()}
        if (levels is None) == (regions is None):
            raise UsageError(
                f"target 'nested' needs levels or regions, one of them (labels {self.labels})",
                fix="set target.levels=[labels], or target.regions={name: [labels], ...}, the outermost first",
            )
        given = regions_of_levels(levels, self.labels) if levels is not None else regions or {}
        self.classes = resolve_regions(given, self.labels)
        check_nested(self.classes)
        self.channels = tuple(self.classes.values())
        self.class_order = region_order(self.classes, class_order)
        self.ignore_label, self.head_weights, self.class_weights = ignore_label, head_weights, class_weights
        groups = list(self.classes.values())
        depths = {value: sum(value in group for group in groups) for value in self.labels.values()}
        self._codes = LabelCodes(self.labels, ignore_label, depths)
        self.probability_channels = len(groups)
        self.activation = MultiLevel(len(groups), k, h)
        self.loss_settings = {"modified_ce": 1.0, "region_dice": 1.0} if loss is None else loss
        self._loss = make_multi_level_loss(self.loss_settings, self.activation, class_weights)

    @property
    def head_start(self) -> HeadStart:
        """One h below the lowest threshold (-2 h for three levels): outside every region; the usual slope by k."""
        return HeadStart(bias=self.activation.thresholds[0] - self.activation.h, scale=1 / self.activation.k)

    def activate(self, logits: Tensor) -> Tensor:
        """Logits (B, 1, *S) -> probabilities of the regions (B, L, *S), at least float32, the outermost's first."""
        return self.activation.steps(at_least_float32(logits)).sigmoid()

    def decode(self, probabilities: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """Probabilities (B, L, *S) -> label values (B, *S): the number of regions with p >= 0.5 is the level."""
        return self._codes.painted([0, *self.class_order], (probabilities >= 0.5).sum(1))

    def entropy(self, probabilities: Tensor) -> Tensor:
        """Probabilities (B, L, *S) -> entropy (B, *S) over the L + 1 levels, 0 (certain) to 1 (all alike)."""
        nothing = torch.zeros_like(probabilities[:, :1])
        levels = torch.cat([nothing + 1, probabilities], 1) - torch.cat([probabilities, nothing], 1)
        return categorical_entropy(levels.clamp(min=0))

    def swapped(self, pairs: Sequence[Sequence[int]]) -> list[int]:
        """The only channel, after pairs of label values changed places within their levels.

        Raises:
            UsageError: labels of different levels changed places.
        """
        groups = list(self.classes.values())
        if swapped_places(groups, pairs) != list(range(len(groups))):
            problem = f"mirroring exchanges labels {[list(p) for p in pairs]} of different levels"
            raise UsageError(problem, fix="predict without tta (tta=false)")
        return [0]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `medseg.targets.build_target`."""
        return {
            "name": self.name,
            "labels": dict(self.labels),
            "regions": {name: list(values) for name, values in self.classes.items()},
            "class_order": list(self.class_order),
            "ignore_label": self.ignore_label,
            "k": self.activation.k,
            "h": self.activation.h,
            "loss": self.loss_settings if isinstance(self.loss_settings, str) else dict(self.loss_settings),
            "class_weights": None if self.class_weights is None else list(self.class_weights),
            "head_weights": None if self.head_weights is None else list(self.head_weights),
        }

    def __reduce__(self) -> tuple[Any, ...]:
        """A target is its description, see `ExclusiveClasses`."""
        return build_target, (self.to_dict(),)

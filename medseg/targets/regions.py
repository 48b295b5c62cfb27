"""Regions: overlapping unions of labels, each with a sigmoid of its own, as nnU-Net trains BraTS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from medseg.errors import UsageError
from medseg.losses import IGNORE
from medseg.losses.cross_entropy import at_least_float32
from medseg.losses.regions import make_region_loss
from medseg.targets.base import TARGETS, build_target, categorical_entropy
from medseg.targets.coded import CodedTarget
from medseg.targets.label_codes import LabelCodes
from medseg.targets.region_table import region_order, resolve_regions, swapped_places


@TARGETS.register("regions")
class Regions(CodedTarget):
    """One sigmoid channel per region; regions are painted into a label map one over the other.

    Nothing keeps an inner region inside its outer one before they are painted; see `medseg.targets.NestedClasses`.

    Args:
        labels: class name -> label value, background included, without the ignore label.
        regions: region name -> labels, by name or value, in the order of painting (the outermost first). None, or what
            dataset.json declares where training fills it in, see `medseg.targets.base.configure_target`.
        class_order: label value that each region paints. None: the first of its labels that is in no later region.
        ignore_label: value of voxels that count neither in the loss nor as any class.
        loss: a term, or terms with weights, of `medseg.losses.regions.REGION_TERMS`. None: Dice + cross-entropy.
        head_weights: weights of deep-supervision heads; None as in `medseg.targets.base.head_weights`.

    Raises:
        UsageError: no regions, or such as `medseg.targets.region_table` refuses; label values that clash; an unknown
            term of the loss.
    """

    name = "regions"
    head_start = None

    def __init__(
        self,
        *,
        labels: Mapping[str, int],
        regions: Mapping[str, Any] | None = None,
        class_order: Sequence[int] | None = None,
        ignore_label: int | None = None,
        loss: str | Mapping[str, float] | None = None,
        head_weights: Sequence[float] | None = None,
    ) -> None:
        self._codes = LabelCodes(labels, ignore_label)
        self.labels, self.ignore_label, self.head_weights = self._codes.labels, ignore_label, head_weights
        if regions is None:
            raise UsageError(
                f"target 'regions' has no regions, and the dataset declares none (labels {self.labels})",
                fix="set target.regions={name: [labels], ...}, the outermost first, or target=exclusive",
            )
        self.classes = resolve_regions(regions, self.labels)
        self.channels = tuple(self.classes.values())
        self.class_order = region_order(self.classes, class_order)
        self.out_channels = self.probability_channels = len(self.classes)
        self.loss_settings = {"dice": 1.0, "cross_entropy": 1.0} if loss is None else loss
        self._loss = make_region_loss(self.loss_settings)
        members = [[value in group for value in self._codes.values] for group in self.classes.values()]
        self._members = torch.tensor(members)  # (R, label values)

    def activate(self, logits: Tensor) -> Tensor:
        """Logits (B, R, *S) -> probabilities (B, R, *S), at least float32, one for each region."""
        return at_least_float32(logits).sigmoid()

    def decode(self, probabilities: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """Probabilities (B, R, *S) -> label values (B, *S): regions with p >= 0.5 painted one over the other."""
        place = torch.zeros_like(probabilities[:, 0], dtype=torch.long)
        for number in range(self.out_channels):
            place[probabilities[:, number] >= 0.5] = number + 1
        return self._codes.painted([0, *self.class_order], place)

    def entropy(self, probabilities: Tensor) -> Tensor:
        """Probabilities (B, R, *S) -> (B, *S): mean entropy of the regions, 0 (certain) to 1."""
        return torch.stack([categorical_entropy(p) for p in probabilities.split(1, 1)]).mean(0)

    def swapped(self, pairs: Sequence[Sequence[int]]) -> list[int]:
        """Order of the channels after pairs of label values changed places.

        Raises:
            UsageError: a region becomes none of the regions.
        """
        return swapped_places(list(self.classes.values()), pairs)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `medseg.targets.build_target`."""
        return {
            "name": self.name,
            "labels": dict(self.labels),
            "regions": {name: list(values) for name, values in self.classes.items()},
            "class_order": list(self.class_order),
            "ignore_label": self.ignore_label,
            "loss": self.loss_settings if isinstance(self.loss_settings, str) else dict(self.loss_settings),
            "head_weights": None if self.head_weights is None else list(self.head_weights),
        }

    def __reduce__(self) -> tuple[Any, ...]:
        """A target is its description, see `ExclusiveClasses`."""
        return build_target, (self.to_dict(),)

    def _head_loss(self, logits: Tensor, codes: Tensor) -> Tensor:
        truth = self._members.to(codes.device)[:, codes[:, 0].clamp(min=0)].movedim(0, 1)
        return self._loss(logits, truth, codes != IGNORE)

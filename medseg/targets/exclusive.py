"""Exclusive classes: every voxel has one label, or none where the ignore label says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from medseg.errors import UsageError
from medseg.losses import build_loss
from medseg.losses.cross_entropy import at_least_float32
from medseg.targets.base import TARGETS, build_target, categorical_entropy
from medseg.targets.coded import CodedTarget
from medseg.targets.label_codes import LabelCodes
from medseg.targets.region_table import resolve_regions, swapped_places


@TARGETS.register("exclusive")
class ExclusiveClasses(CodedTarget):
    """Softmax over the classes, one of which is the background; or one sigmoid channel for two classes.

    Channel k stands for the k-th smallest label value, so values need not be consecutive.

    Args:
        labels: class name -> label value, background included, without the ignore label.
        ignore_label: value of voxels that count neither in the loss nor as any class.
        binary: with exactly two classes, one sigmoid channel for the larger value.
        loss: name of a loss, or a mapping with ``name`` and its arguments, see `medseg.losses`.
        head_weights: weights of deep-supervision heads; None as in `medseg.targets.base.head_weights`.
        threshold: of the probability from which a binary target decodes the foreground, 0 to 1.
        regions: name -> labels; what is scored instead of the classes, so that softmax can be compared with targets of
            overlapping regions. Nothing else depends on it.

    Raises:
        UsageError: for label values that clash, an unknown loss, `binary` with other than two classes, a threshold that
            is none, or regions as `medseg.targets.region_table.resolve_regions` refuses them.
    """

    name = "exclusive"

    def __init__(
        self,
        *,
        labels: Mapping[str, int],
        ignore_label: int | None = None,
        binary: bool = False,
        loss: str | Mapping[str, Any] = "dice_ce",
        head_weights: Sequence[float] | None = None,
        threshold: float = 0.5,
        regions: Mapping[str, Any] | None = None,
    ) -> None:
        self._codes = LabelCodes(labels, ignore_label)
        self.labels, self.values = self._codes.labels, self._codes.values
        self.ignore_label, self.binary, self.head_weights = ignore_label, binary, head_weights
        self.regions = None if regions is None else resolve_regions(regions, self.labels)
        if binary and len(self.values) != 2:
            raise UsageError(f"binary target with {len(self.values)} classes (needs exactly 2)")
        self.threshold = threshold
        if not 0 < threshold < 1 or (threshold != 0.5 and not binary):
            raise UsageError(f"threshold is {threshold} (expected 0 to 1, for a binary target)", fix="leave it out")
        self.out_channels = self.probability_channels = 1 if binary else len(self.values)
        self.channels = tuple((value,) for value in self.values[1 if binary else 0 :])
        self.head_start = None
        self.loss_settings, self._loss = loss, build_loss(loss)

    @property
    def classes(self) -> dict[str, tuple[int, ...]]:
        """What is scored: the regions if there are any, else every class but the background."""
        return self.regions or {name: (value,) for name, value in self.labels.items() if value != 0}

    def activate(self, logits: Tensor) -> Tensor:
        """Logits (B, K, *S) -> probabilities (B, K, *S), at least float32; they sum to 1 unless binary."""
        logits = at_least_float32(logits)
        return logits.sigmoid() if self.binary else logits.softmax(1)

    def decode(self, probabilities: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """Probabilities (B, K, *S) -> label values (B, *S): the most probable class; when binary, p >= threshold."""
        channels = (probabilities[:, 0] >= self.threshold).long() if self.binary else probabilities.argmax(1)
        return self._codes.painted(self.values, channels)

    def entropy(self, probabilities: Tensor) -> Tensor:
        """Probabilities (B, K, *S) -> entropy (B, *S), 0 (certain) to 1 (all classes alike)."""
        return categorical_entropy(probabilities)

    def swapped(self, pairs: Sequence[Sequence[int]]) -> list[int]:
        """Order of the channels after pairs of label values changed places."""
        return swapped_places([[value] for value in self.values[-self.out_channels :]], pairs)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `medseg.targets.build_target`."""
        return {
            "name": self.name,
            "labels": dict(self.labels),
            "ignore_label": self.ignore_label,
            "binary": self.binary,
            "loss": self.loss_settings if isinstance(self.loss_settings, str) else dict(self.loss_settings),
            "threshold": self.threshold,
            "head_weights": None if self.head_weights is None else list(self.head_weights),
            "regions": None if self.regions is None else {name: list(v) for name, v in self.regions.items()},
        }

    def __reduce__(self) -> tuple[Any, ...]:
        """A target is its description: another process builds its own, since losses may be closures."""
        return build_target, (self.to_dict(),)

"""Exclusive classes: every voxel has one label, or none where the ignore label says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medseg.errors import BadLabels, UsageError
from medseg.losses import IGNORE, build_loss
from medseg.losses.cross_entropy import at_least_float32
from medseg.targets.base import TARGETS, DenseTarget, build_target, head_weights, resize_labels

MAX_VALUE = 65_535  # of a label: values index a table


@TARGETS.register("exclusive")
class ExclusiveClasses(DenseTarget):
    """Softmax over the classes, one of which is the background; or one sigmoid channel for two classes.

    Channel k stands for the k-th smallest label value, so values need not be consecutive.

    Args:
        labels: class name -> label value, background included, without the ignore label.
        ignore_label: value of voxels that count neither in the loss nor as any class.
        binary: with exactly two classes, one sigmoid channel for the larger value.
        loss: name of a loss, or a mapping with ``name`` and its arguments, see `medseg.losses`.
        head_weights: weights of deep-supervision heads; None as in `medseg.targets.base.head_weights`.

    Raises:
        UsageError: for label values that clash, an unknown loss, or `binary` with other than two classes.
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
    ) -> None:
        self.labels = {name: int(value) for name, value in labels.items()}
        self.values = sorted(self.labels.values())
        self.ignore_label, self.binary, self.head_weights = ignore_label, binary, head_weights
        taken = [*self.values, *([] if ignore_label is None else [ignore_label])]
        if len(self.values) < 2 or len(set(taken)) < len(taken) or not 0 <= min(taken) <= max(taken) <= MAX_VALUE:
            raise UsageError(
                f"labels {self.labels}, ignore_label {ignore_label} "
                f"(needs two or more different values in 0..{MAX_VALUE})"
            )
        if binary and len(self.values) != 2:
            raise UsageError(f"binary target with {len(self.values)} classes (needs exactly 2)")
        self.out_channels = 1 if binary else len(self.values)
        self.loss_settings, self._loss = loss, build_loss(loss)
        self._channels = torch.full((max(taken) + 1,), IGNORE - 1)  # label value -> channel, IGNORE, or unknown
        self._channels[self.values] = torch.arange(len(self.values))
        if ignore_label is not None:
            self._channels[ignore_label] = IGNORE

    def encode(self, label: Tensor) -> Tensor:
        """Label values (B, 1, *S), any integer type -> channel numbers (B, 1, *S) int64, `IGNORE` where ignored.

        Raises:
            BadLabels: naming the values that the target does not know.
        """
        label = label.long()
        low, high = (int(v) for v in label.aminmax())
        if low < 0 or high >= len(self._channels):
            raise self._unknown(label)
        if self.ignore_label is None and self.values == list(range(len(self.values))):
            return label
        channels = self._channels.to(label.device)[label]
        if int(channels.min()) < IGNORE:
            raise self._unknown(label)
        return channels

    def loss(self, logits: Tensor | Sequence[Tensor], target: Tensor) -> Tensor:
        """Loss of one or more heads; for a head of lower resolution the target is resized to it.

        Args:
            logits: (B, K, *S), or a sequence of such tensors, finest or best first.
            target: what `encode` returned, (B, 1, *S).
        """
        heads = [logits] if isinstance(logits, Tensor) else list(logits)
        weights = head_weights(heads, self.head_weights if len(heads) > 1 else None)
        losses = [
            w * self._loss(h, resize_labels(target, h.shape[2:])) for w, h in zip(weights, heads, strict=True) if w
        ]
        return torch.stack(losses).sum()

    def activate(self, logits: Tensor) -> Tensor:
        """Logits (B, K, *S) -> probabilities (B, K, *S), at least float32; they sum to 1 unless binary."""
        logits = at_least_float32(logits)
        return logits.sigmoid() if self.binary else logits.softmax(1)

    def decode(self, probabilities: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """Probabilities (B, K, *S) -> label values (B, *S): the most probable class; when binary, p >= 0.5."""
        channels = (probabilities[:, 0] >= 0.5).long() if self.binary else probabilities.argmax(1)
        dtype = next(t for t in (torch.uint8, torch.int16, torch.int32) if self.values[-1] <= torch.iinfo(t).max)
        return torch.tensor(self.values, dtype=dtype, device=channels.device)[channels]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `medseg.targets.build_target`."""
        return {
            "name": self.name,
            "labels": dict(self.labels),
            "ignore_label": self.ignore_label,
            "binary": self.binary,
            "loss": self.loss_settings if isinstance(self.loss_settings, str) else dict(self.loss_settings),
            "head_weights": None if self.head_weights is None else list(self.head_weights),
        }

    def __reduce__(self) -> tuple[Any, ...]:
        """A target is its description: another process builds its own, since losses may be closures."""
        return build_target, (self.to_dict(),)

    def _unknown(self, label: Tensor) -> BadLabels:
        known = [*self.values, *([] if self.ignore_label is None else [self.ignore_label])]
        unknown = np.setdiff1d(label.unique().cpu().numpy(), known).tolist()
        return BadLabels(
            f"label values {unknown[:8]} are unknown (the dataset has {self.labels}, ignore_label {self.ignore_label})",
            fix="run medseg check on the dataset",
        )

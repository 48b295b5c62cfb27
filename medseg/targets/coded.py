"""What targets share whose labels are coded as one number per voxel before the loss sees them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from medseg.targets.base import DenseTarget, sum_of_heads
from medseg.targets.label_codes import LabelCodes


class CodedTarget(DenseTarget):
    """A dense target with a table of codes and a loss of logits against codes; a subclass sets the three attributes."""

    _codes: LabelCodes
    _loss: Callable[..., Tensor]
    head_weights: Sequence[float] | None

    def encode(self, label: Tensor) -> Tensor:
        """Label values (B, 1, *S), any integer type -> codes (B, 1, *S) int64, `IGNORE` where ignored.

        A code is the channel (exclusive classes), the level (nested ones) or the place among all values (regions).

        Raises:
            BadLabels: naming the values that the target does not know.
        """
        return self._codes.encode(label)

    def loss(self, logits: Tensor | Sequence[Tensor], target: Tensor) -> Tensor:
        """Loss of one or more heads; for a head of lower resolution the target is resized to it.

        Args:
            logits: (B, K, *S), or a sequence of such tensors, finest or best first.
            target: what `encode` returned, (B, 1, *S).
        """
        return sum_of_heads(self._head_loss, logits, target, self.head_weights)

    def _head_loss(self, logits: Tensor, codes: Tensor) -> Tensor:
        return self._loss(logits, codes)

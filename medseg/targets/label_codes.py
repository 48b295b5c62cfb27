"""Label values of a dataset, and the numbers that losses take for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from medseg.errors import BadLabels, UsageError
from medseg.io.label_coding import label_fault
from medseg.losses import IGNORE


class LabelCodes:
    """Label value -> code, `IGNORE` for the ignore label; any other value is refused.

    Args:
        labels: class name -> label value, without the ignore label.
        ignore_label: value of voxels without a label.
        codes: label value -> code. None: the place of the value among all values in ascending order.

    Attributes:
        values: label values, ascending.

    Raises:
        UsageError: for values that clash, are too large, or fewer than two.
    """

    def __init__(
        self, labels: Mapping[str, int], ignore_label: int | None, codes: Mapping[int, int] | None = None
    ) -> None:
        self.labels, self.ignore_label = {name: int(value) for name, value in labels.items()}, ignore_label
        self.values = sorted(self.labels.values())
        taken = [*self.values, *([] if ignore_label is None else [ignore_label])]
        if fault := label_fault(self.values, ignore_label):
            raise UsageError(f"labels {self.labels}, ignore_label {ignore_label}: {fault}", fix="correct dataset.json")
        codes = {value: place for place, value in enumerate(self.values)} if codes is None else codes
        self._codes = torch.full((max(taken) + 1,), IGNORE - 1)  # code, IGNORE, or unknown
        self._codes[self.values] = torch.tensor([codes[value] for value in self.values])
        if ignore_label is not None:
            self._codes[ignore_label] = IGNORE
        self._same = ignore_label is None and self._codes.tolist() == list(range(len(self.values)))

    def encode(self, label: Tensor) -> Tensor:
        """Label values (B, 1, *S), any integer type -> codes (B, 1, *S) int64, `IGNORE` where ignored.

        Raises:
            BadLabels: naming the values that are not known.
        """
        label = label.long()
        low, high = (int(v) for v in label.aminmax())
        if low < 0 or high >= len(self._codes):
            raise self._unknown(label)
        if self._same:
            return label
        codes = self._codes.to(label.device)[label]
        if int(codes.min()) < IGNORE:
            raise self._unknown(label)
        return codes

    def painted(self, values: Sequence[int], places: Tensor) -> Tensor:
        """Places (*S) in `values` -> these values, in the smallest of uint8, int16 and int32 that holds all labels."""
        dtype = next(t for t in (torch.uint8, torch.int16, torch.int32) if self.values[-1] <= torch.iinfo(t).max)
        return torch.tensor(values, dtype=dtype, device=places.device)[places]

    def _unknown(self, label: Tensor) -> BadLabels:
        known = [*self.values, *([] if self.ignore_label is None else [self.ignore_label])]
        unknown = np.setdiff1d(label.unique().cpu().numpy(), known).tolist()
        return BadLabels(
            f"label values {unknown[:8]} are unknown (the dataset has {self.labels}, ignore_label {self.ignore_label})",
            fix="run medseg check",
        )

"""Two label maps compared in one pass: the contingency table and the box of every combination of labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from medseg.errors import BadGeometry, BadLabels, UsageError
from medseg.evaluation.boundary import Surface, SurfaceDistances, surface_distances
from medseg.evaluation.components import Components, match_components

Box = tuple[slice, ...]
ROUNDING = 1e-3  # half-precision probabilities, and sums of them, may leave 0 to 1 by this much
SUM_TOLERANCE = 0.01  # of the sum over labels: probabilities may have been saved with 8 bits
MOST_VALUES = 2048  # more than any set of classes has: an instance map


class LabelPair:
    """A prediction and its reference on one grid.

    Args:
        prediction: (*S) integers or bool, 2D or 3D.
        reference: (*S) likewise.
        spacing: mm along each axis.
        ignore_label: voxels where the reference has this value belong to no class and are not counted.
        probabilities: label values of a class -> (*S) in 0..1, for calibration.

    Attributes:
        counted: (*S) bool, False where the reference is to be ignored; None where all voxels count.
        values: (K,) label values, ascending; not every one need occur.
        table: (K, K) int64 voxel counts, [reference, prediction].

    Raises:
        BadGeometry: different shapes, or a spacing that does not fit them.
        BadLabels: values that are not integers or are negative, or more of them than classes can have; probabilities
            that are none.
    """

    def __init__(
        self,
        prediction: np.ndarray,
        reference: np.ndarray,
        *,
        spacing: Sequence[float],
        ignore_label: int | None = None,
        probabilities: Mapping[tuple[int, ...], np.ndarray] | None = None,
    ) -> None:
        self.spacing = _checked_spacing(prediction, reference, spacing)
        self.probabilities = _checked_shares(probabilities or {}, reference.shape)
        self.prediction, self.reference = _integers(prediction, "prediction"), _integers(reference, "reference")
        ignored, self.counted = 0, None
        if ignore_label is not None:
            outside = self.reference == ignore_label
            ignored, self.counted = int(np.count_nonzero(outside)), ~outside
            self.prediction = np.where(outside, 0, self.prediction)
            self.reference = np.where(outside, 0, self.reference)
        self.values, codes = _encode(self.prediction, self.reference)
        self.table, self._boxes = _count(codes, len(self.values))
        self.table[0, 0] -= ignored

    def of(self, values: Sequence[int], *, tolerance: float, surface: Surface) -> ClassPair:
        """The class, or region, that has these label values, against everything else."""
        chosen = np.isin(self.values, list(values))
        tp = int(self.table[np.ix_(chosen, chosen)].sum())
        fp = int(self.table[np.ix_(~chosen, chosen)].sum())
        fn = int(self.table[np.ix_(chosen, ~chosen)].sum())
        return ClassPair(self, tuple(values), tp, fp, fn, int(self.table.sum()) - tp - fp - fn, tolerance, surface)

    def masks(self, values: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Prediction and reference of a class as bool, cropped to the box that holds both."""
        chosen = np.isin(self.values, list(values))
        held = (chosen[:, None] | chosen[None, :]).ravel()
        boxes = [box for box, wanted in zip(self._boxes, held, strict=True) if wanted and box is not None]
        box = union_box(boxes)
        return _mask(self.prediction[box], values), _mask(self.reference[box], values)

    @property
    def prediction_values(self) -> set[int]:
        """Label values that occur in the prediction."""
        return set(self.values[self.table.sum(axis=0) > 0].tolist())

    @property
    def reference_values(self) -> set[int]:
        """Label values that occur in the reference."""
        return set(self.values[self.table.sum(axis=1) > 0].tolist())


@dataclass(frozen=True, eq=False)
class ClassPair:
    """One class in both label maps: counts of voxels at once, boundary distances when first asked for.

    Attributes:
        tp, fp, fn, tn: voxels, the ignored ones left out.
        tolerance: mm, for the normalised surface distance.
        surface: definition of the boundary.
    """

    pair: LabelPair
    values: tuple[int, ...]
    tp: int
    fp: int
    fn: int
    tn: int
    tolerance: float
    surface: Surface

    @property
    def n_ref(self) -> int:
        """Voxels of the class in the reference."""
        return self.tp + self.fn

    @property
    def n_pred(self) -> int:
        """Voxels of the class in the prediction."""
        return self.tp + self.fp

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in millilitres; a 2D pixel counts as 1 mm thick."""
        return float(np.prod(self.pair.spacing)) / 1000

    @property
    def diagonal(self) -> float:
        """Length of the image's diagonal in mm, the longest distance that a structure can be off."""
        return float(np.linalg.norm(np.multiply(self.pair.reference.shape, self.pair.spacing)))

    @property
    def spacing(self) -> tuple[float, ...]:
        """mm along each axis."""
        return self.pair.spacing

    @property
    def truth_and_probability(self) -> tuple[np.ndarray, np.ndarray]:
        """Of all voxels that count, whether they have the class in the reference, (n,) bool, and its probability, (n,).

        Raises:
            UsageError: no probabilities were given.
        """
        if self.values not in self.pair.probabilities:
            raise UsageError("calibration needs probabilities", fix="predict with probabilities=true, or leave it out")
        truth, probability = np.isin(self.pair.reference, self.values), self.pair.probabilities[self.values]
        counted = self.pair.counted
        return (truth.ravel(), probability.ravel()) if counted is None else (truth[counted], probability[counted])

    @cached_property
    def masks(self) -> tuple[np.ndarray, np.ndarray]:
        """Prediction and reference as bool, cropped to the box that holds both; neither of them may be empty."""
        return self.pair.masks(self.values)

    @cached_property
    def components(self) -> Components:
        """Connected components of both masks and how they overlap; neither mask may be empty."""
        return match_components(*self.masks)

    @cached_property
    def distances(self) -> SurfaceDistances:
        """Distances between the two boundaries; neither mask may be empty."""
        prediction, reference = self.masks
        return surface_distances(prediction, reference, spacing=self.pair.spacing, surface=self.surface)


def _checked_spacing(prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float]) -> tuple[float, ...]:
    if prediction.shape != reference.shape:
        raise BadGeometry(f"the prediction has shape {prediction.shape}, the reference {reference.shape}")
    if prediction.ndim not in (2, 3) or not prediction.size:
        raise BadGeometry(f"label maps have shape {prediction.shape} (expected 2 or 3 axes with voxels)")
    sizes = tuple(float(size) for size in spacing)
    if len(sizes) != prediction.ndim or not all(np.isfinite(sizes)) or min(sizes) <= 0:
        raise BadGeometry(f"spacing is {sizes} (expected {prediction.ndim} numbers of mm > 0)")
    return sizes


def _checked_shares(
    probabilities: Mapping[tuple[int, ...], np.ndarray], shape: tuple[int, ...]
) -> Mapping[tuple[int, ...], np.ndarray]:
    for values, array in probabilities.items():
        if array.shape != shape:
            raise BadGeometry(f"probabilities of label {values} have shape {array.shape}, the reference {shape}")
        low, high = float(array.min()), float(array.max())
        if not (low >= -ROUNDING and high <= 1 + ROUNDING):  # NaN is neither
            raise BadLabels(f"probabilities of label {values} are in {low:g} to {high:g} (must be 0 to 1, without NaN)")
    return probabilities


def check_channels(channels: np.ndarray, groups: Sequence[tuple[int, ...]]) -> None:
    """Refuse what are no probabilities.

    Args:
        channels: (K, *S).
        groups: label values of each channel.

    Raises:
        BadLabels: values outside of 0 to 1 (NaN is); or, of labels that exclude each other, sums that are not 1.
    """
    low, high = float(channels.min()), float(channels.max())
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):  # NaN is neither
        problem = f"the probabilities are in {low:g} to {high:g} (must be 0 to 1, without NaN)"
        raise BadLabels(problem, fix="save the network's output after its softmax or sigmoid")
    exclusive = (0,) in groups and all(len(group) == 1 for group in groups)
    if not exclusive or len(channels) != len(groups):
        return
    sums = channels.sum(axis=0, dtype=np.float32)
    least, most = float(sums.min()), float(sums.max())
    if max(1 - least, most - 1) > SUM_TOLERANCE:
        wrong = least if 1 - least > most - 1 else most
        problem = f"the probabilities of labels {[group[0] for group in groups]} add up to {wrong:.3g} in a voxel"
        raise BadLabels(f"{problem} (must be 1)", fix="save the network's output after its softmax")


def _integers(labels: np.ndarray, side: str) -> np.ndarray:
    if labels.dtype == bool:
        return labels.view(np.uint8)
    if labels.dtype.kind == "f":
        if not np.isfinite(labels).all() or (labels != np.rint(labels)).any():
            raise BadLabels(f"the {side} has values that are not integers", fix="threshold or take the argmax first")
        labels = labels.astype(np.int64)
    if labels.min() < 0:
        raise BadLabels(f"the {side} has the label {labels.min()} (labels are >= 0)")
    return labels


def _encode(prediction: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Label values and one code for each voxel: ``reference * K + prediction``, both as indices of values."""
    top = int(max(prediction.max(), reference.max()))
    if top < 256:
        values, indices = np.arange(top + 1), (prediction, reference)
    else:
        values = np.unique(np.concatenate([[0], np.unique(prediction), np.unique(reference)]))
        if len(values) > MOST_VALUES:
            problem = f"the label maps have {len(values)} values (at most {MOST_VALUES})"
            raise BadLabels(problem, fix="evaluate classes, not instances")
        indices = np.searchsorted(values, prediction), np.searchsorted(values, reference)
    kind = np.min_scalar_type(len(values) ** 2 - 1)
    return values, indices[1].astype(kind) * kind.type(len(values)) + indices[0].astype(kind, copy=False)


def _count(codes: np.ndarray, k: int) -> tuple[np.ndarray, list[Box | None]]:
    """(K, K) counts and K * K boxes; background voxels outside all boxes are counted without a look."""
    from scipy import ndimage

    boxes: list[Box | None] = [None, *ndimage.find_objects(codes, max_label=k * k - 1)]
    filled = [box for box in boxes if box is not None]
    counts = np.zeros(k * k, np.int64)
    inside = codes[union_box(filled)] if filled else codes[:0]
    counts += np.bincount(inside.ravel(order="K"), minlength=k * k)
    counts[0] += codes.size - inside.size
    return counts.reshape(k, k), boxes


def union_box(boxes: Sequence[Box]) -> Box:
    """The smallest box that holds all boxes, of which there is at least one."""
    axes = zip(*boxes, strict=True)
    return tuple(slice(min(part.start for part in axis), max(part.stop for part in axis)) for axis in axes)


def _mask(labels: np.ndarray, values: Sequence[int]) -> np.ndarray:
    return np.ascontiguousarray(labels == values[0] if len(values) == 1 else np.isin(labels, list(values)))

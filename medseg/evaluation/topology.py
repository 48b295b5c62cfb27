"""Metrics of shape as connectedness: centreline Dice and Betti numbers."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from medseg.evaluation.components import label_components
from medseg.evaluation.metrics import METRICS, Metric
from medseg.evaluation.pair import ClassPair


@METRICS.register("cldice")
class CentrelineDice(Metric):
    """Centreline Dice (Shit et al., 2021), with skeletons by thinning instead of the soft skeleton."""

    key = "clDice"
    version = 2  # pieces of even thickness had no skeleton
    definition = (
        "Harmonic mean of the share of the predicted skeleton that lies in the reference and the share of the "
        "reference's skeleton that lies in the prediction (skeletons by topological thinning, of which each connected "
        "piece of the mask keeps at least a voxel)."
    )

    def __call__(self, pair: ClassPair) -> float:
        prediction, reference = pair.masks
        precision = float(reference[skeleton(prediction)].mean())
        sensitivity = float(prediction[skeleton(reference)].mean())
        total = precision + sensitivity
        return 2 * precision * sensitivity / total if total else 0.0


def skeleton(mask: np.ndarray) -> np.ndarray:
    """Centreline of a mask (*S) bool, one voxel thin; each connected piece of the mask keeps at least one voxel of it.

    Thinning (Lee et al., 1994; in 2D Zhang and Suen, 1984) deletes pieces that are an even number of voxels thick, as
    2x2x2 or 4x4x40: these are thinned once more, a voxel thicker. What is left of the few that vanish then too is the
    voxel deepest inside.
    """
    from scipy import ndimage

    thin, pieces = _thinned(mask), label_components(mask)
    kept = np.bincount(pieces[thin], minlength=int(pieces.max()) + 1)
    boxes = ndimage.find_objects(pieces)
    for number in np.flatnonzero(kept[1:] == 0) + 1:
        box = boxes[number - 1]
        thin[box] |= _thinned_when_thicker(pieces[box] == number)
    return thin


def _thinned(mask: np.ndarray) -> np.ndarray:
    from skimage.morphology import skeletonize

    return skeletonize(np.pad(mask, 1))[(slice(1, -1),) * mask.ndim].astype(bool)


def _thinned_when_thicker(piece: np.ndarray) -> np.ndarray:
    """Never empty skeleton of a piece (*S) bool, from its union with itself moved by a voxel along every axis."""
    import edt

    thicker = np.pad(piece, [(0, 1)] * piece.ndim)
    for axis in range(piece.ndim):
        thicker = thicker | np.roll(thicker, 1, axis)
    thin = _thinned(thicker)[tuple(slice(size) for size in piece.shape)] & piece
    if not thin.any():
        thin.flat[int(edt.edt(piece, black_border=True).argmax())] = True
    return thin


class BettiError(Metric):
    """Absolute error of a Betti number of the mask; unbounded, so a missed or invented class scores as it is."""

    best, worst = 0.0, None
    version = 2  # components of 2D images of odd width were wrong
    number: ClassVar[int]

    def __call__(self, pair: ClassPair) -> float:
        prediction, reference = (betti_numbers(mask) if mask.any() else (0, 0, 0) for mask in _masks(pair))
        return abs(prediction[self.number] - reference[self.number])


def _masks(pair: ClassPair) -> tuple[np.ndarray, np.ndarray]:
    empty = np.zeros((1,) * len(pair.spacing), bool)
    return pair.masks if pair.n_ref or pair.n_pred else (empty, empty)


@METRICS.register("betti_0_error")
class Betti0Error(BettiError):
    """Error of the number of pieces."""

    key, number = "Betti_0_error", 0
    definition = "Difference of the numbers of connected pieces (26 neighbours; 2D: 8)."


@METRICS.register("betti_1_error")
class Betti1Error(BettiError):
    """Error of the number of tunnels (2D: holes)."""

    key, number = "Betti_1_error", 1
    definition = "Difference of the numbers of tunnels, in 2D of holes (background 6 neighbours; 2D: 4)."


@METRICS.register("betti_2_error")
class Betti2Error(BettiError):
    """Error of the number of cavities (2D: always 0)."""

    key, number = "Betti_2_error", 2
    definition = "Difference of the numbers of closed cavities (background 6 neighbours); 0 in 2D."


@METRICS.register("implausible")
class Implausible(Metric):
    """1 where the prediction has pieces or holes that the reference has not."""

    key, best, worst = "Implausible", 0.0, 1.0
    version = 2
    definition = "1 if the prediction has more pieces, tunnels (2D: holes) or cavities than the reference, else 0."

    def __call__(self, pair: ClassPair) -> float:
        prediction, reference = (betti_numbers(mask) for mask in pair.masks)
        return float(any(found > known for found, known in zip(prediction, reference, strict=True)))


def betti_numbers(mask: np.ndarray) -> tuple[int, int, int]:
    """Pieces, tunnels (2D: holes) and cavities of a mask (*S) bool, 2D or 3D.

    Voxels are closed cubes, so neighbours across corners are connected and the background is connected across faces
    only. Tunnels follow from the Euler characteristic: b0 - b1 + b2 = chi.
    """
    padded = np.pad(mask, 1)
    pieces = int(label_components(padded).max())
    outside = int(label_components(~padded, connectivity={2: 4, 3: 6}[mask.ndim]).max()) - 1
    if mask.ndim == 2:
        return pieces, outside, 0
    return pieces, pieces + outside - euler_characteristic(mask), outside


def euler_characteristic(mask: np.ndarray) -> int:
    """Vertices - edges + faces - cubes of the union of closed voxels of a mask (*S) bool."""
    cells = np.pad(mask, 1)
    total = 0
    for directions in np.ndindex(*(2,) * mask.ndim):
        # A cell of the grid belongs to the union if any voxel around it does; along an axis with 1 it is a point.
        present = cells
        for axis, point in enumerate(directions):
            if point:
                low = present.take(range(present.shape[axis] - 1), axis)
                present = low | present.take(range(1, present.shape[axis]), axis)
        total += (-1) ** (mask.ndim - sum(directions)) * int(present.sum())
    return total

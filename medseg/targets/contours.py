"""Between landmarks and label maps: structures painted from their points, and points spread on the outline of masks.

A point (x, y) in pixels lies in the pixel of column floor(x) and row floor(y), as in the official code of HybridGNet.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Structure:
    """A run of landmarks.

    Attributes:
        start: number of its first point.
        count: number of its points.
        value: label value that it paints.
        lines: pairs of its points, counted from its first one, that are drawn instead of a filled outline.
    """

    name: str
    start: int
    count: int
    value: int
    lines: tuple[tuple[int, int], ...] | None = None

    @property
    def members(self) -> slice:
        """Its points among all."""
        return slice(self.start, self.start + self.count)


def paint(points: np.ndarray, structures: Sequence[Structure], size: Sequence[int]) -> np.ndarray:
    """Fill every structure's outline; later ones paint over earlier ones.

    Args:
        points: (N, 2) pixels, x before y; they may lie outside.
        structures: what they belong to.
        size: rows and columns.

    Returns:
        (rows, columns) int32 label values, 0 where nothing is. A filled structure is one piece without a hole, also
        where its outline crosses itself.
    """
    canvas = np.zeros((int(size[0]), int(size[1])), np.int32)
    for structure in structures:
        canvas[structure_mask(points[structure.members], structure, canvas.shape)] = structure.value
    return canvas


def structure_mask(points: np.ndarray, structure: Structure, shape: tuple[int, ...]) -> np.ndarray:
    """(rows, columns) bool of one structure from its own points (n, 2)."""
    import cv2
    from scipy import ndimage

    reach = 4 * max(shape)  # OpenCV has whole numbers of 16 bits at hand; nothing so far away is seen
    whole = np.floor(np.clip(points, -reach, reach)).astype(np.int32)
    mask = np.zeros(shape, np.uint8)
    if structure.lines is not None:
        for a, b in structure.lines:
            cv2.line(mask, whole[a].tolist(), whole[b].tolist(), 1)
        return mask.astype(bool)
    cv2.fillPoly(mask, [whole], 1)
    # OpenCV leaves out what an outline surrounds twice; whatever it encloses belongs to the structure.
    return np.asarray(ndimage.binary_fill_holes(mask), bool)


def mask_points(labels: np.ndarray, structures: Sequence[Structure]) -> np.ndarray:
    """Landmarks spread evenly on the outlines of a label map's structures.

    Args:
        labels: (H, W) label values.
        structures: their number of points and label values.

    Returns:
        (N, 2) float32, x and y in units of width and height; NaN for a structure that is not there.
    """
    points = np.full((sum(structure.count for structure in structures), 2), np.nan, np.float32)
    for value in dict.fromkeys(structure.value for structure in structures):
        group = [structure for structure in structures if structure.value == value]
        outlines = piece_outlines(labels == value, len(group))
        if len(outlines) < len(group):  # which of them is missing, nobody can tell
            continue
        for structure, outline in zip(group, outlines, strict=True):
            points[structure.members] = resample_ring(outline, structure.count)
    return points / np.array([labels.shape[1], labels.shape[0]], np.float32)


def lost_structures(maps: Iterable[np.ndarray], structures: Sequence[Structure]) -> list[str]:
    """Names of the structures that `mask_points` finds in none of the label maps (H, W); no more are read than needed.

    A structure is also lost where it touches another of its label value, as both are one piece then.
    """
    lost = list(structures)
    for labels in maps:
        points = mask_points(labels, structures)
        lost = [structure for structure in lost if np.isnan(points[structure.members]).any()]
        if not lost:
            break
    return [structure.name for structure in lost]


def piece_outlines(mask: np.ndarray, count: int) -> list[np.ndarray]:
    """Outlines of a mask's largest pieces, at most ``count``, from left to right: (n, 2) pixel centres (x, y) each."""
    import cv2

    found, _ = cv2.findContours(np.ascontiguousarray(mask, np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    outlines = sorted(found, key=lambda outline: (cv2.contourArea(outline), len(outline)), reverse=True)
    pieces = [outline[:, 0] for outline in outlines if len(outline) > 2]
    return sorted((piece + 0.5 for piece in pieces[:count]), key=lambda outline: float(outline[:, 0].mean()))


def resample_ring(outline: np.ndarray, count: int) -> np.ndarray:
    """Points at equal distances along a closed outline, clockwise on the screen.

    The first one lies straight above the outline's centre, which moves less from image to image than the topmost point
    of a flat organ does.

    Args:
        outline: (n, 2) x and y, in order.
        count: points wanted.

    Returns:
        (count, 2) float64.
    """
    x, y = outline.T
    if np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y) < 0:  # y grows downwards: positive runs clockwise
        outline = outline[::-1]
    aside, height = np.abs(outline[:, 0] - outline[:, 0].mean()), outline[:, 1] - outline[:, 1].mean()
    first = np.lexsort((height, np.where(height <= 0, aside, np.inf)))[0]
    closed = np.roll(outline, -first, axis=0)
    closed = np.concatenate([closed, closed[:1]])
    along = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(closed, axis=0), axis=1))])
    wanted = np.linspace(0, along[-1], count, endpoint=False)
    return np.stack([np.interp(wanted, along, axis) for axis in closed.T], axis=1)

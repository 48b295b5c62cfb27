"""Volume: voxels and the geometry that says where they are; canonical order and back, exactly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
from nibabel.orientations import aff2axcodes, apply_orientation, inv_ornt_aff, io_orientation, ornt_transform

from medseg.errors import BadGeometry

SPACING_LIMITS = (1e-9, 1e5)  # mm: a hundredth of an atom to far beyond a body
ORIGIN_LIMIT = 1e7  # mm
_RAS = np.array([[0, 1], [1, 1], [2, 1]])


@dataclass(frozen=True, eq=False)
class Geometry:
    """The grid of a file.

    Args:
        shape: spatial size in voxels; 3 numbers (i, j, k), or 2 (rows, columns) for a photograph-like image.
        affine: (4, 4) float64, voxel (i, j, k) to RAS+ mm; for a 2D image rows and columns, third axis a placeholder.
        source: plain data that a writer needs to restore the file's own header; it is used only while it
            describes exactly this affine.
    """

    shape: tuple[int, ...]
    affine: np.ndarray
    source: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        affine = np.array(self.affine, dtype=np.float64)
        affine.flags.writeable = False
        object.__setattr__(self, "affine", affine)
        object.__setattr__(self, "shape", tuple(int(size) for size in self.shape))

    @property
    def spacing(self) -> tuple[float, ...]:
        """Voxel size in mm along each array axis."""
        return tuple(float(size) for size in np.linalg.norm(self.affine[:3, : len(self.shape)], axis=0))

    def canonical(self) -> Geometry:
        """The same grid with axes permuted and flipped to nearest RAS+ (a 2D image: itself)."""
        orientation = _orientation(self)
        if np.array_equal(orientation, _RAS):
            return self
        shape = [0, 0, 0]
        for size, (axis, _) in zip(self.shape, orientation.astype(int), strict=True):
            shape[axis] = size
        return Geometry(tuple(shape), self.affine @ inv_ornt_aff(orientation, self.shape))

    def difference(self, other: Geometry, tolerance_voxels: float = 0.5) -> str | None:
        """Say in one line how two grids differ, or None when shapes are equal and no corner is further apart.

        Args:
            other: the grid to compare with.
            tolerance_voxels: largest distance of equal corners, in voxels of this grid.
        """
        if self.shape != other.shape:
            return f"{self} against {other}"
        distance = corner_distance(self.affine, other.affine, self.shape)
        if distance <= tolerance_voxels:
            return None
        return f"{self} against {other}: {distance:.3g} voxels apart at a corner"

    def __str__(self) -> str:
        size = "x".join(map(str, self.shape))
        spacing = "x".join(f"{value:.6g}" for value in self.spacing)
        if len(self.shape) == 2:
            return f"[{size} pixels, spacing {spacing}]"
        origin = ", ".join(f"{value:.6g}" for value in self.affine[:3, 3])
        axes = "".join(str(code) for code in aff2axcodes(self.affine))
        return f"[{size} voxels, {spacing} mm, origin ({origin}), axes {axes}]"


@dataclass(frozen=True, eq=False)
class Volume:
    """An image with its place in the patient: array (C, *S), geometry of the spatial axes S."""

    array: np.ndarray
    geometry: Geometry

    def __post_init__(self) -> None:
        if tuple(self.array.shape[1:]) != self.geometry.shape:
            raise BadGeometry(f"array {self.array.shape} does not fit the grid {self.geometry} (expected (C, *shape))")

    @property
    def spacing(self) -> tuple[float, ...]:
        """Voxel size in mm along each spatial axis."""
        return self.geometry.spacing

    @property
    def affine(self) -> np.ndarray:
        """(4, 4), voxel to RAS+ mm."""
        return self.geometry.affine

    @property
    def spatial_shape(self) -> tuple[int, ...]:
        """Size in voxels without channels."""
        return self.geometry.shape

    @property
    def ndim(self) -> int:
        """Spatial dimensions: 2 or 3."""
        return len(self.geometry.shape)

    def canonical(self) -> Volume:
        """The same image with axes permuted and flipped to nearest RAS+ (a 2D image: itself)."""
        geometry = self.geometry.canonical()
        return self if geometry is self.geometry else Volume(to_canonical(self.array, self.geometry), geometry)


def to_canonical(array: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Permute and flip (C, *S) from the file's axis order to nearest RAS+, (C, *S'); contiguous, no interpolation."""
    return _reorder(array, _orientation(geometry))


def from_canonical(array: np.ndarray, geometry: Geometry) -> np.ndarray:
    """The exact inverse of `to_canonical`: (C, *S') in RAS+ order back to (C, *S) of ``geometry``."""
    return _reorder(array, ornt_transform(_RAS, _orientation(geometry)))


def check_affine(affine: np.ndarray) -> None:
    """Refuse an affine that is no usable grid.

    Args:
        affine: (4, 4), voxel to mm.

    Raises:
        BadGeometry: not finite, singular, or sizes that no image of a body has.
    """
    if not np.isfinite(affine).all():
        raise BadGeometry("the affine is not finite", fix="re-export the file from its source")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if (spacing < SPACING_LIMITS[0]).any() or (spacing > SPACING_LIMITS[1]).any():
        low, high = SPACING_LIMITS
        raise BadGeometry(f"spacing is {spacing.tolist()} mm (must be within {low:g} to {high:g})", fix="re-export it")
    if np.abs(affine[:3, 3]).max() > ORIGIN_LIMIT:
        raise BadGeometry(
            f"origin is {affine[:3, 3].tolist()} mm (must be within {ORIGIN_LIMIT:g})", fix="re-export it"
        )
    if abs(np.linalg.det(affine[:3, :3] / spacing)) < 1e-6:
        raise BadGeometry("the affine is singular: two axes run the same way", fix="re-export the file from its source")


def corner_distance(affine: np.ndarray, other: np.ndarray, shape: tuple[int, ...]) -> float:
    """The largest distance of equal corners of two grids of one shape, per axis, in voxels of the first."""
    corners = np.array(list(product(*[(0, size - 1) for size in (*shape, 1, 1)[:3]], (1,))), dtype=float).T
    return float(np.abs((np.linalg.solve(affine, other @ corners) - corners)[:3]).max())


def _orientation(geometry: Geometry) -> np.ndarray:
    return _RAS if len(geometry.shape) == 2 else io_orientation(geometry.affine)


def _reorder(array: np.ndarray, orientation: np.ndarray) -> np.ndarray:
    if array.ndim == 3 or np.array_equal(orientation, _RAS):
        return array
    with_channels = np.vstack([[[0, 1]], orientation + np.array([1, 0])])
    return np.ascontiguousarray(apply_orientation(array, with_channels))

"""Sizes of boundary elements: what marching cubes puts into one cell of 2x2 or 2x2x2 neighbouring voxels.

A cell has its corners at voxel centres. Bit ``n`` of its code says whether corner ``n`` (in the order of
`itertools.product`) is foreground, which makes 16 codes in 2D and 256 in 3D. The boundary crosses the cell's edges at
their middles. Two rules make it unique (Lorensen and Cline, 1987, in the form that surface-distance uses, Nikolov et
al., 2018): on an ambiguous face the corners of the side with fewer corners are cut off, and a polygon that is not
planar is triangulated to the largest area in the unit cube.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product

import numpy as np

Point = tuple[float, ...]
Segment = tuple[Point, Point]
Triangle = tuple[Point, Point, Point]


@lru_cache(maxsize=64)
def element_sizes(spacing: tuple[float, ...]) -> np.ndarray:
    """Size of the boundary in a cell, by code.

    Args:
        spacing: voxel size in mm, 2 or 3 numbers.

    Returns:
        (16,) contour lengths in mm, or (256,) surface areas in mm².
    """
    sizes = np.zeros(2 ** (2 ** len(spacing)))
    codes, vectors = _segment_vectors() if len(spacing) == 2 else _triangle_normals()
    # A vector along a segment scales with the spacing; a normal, a cross product, with the two other spacings.
    scale = np.array(spacing) if len(spacing) == 2 else np.prod(spacing) / np.array(spacing)
    np.add.at(sizes, codes, np.linalg.norm(vectors * scale, axis=1))
    return sizes


def cell_codes(mask: np.ndarray) -> np.ndarray:
    """Codes of all cells of a mask, the outside counting as background.

    Args:
        mask: (*S) bool.

    Returns:
        (*S + 1) uint8; cell ``i`` lies between voxels ``i - 1`` and ``i``.
    """
    padded = np.pad(mask, 1).view(np.uint8)
    shape = tuple(size + 1 for size in mask.shape)
    codes = np.zeros(shape, np.uint8)
    for bit, corner in enumerate(_corners(mask.ndim)):
        window = tuple(slice(start, start + size) for start, size in zip(corner, shape, strict=True))
        codes |= padded[window] << np.uint8(bit)
    return codes


@lru_cache(maxsize=1)
def _segment_vectors() -> tuple[np.ndarray, np.ndarray]:
    ring = ((0, 0), (0, 1), (1, 1), (1, 0))
    found = [(code, np.subtract(*segment)) for code in range(16) for segment in _face_segments(ring, _inside(code, 2))]
    return np.array([code for code, _ in found]), np.array([vector for _, vector in found])


@lru_cache(maxsize=1)
def _triangle_normals() -> tuple[np.ndarray, np.ndarray]:
    found = [
        (code, _normal(triangle))
        for code in range(256)
        for polygon in _polygons(_inside(code, 3))
        for triangle in _largest_triangulation(polygon)
    ]
    return np.array([code for code, _ in found]), np.array([normal for _, normal in found])


def _corners(dims: int) -> list[tuple[int, ...]]:
    return list(product((0, 1), repeat=dims))


def _inside(code: int, dims: int) -> frozenset[tuple[int, ...]]:
    return frozenset(corner for bit, corner in enumerate(_corners(dims)) if code >> bit & 1)


def _polygons(inside: frozenset[tuple[int, ...]]) -> list[list[Point]]:
    """Join the segments of the six faces into closed polygons."""
    cut = inside if len(inside) <= 4 else frozenset(_corners(3)) - inside
    neighbours: dict[Point, list[Point]] = {}
    for axis, side in product(range(3), (0, 1)):
        for a, b in _face_segments(_face(axis, side), cut):
            neighbours.setdefault(a, []).append(b)
            neighbours.setdefault(b, []).append(a)
    polygons = []
    while neighbours:
        polygon = [next(iter(neighbours))]
        while unused := [point for point in neighbours.pop(polygon[-1]) if point in neighbours]:
            polygon.append(unused[0])
        polygons.append(polygon)
    return polygons


def _face(axis: int, side: int) -> tuple[tuple[int, ...], ...]:
    """The four corners of a face of the cube, in a ring."""
    ring = np.insert([(0, 0), (0, 1), (1, 1), (1, 0)], axis, side, axis=1)
    return tuple(tuple(int(x) for x in corner) for corner in ring)


def _face_segments(ring: tuple[tuple[int, ...], ...], cut: frozenset[tuple[int, ...]]) -> list[Segment]:
    """Where the boundary crosses a face: no segment, one, or two that cut off the two corners in ``cut``."""
    middles = [_middle(ring[i], ring[(i + 1) % 4]) for i in range(4)]
    crossed = [middles[i] for i in range(4) if (ring[i] in cut) != (ring[(i + 1) % 4] in cut)]
    if len(crossed) == 4:
        return [(middles[i - 1], middles[i]) for i in range(4) if ring[i] in cut]
    return [(crossed[0], crossed[1])] if crossed else []


def _largest_triangulation(polygon: list[Point]) -> list[Triangle]:
    if len(polygon) < 3:
        return []
    ways = [
        [
            (polygon[0], polygon[k], polygon[-1]),
            *_largest_triangulation(polygon[: k + 1]),
            *_largest_triangulation(polygon[k:]),
        ]
        for k in range(1, len(polygon) - 1)
    ]
    return max(ways, key=lambda triangles: sum(np.linalg.norm(_normal(triangle)) for triangle in triangles))


def _normal(triangle: Triangle) -> np.ndarray:
    """Normal whose length is the triangle's area."""
    a, b, c = np.array(triangle)
    return np.cross(b - a, c - a) / 2


def _middle(a: tuple[int, ...], b: tuple[int, ...]) -> Point:
    return tuple((x + y) / 2 for x, y in zip(a, b, strict=True))

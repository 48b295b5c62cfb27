"""Landmarks beside images: ``landmarks/CASE.npy`` or ``.csv``, or one ``landmarks.csv``; ``landmarks.json`` names them.

Points are (x, y) in pixels of the image, x to the right and y down, pixel i covering i to i + 1. ``landmarks.json``
lies in the dataset's folder or in that of the landmarks: {"structures": {"right lung": 44, "left lung": 50}}, in the
order of the points; "edges" (pairs of point numbers; else every structure is a ring) and "values" (structure -> label
value of the masks, of all structures) may be added.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from medseg.data.metadata import read_cells
from medseg.errors import BadDataset, BadLabels, InputRefused, UnreadableFile, nearest
from medseg.io import load_array, read_json
from medseg.io.label_coding import LARGEST_LABEL
from medseg.io.names import same_name

FOLDERS = ("landmarks", "landmarksTr", "landmarksTs")
LAYOUT, TABLE = "landmarks.json", "landmarks.csv"
COLUMNS = "give case, point, x and y"
MOST = 10_000  # points of a case: a larger number of one is a mistake, and each before it would take memory
OUTSIDE = 0.02  # of the image's width or height: annotators draw along its border, and now and then a little beyond


@dataclass(frozen=True)
class LandmarkLayout:
    """What the points belong to.

    Attributes:
        structures: name -> number of points, in order.
        edges: pairs of point numbers; None: every structure is a ring.
        values: structure -> label value in masks; None: by name.
    """

    structures: dict[str, int]
    edges: tuple[tuple[int, int], ...] | None = None
    values: dict[str, int] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Arguments of `medseg.targets.Landmarks`."""
        return {"structures": self.structures, "edges": self.edges, "values": self.values}

    def name_of(self, point: int) -> str:
        """The structure of a point."""
        for name, count in self.structures.items():
            if point < count:
                return name
            point -= count
        return "no structure"

    @property
    def members(self) -> dict[str, range]:
        """Numbers of each structure's points."""
        ends = np.cumsum([0, *self.structures.values()]).tolist()
        return {name: range(ends[i], ends[i + 1]) for i, name in enumerate(self.structures)}


@dataclass(frozen=True)
class LandmarkFiles:
    """What was found.

    Attributes:
        files: case -> file; the same one for all if it is a table.
    """

    files: Mapping[str, Path] = field(default_factory=dict)
    layout: LandmarkLayout | None = None


def find_landmarks(root: Path) -> LandmarkFiles:
    """Landmark files of a dataset folder, by case.

    Raises:
        BadDataset: a landmarks.json that is none, a table without the columns that are needed, or two files of a case.
    """
    files: dict[str, Path] = {}
    table = root / TABLE
    if table.is_file():
        files |= dict.fromkeys(read_table(table, table.stat().st_mtime_ns), table)
    own: dict[str, Path] = {}
    for folder in (root / name for name in FOLDERS):
        found = sorted(folder.iterdir()) if folder.is_dir() else []
        for file in found:
            if file.suffix.lower() in (".npy", ".csv") and not file.name.startswith("."):
                first = own.setdefault(same_name(file.stem), file)
                if first != file:
                    problem = f"{first.name} and {file.name} are both its landmarks"
                    raise BadDataset(problem, case=file.stem, path=file, fix="remove one")
    files |= own
    described = [path for path in (root / LAYOUT, *(root / name / LAYOUT for name in FOLDERS)) if path.is_file()]
    return LandmarkFiles(files, read_layout(described[0]) if described else None)


def read_layout(path: Path) -> LandmarkLayout:
    """Read a landmarks.json.

    Raises:
        BadDataset: it does not say what its points belong to; edges that are no pairs of points of one structure;
            values that are no label values of its structures, or of some only.
    """
    given = read_json(path)
    structures = given.get("structures") if isinstance(given, dict) else None
    counts_fit = isinstance(structures, dict) and all(_is_integer(n) and 0 < n < MOST for n in structures.values())
    if not structures or not counts_fit or sum(structures.values()) > MOST or {"", "background"} & structures.keys():
        fix = 'write e.g. {"structures": {"right lung": 44, "left lung": 50}}'
        raise BadDataset(
            f"'structures' is {structures!r} (expected name: number of points, {MOST} in all at most)",
            path=path,
            fix=fix,
        )
    layout = LandmarkLayout(structures)
    return replace(
        layout, edges=_edges(given.get("edges"), layout, path), values=_values(given.get("values"), layout, path)
    )


def _edges(given: Any, layout: LandmarkLayout, path: Path) -> tuple[tuple[int, int], ...] | None:
    """Pairs of point numbers, each within one structure."""
    if given is None:
        return None
    total = sum(layout.structures.values())
    for edge in given if isinstance(given, list) else [given]:
        is_pair = isinstance(edge, list) and len(edge) == 2 and isinstance(given, list)
        if not is_pair or not all(_is_integer(n) and 0 <= n < total for n in edge):
            problem = f"'edges' has {edge!r} (expected a list of pairs of point numbers, 0 to {total - 1})"
            raise BadDataset(problem, path=path, fix="write e.g. [[0, 1], [1, 2]]")
        first, second = map(layout.name_of, edge)
        if first != second:
            raise BadDataset(f"edge {edge} leads from '{first}' to '{second}'", path=path, fix="link points of one")
    return tuple((a, b) for a, b in given)


def _values(given: Any, layout: LandmarkLayout, path: Path) -> dict[str, int] | None:
    """Label values of structures."""
    if given is None:
        return None
    names = layout.structures
    fitting = isinstance(given, dict) and all(_is_integer(n) and 0 < n <= LARGEST_LABEL for n in given.values())
    if not fitting:
        fix = f'write e.g. {{"{next(iter(names))}": 1}}'
        expected = f"expected structure: label value above 0, {LARGEST_LABEL} at most"
        raise BadDataset(f"'values' is {given!r} ({expected})", path=path, fix=fix)
    unknown = next((name for name in given if name not in names), None)
    if unknown is not None:
        raise BadDataset(
            f"'values' has '{unknown}', which is no structure: {nearest(unknown, names)}", path=path, fix="correct it"
        )
    missing = next((name for name in names if name not in given), None)
    if missing is not None:
        fix = "give every structure one, or leave 'values' out"
        raise BadDataset(f"'values' has no label value for structure '{missing}'", path=path, fix=fix)
    return given


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def read_landmarks(path: Path, case: str) -> np.ndarray:
    """Points of one case, (N, 2) float32, from its .npy or .csv file or from the table of all cases.

    Raises:
        UnreadableFile: not such a file.
        BadLabels: another shape, or no rows of this case.
    """
    if path.suffix.lower() == ".npy":
        points = np.asarray(load_array(path, mmap=False))
    else:
        rows = read_table(path, path.stat().st_mtime_ns)
        if case not in rows and list(rows) != [path.stem]:
            raise BadLabels(f"the table has no case '{case}'", case=case, path=path, fix="add its rows")
        points = rows.get(case, next(iter(rows.values())))
    if points.ndim != 2 or points.shape[1] != 2 or points.dtype.kind not in "fiu":
        problem = f"holds {points.dtype} of shape {points.shape} (expected numbers (N, 2): x, y)"
        raise BadLabels(problem, case=case, path=path, fix="write a row of x and y for each point")
    return points.astype(np.float32)


@lru_cache(maxsize=4)
def read_table(path: Path, changed: int = 0) -> dict[str, np.ndarray]:
    """Case -> points (N, 2) of a CSV: columns (case,) point, x, y; or one row per case, case and then x, y by turns.

    Args:
        path: in UTF-8; a file of one case needs no column ``case``, and is then called by its name.
        changed: time of the file, so that nothing stale is kept.

    Raises:
        UnreadableFile: cells that are not numbers, or rows that lack some.
        BadDataset: other columns, a point or a case that is given twice, or a point's number below 0 or far too large.
    """
    header, *rows = read_cells(path) or [[]]
    header = [name.strip() for name in header]
    try:
        if {"x", "y"} <= set(header):
            return _long_table(path, [dict(zip(header, row, strict=True)) for row in rows])
        if header and header[0] == "case" and len(header) > 2 and len(header) % 2:
            return _wide_table(path, rows)
    except (ValueError, OverflowError) as error:
        raise UnreadableFile(f"is not a table of landmarks: {error}", path=path, fix=COLUMNS) from None
    raise BadDataset(f"its columns are {', '.join(header)}", path=path, fix=COLUMNS)


def _wide_table(path: Path, rows: Sequence[Sequence[str]]) -> dict[str, np.ndarray]:
    points: dict[str, np.ndarray] = {}
    for name, *cells in rows:
        case = same_name(name.strip())
        if case in points:
            raise BadDataset(f"has case '{case}' twice", path=path, fix="remove one of the rows")
        points[case] = np.array([float(cell or "nan") for cell in cells]).reshape(-1, 2)
    return points


def _long_table(path: Path, rows: Sequence[Mapping[str, str]]) -> dict[str, np.ndarray]:
    points: dict[str, dict[int, tuple[float, float]]] = {}
    for row in rows:
        name = same_name(row.get("case", path.stem).strip())
        case = points.setdefault(name, {})
        number = int(row.get("point", len(case)))
        if number in case:
            raise BadDataset(f"has point {number} of case '{name}' twice", path=path, fix="remove one of the rows")
        if not 0 <= number < MOST:
            problem = f"has point {number} of case '{name}' (expected 0 to {MOST - 1})"
            raise BadDataset(problem, path=path, fix="number the points from 0 on")
        case[number] = (float(row["x"] or "nan"), float(row["y"] or "nan"))
    missing = (float("nan"), float("nan"))
    return {case: np.array([found.get(n, missing) for n in range(max(found) + 1)]) for case, found in points.items()}


def faults(points: np.ndarray, shape: Sequence[int], count: int | None, layout: LandmarkLayout | None) -> Iterator[str]:
    """What is wrong with the landmarks of one case, one line each.

    Args:
        points: (N, 2) pixels, x and y.
        shape: rows and columns of the image.
        count: expected number; None: that of the layout.
        layout: what they belong to, if that is known.
    """
    expected = count or (sum(layout.structures.values()) if layout else None)
    names = f": {', '.join(f'{name} {n}' for name, n in layout.structures.items())}" if layout else ""
    if expected is not None and len(points) != expected:
        yield f"has {len(points)} landmarks (expected {expected}{names})"
        return
    lost = ~np.isfinite(points).all(axis=1)
    missing = [name for name, own in (layout.members if layout else {}).items() if lost[own.start : own.stop].all()]
    if missing:
        yield f"structure '{missing[0]}' is missing: none of its landmarks is finite"
    elif lost.any():
        yield f"landmark {_named(int(lost.argmax()), layout)} is not finite ({int(lost.sum())} of {len(points)})"
    size = np.array(shape[1::-1])
    outside = ((points < -OUTSIDE * size) | (points > (1 + OUTSIDE) * size)).any(axis=1)
    if outside.any():
        first = int(outside.argmax())
        x, y = points[first]
        where = f"({x:.1f}, {y:.1f})"
        yield (
            f"landmark {_named(first, layout)} at {where} lies outside of the image of {size[0]}x{size[1]} pixels "
            f"({int(outside.sum())} of {len(points)})"
        )


def read_case_landmarks(
    path: Path | None, case: str, shape: Sequence[int], count: int, layout: LandmarkLayout | None
) -> np.ndarray:
    """Points (N, 2) of a case that is to be trained on.

    Raises:
        InputRefused: no landmark file.
        BadLabels: the first of `faults`.
        UnreadableFile: as `read_landmarks`.
    """
    if path is None:
        fix = "add it, leave the case out, or set target.from_masks=true"
        raise InputRefused("the image has no landmark file", case=case, fix=fix)
    points = read_landmarks(path, case)
    problem = next(faults(points, shape, count, layout), None)
    if problem:
        raise BadLabels(problem, case=case, path=path, fix="run medseg check, and correct the file")
    return points


def _named(point: int, layout: LandmarkLayout | None) -> str:
    return f"{point} ({layout.name_of(point)})" if layout else str(point)

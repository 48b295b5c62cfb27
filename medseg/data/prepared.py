"""Preprocessed cases on disk: memory-mapped arrays, read patch by patch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from medseg.errors import ResourceError
from medseg.io import load_array, read_json, write_json

ARRAYS = ("image", "label", "foreground")


@dataclass(frozen=True)
class PreparedDataset:
    """The cases that `medseg.data.prepare.prepare` wrote.

    A case is a folder of ``image.npy``, ``label.npy``, ``foreground.npy`` and ``case.json``; the last is written last,
    states the sizes of the others and so marks the case as complete.
    """

    folder: Path
    ids: list[str]
    _foreground: dict[str, dict[int, np.ndarray]] = field(default_factory=dict, repr=False, compare=False)

    def image(self, case_id: str) -> np.ndarray:
        """(C, *P) float32, memory-mapped and read-only."""
        return load_array(self.folder / case_id / "image.npy", mmap=True)

    def labels(self, case_id: str) -> np.ndarray:
        """(*P) uint8, int16 or int32, memory-mapped and read-only."""
        return load_array(self.folder / case_id / "label.npy", mmap=True)

    def points(self, case_id: str) -> np.ndarray:
        """(N, 2) float32 landmarks, x and y in pixels of the prepared grid."""
        return load_array(self.folder / case_id / "points.npy", mmap=False)

    def foreground(self, case_id: str) -> dict[int, np.ndarray]:
        """Label value -> (n, d) voxel positions sampled from that class; kept in memory once read."""
        if case_id not in self._foreground:
            rows = load_array(self.folder / case_id / "foreground.npy", mmap=False)
            values = np.unique(rows[:, 0])
            self._foreground[case_id] = {int(value): rows[rows[:, 0] == value, 1:] for value in values}
        return self._foreground[case_id]

    def classes(self, case_id: str) -> list[int]:
        """Foreground label values that occur in a case."""
        return [int(value) for value in read_json(self.folder / case_id / "case.json")["classes"]]

    def key(self, case_id: str) -> str | None:
        """Key of the files a case was made from; None if the case is not complete."""
        path = self.folder / case_id / "case.json"
        if not path.exists():
            return None
        facts = read_json(path)
        return facts["key"] if facts["bytes"] == self._bytes(case_id) else None

    def write(
        self,
        case_id: str,
        key: str,
        image: np.ndarray,
        labels: np.ndarray,
        foreground: dict[int, np.ndarray],
        points: np.ndarray | None = None,
    ) -> None:
        """Store a case; interrupted at any point, it counts as absent.

        Raises:
            ResourceError: the disk is full or cannot be written.
        """
        folder = self.folder / case_id
        arrays = {"image": image, "label": labels, "foreground": _rows(foreground, labels.ndim)}
        if points is not None:
            arrays["points"] = points
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "case.json").unlink(missing_ok=True)
            for name, array in arrays.items():
                _replace(folder / f"{name}.npy", array)
        except OSError as error:
            fix = "free space or set cache_dir"
            raise ResourceError(f"cannot be written: {error.strerror}", case=case_id, path=folder, fix=fix) from error
        facts = {"key": key, "shape": list(labels.shape), "classes": sorted(foreground), "bytes": self._bytes(case_id)}
        write_json(folder / "case.json", facts)

    def _bytes(self, case_id: str) -> list[int]:
        paths = [self.folder / case_id / f"{name}.npy" for name in ARRAYS]
        sizes = [path.stat().st_size if path.exists() else -1 for path in paths]
        points = self.folder / case_id / "points.npy"  # only of cases with landmarks
        return [*sizes, points.stat().st_size] if points.exists() else sizes


def _replace(path: Path, array: np.ndarray) -> None:
    """Write an array without waiting for the disk: a cache can be made again, and ``case.json`` knows its size.

    The old file is replaced, not overwritten: another run may have it mapped.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            np.save(file, array, allow_pickle=False)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def sample_foreground(
    labels: np.ndarray, values: Sequence[int], count: int, rng: np.random.Generator
) -> dict[int, np.ndarray]:
    """Up to `count` random voxel positions, (n, d) int32, of each label value that occurs in (*P) `labels`."""
    found = {}
    for value in values:
        positions = np.flatnonzero(labels == value)
        if positions.size:
            chosen = positions if positions.size <= count else rng.choice(positions, count, replace=False)
            found[value] = np.stack(np.unravel_index(chosen, labels.shape), axis=1).astype(np.int32)
    return found


def _rows(foreground: dict[int, np.ndarray], ndim: int) -> np.ndarray:
    """One (n, 1 + d) int32 table: label value, position."""
    parts = [np.insert(positions, 0, value, axis=1) for value, positions in foreground.items()]
    return np.concatenate([np.empty((0, 1 + ndim), np.int32), *parts]).astype(np.int32)

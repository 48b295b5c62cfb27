"""Preprocessed cases on disk: memory-mapped arrays, read patch by patch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from medseg.io import load_array, read_json, save_array, write_json


@dataclass(frozen=True)
class PreparedDataset:
    """The cases that `medseg.data.prepare.prepare` wrote into one folder.

    A case is four files: ``ID.image.npy``, ``ID.label.npy``, ``ID.foreground.npy`` and ``ID.json``, which is written
    last and so marks the case as complete.
    """

    folder: Path
    ids: list[str]
    _foreground: dict[str, dict[int, np.ndarray]] = field(default_factory=dict, repr=False, compare=False)

    def image(self, case_id: str) -> np.ndarray:
        """(C, *P) float32, memory-mapped and read-only."""
        return load_array(self.folder / f"{case_id}.image.npy", mmap=True)

    def labels(self, case_id: str) -> np.ndarray:
        """(*P) uint8, int16 or int32, memory-mapped and read-only."""
        return load_array(self.folder / f"{case_id}.label.npy", mmap=True)

    def foreground(self, case_id: str) -> dict[int, np.ndarray]:
        """Label value -> (n, d) voxel positions sampled from that class; kept in memory once read."""
        if case_id not in self._foreground:
            rows = load_array(self.folder / f"{case_id}.foreground.npy", mmap=False)
            values = np.unique(rows[:, 0])
            self._foreground[case_id] = {int(value): rows[rows[:, 0] == value, 1:] for value in values}
        return self._foreground[case_id]

    def classes(self, case_id: str) -> list[int]:
        """Foreground label values that occur in a case."""
        return [int(value) for value in read_json(self.folder / f"{case_id}.json")["classes"]]

    def key(self, case_id: str) -> str | None:
        """Key of the files a case was made from; None if the case is not complete."""
        path = self.folder / f"{case_id}.json"
        return read_json(path)["key"] if path.exists() else None

    def write(
        self, case_id: str, key: str, image: np.ndarray, labels: np.ndarray, foreground: dict[int, np.ndarray]
    ) -> None:
        """Store a case; interrupted at any point, it counts as absent."""
        (self.folder / f"{case_id}.json").unlink(missing_ok=True)
        save_array(self.folder / f"{case_id}.image.npy", image)
        save_array(self.folder / f"{case_id}.label.npy", labels)
        save_array(self.folder / f"{case_id}.foreground.npy", _rows(foreground, labels.ndim))
        facts = {"key": key, "shape": list(labels.shape), "classes": sorted(foreground)}
        write_json(self.folder / f"{case_id}.json", facts)


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

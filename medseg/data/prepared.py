"""Preprocessed cases on disk: memory-mapped arrays, read patch by patch."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from medseg.errors import ResourceError, UnreadableFile
from medseg.io import load_array, read_json, write_json

ARRAYS = ("image", "label", "foreground")
STALE_SECONDS = 24 * 3600


@dataclass(frozen=True)
class PreparedDataset:
    """The cases that `medseg.data.prepare.prepare` wrote.

    A case is a folder of ``image.npy``, ``label.npy``, ``foreground.npy`` and ``case.json``, named after the case and
    the key of the files that it was made from. It appears as a whole and is never written again: files that change
    make another folder, so that what a running training reads stays what it was.

    Attributes:
        folder: of all cases.
        keys: case -> key of its files.
    """

    folder: Path
    keys: Mapping[str, str]
    _foreground: dict[str, dict[int, np.ndarray]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def ids(self) -> list[str]:
        """The cases, sorted."""
        return sorted(self.keys)

    def case_folder(self, case_id: str) -> Path:
        """Where a case lies, or will lie."""
        return self.folder / case_id / self.keys[case_id][:16]

    def image(self, case_id: str) -> np.ndarray:
        """(C, *P) float32, memory-mapped and read-only."""
        return load_array(self.case_folder(case_id) / "image.npy", mmap=True)

    def labels(self, case_id: str) -> np.ndarray:
        """(*P) uint8, int16 or int32, memory-mapped and read-only."""
        return load_array(self.case_folder(case_id) / "label.npy", mmap=True)

    def points(self, case_id: str) -> np.ndarray:
        """(N, 2) float32 landmarks, x and y in pixels of the prepared grid."""
        return load_array(self.case_folder(case_id) / "points.npy", mmap=False)

    def foreground(self, case_id: str) -> dict[int, np.ndarray]:
        """Label value -> (n, d) voxel positions sampled from that class; kept in memory once read."""
        if case_id not in self._foreground:
            rows = load_array(self.case_folder(case_id) / "foreground.npy", mmap=False)
            values = np.unique(rows[:, 0])
            self._foreground[case_id] = {int(value): rows[rows[:, 0] == value, 1:] for value in values}
        return self._foreground[case_id]

    def classes(self, case_id: str) -> list[int]:
        """Foreground label values that occur in a case."""
        return [int(value) for value in read_json(self.case_folder(case_id) / "case.json")["classes"]]

    def content(self, case_id: str) -> str:
        """`medseg.data.keys.content_key` of the files that the case was made from."""
        return str(read_json(self.case_folder(case_id) / "case.json")["content"])

    def complete(self, case_id: str) -> bool:
        """Whether a case is there, whole, and made from files of its key."""
        folder = self.case_folder(case_id)
        try:
            facts = read_json(folder / "case.json")
            return bool(facts["key"] == self.keys[case_id] and facts["bytes"] == _bytes(folder))
        except (UnreadableFile, KeyError, TypeError):
            return False

    def write(
        self,
        case_id: str,
        content: str,
        image: np.ndarray,
        labels: np.ndarray,
        foreground: dict[int, np.ndarray],
        points: np.ndarray | None = None,
    ) -> None:
        """Store a case; interrupted at any point, it counts as absent.

        Raises:
            ResourceError: the disk is full or cannot be written.
        """
        arrays = {"image": image, "label": labels, "foreground": _rows(foreground, labels.ndim)}
        if points is not None:
            arrays["points"] = points
        facts = {"key": self.keys[case_id], "content": content, "shape": list(labels.shape)}
        with self._new_folder(case_id) as scratch:
            for name, array in arrays.items():  # no wait for the disk: case.json knows the sizes
                np.save(scratch / f"{name}.npy", array, allow_pickle=False)
            write_json(scratch / "case.json", {**facts, "classes": sorted(foreground), "bytes": _bytes(scratch)})

    @contextlib.contextmanager
    def _new_folder(self, case_id: str) -> Iterator[Path]:
        """A folder that becomes the case's when it is full; a damaged one makes way, a whole one stays."""
        folder = self.case_folder(case_id)
        _remove_stale(folder.parent)
        scratch = folder.with_name(f".{folder.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
        try:
            scratch.mkdir(parents=True)
            yield scratch
            if folder.exists() and not self.complete(case_id):
                os.replace(folder, scratch.with_suffix(".damaged"))
            try:
                scratch.rename(folder)
            except OSError:
                if not self.complete(case_id):  # else another process was faster, with the same content
                    raise
        except OSError as error:
            fix = "free space, or set cache_dir= to a folder that can be written"
            problem = f"cannot be written: {error.strerror or error}"
            raise ResourceError(problem, case=case_id, path=folder, fix=fix) from error
        finally:
            for left in (scratch, scratch.with_suffix(".damaged")):
                shutil.rmtree(left, ignore_errors=True)


def _remove_stale(folder: Path) -> None:
    """Remove what killed writers left; on other machines some may be at work, so only after a day."""
    for left in folder.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(left)


def _bytes(folder: Path) -> list[int]:
    sizes = [path.stat().st_size if (path := folder / f"{name}.npy").exists() else -1 for name in ARRAYS]
    points = folder / "points.npy"  # only of cases with landmarks
    return [*sizes, points.stat().st_size] if points.exists() else sizes


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

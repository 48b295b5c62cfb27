"""The result of a prediction, in the grid of the file that it was made from."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from medseg.io import Geometry, Volume, write_labels, write_volume


@dataclass(frozen=True)
class Segmentation:
    """Labels on the input's grid.

    Attributes:
        labels: (*S) label values, uint8 or wider.
        geometry: of the input file; what is written has its shape, affine and header codes.
        label_names: class name -> label value.
        probabilities: (K, *S) float32 when asked for, else None.
        seconds: time of ``read``, ``preprocess``, ``network`` and ``restore``.
        memory: bytes ``predicted`` for this case, and ``measured`` (None where the system does not tell).
    """

    labels: np.ndarray
    geometry: Geometry
    label_names: dict[str, int]
    probabilities: np.ndarray | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    memory: dict[str, int | None] = field(default_factory=dict)

    def volume_ml(self) -> dict[str, float]:
        """Class name -> volume in millilitres (3D) or area in cm^2 / 10 (2D), background left out."""
        voxel = float(np.prod(self.geometry.spacing)) / 1000
        return {name: float((self.labels == value).sum()) * voxel for name, value in self.label_names.items() if value}

    def save(self, path: str | Path, probabilities: str | Path | None = None) -> None:
        """Write the labels, atomically, in the format of the path's ending; optionally the probabilities (NIfTI)."""
        write_labels(path, self.labels, self.geometry)
        if probabilities is not None and self.probabilities is not None:
            write_volume(probabilities, Volume(self.probabilities, self.geometry))

"""The result of a prediction, in the grid of the file that it was made from."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from medseg.data.outputs import refuse_sources
from medseg.errors import MedsegError
from medseg.io import Geometry, Volume, save_array, write_dicom_seg, write_labels, write_volume


@dataclass(frozen=True)
class Segmentation:
    """Labels on the input's grid.

    Attributes:
        labels: (*S) label values, uint8 or wider.
        geometry: of the input file; what is written has its shape, affine and header codes.
        label_names: class name -> label value.
        probabilities: (K, *S) float32 when asked for, else None.
        seconds: time of ``read``, ``preprocess``, ``network``, ``restore`` and, once saved, ``write``.
        memory: bytes ``predicted`` for this case, ``beside`` for the next one's image, and ``measured`` of the process
            (None where the system does not tell); ``error`` is measured / (predicted + beside) - 1.
            ``device_predicted``, 0 on the CPU; ``window_batch`` in the end, and in ``fallbacks`` what was given up for
            want of memory, see `medseg.inference.fallback`.
        warnings: where the case lies outside of what the model was trained on, one line each.
        uncertainty: (*S) float32, 0 to 1, when asked for, else None.
        landmarks: (N, 2) float32, x and y in pixels of the image, of models that find landmarks, else None.
        channels: label values that each channel of ``probabilities`` stands for.
        sources: the files, or the folder of slices, that it was made from; empty for arrays and volumes.
    """

    labels: np.ndarray
    geometry: Geometry
    label_names: dict[str, int]
    probabilities: np.ndarray | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    memory: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    uncertainty: np.ndarray | None = None
    landmarks: np.ndarray | None = None
    channels: tuple[tuple[int, ...], ...] = ()
    sources: tuple[Path, ...] = ()

    def volume_ml(self) -> dict[str, float]:
        """Class name -> volume in millilitres (3D) or area in cm^2 / 10 (2D), background left out."""
        voxel = float(np.prod(self.geometry.spacing)) / 1000
        return {name: float((self.labels == value).sum()) * voxel for name, value in self.label_names.items() if value}

    def save(
        self,
        path: str | Path,
        probabilities: str | Path | None = None,
        dicom_seg: str | Path | None = None,
        uncertainty: str | Path | None = None,
        landmarks: str | Path | None = None,
    ) -> None:
        """Write the labels in the format of the path's ending, and the other files; a DICOM-SEG comes last.

        Where the slices' headers do not allow a DICOM-SEG, all else is written.

        Args:
            path: of the labels.
            probabilities: of a NIfTI file for the probabilities, if there are any.
            dicom_seg: of a .dcm file for a DICOM-SEG, if the image came as DICOM slices.
            uncertainty: of a NIfTI file for the uncertainty, if there is any.
            landmarks: of a .npy file for the landmarks, if there are any.

        Raises:
            ResourceError: one cannot be written; each file is whole or as it was.
            UsageError: a file that the segmentation was made from would be replaced; DICOM-SEG of something else than
                DICOM slices, or without highdicom.
        """
        refuse_sources(self.sources, filter(None, (path, probabilities, dicom_seg, uncertainty, landmarks)))
        start = time.perf_counter()
        if probabilities is not None and self.probabilities is not None:
            write_volume(probabilities, Volume(self.probabilities, self.geometry))
        if uncertainty is not None and self.uncertainty is not None:
            write_volume(uncertainty, Volume(self.uncertainty[None], self.geometry))
        if landmarks is not None and self.landmarks is not None:
            save_array(landmarks, self.landmarks)
        write_labels(path, self.labels, self.geometry)
        if dicom_seg is not None:
            try:
                write_dicom_seg(dicom_seg, self.labels, self.geometry, self.label_names)
            except MedsegError as error:
                error.written = f"The labels are in {path}."
                error.args = (str(error),)
                raise
        self.seconds["write"] = time.perf_counter() - start

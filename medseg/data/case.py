"""One subject or scan of a dataset: its files, and what the dataset's table says of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from medseg.io import LabelCoding


@dataclass(frozen=True)
class Case:
    """One subject or scan.

    Attributes:
        id: unique name, also the stem of its prediction.
        images: one file per channel, or one file with all channels.
        label: label map; None for a case without reference.
        metadata: columns of the dataset's table, e.g. patient and site.
        coding: how the label file's pixels become label values; None: they are label values.
        landmarks: .npy or .csv file with its points, see `medseg.data.landmark_files`.
    """

    id: str
    images: tuple[Path, ...]
    label: Path | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    coding: LabelCoding | None = None
    landmarks: Path | None = None

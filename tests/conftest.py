"""Shared fixtures: where the real data lies, and a tiny dataset for end-to-end tests."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import numpy as np

    from medseg.inference import Predictor

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real datasets beside the checkout; tests that need it skip where it is absent."""
    for folder in (os.environ.get("MEDSEG_DATA"), ROOT.parent / "shared" / "data"):
        if folder and Path(folder).is_dir():
            return Path(folder)
    pytest.skip("no real data: set MEDSEG_DATA or put it under ../shared/data")


@pytest.fixture(scope="session")
def tiny_phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 5 training and 2 test phantoms, small enough to train on in seconds."""
    from medseg.data.phantom import write_phantoms

    folder = tmp_path_factory.mktemp("data") / "Dataset900_Tiny"
    write_phantoms(folder, cases=5, test_cases=2, shape=(32, 28, 24))
    return folder


@pytest.fixture(scope="session")
def threshold_predictor() -> Callable[..., Predictor]:
    """Makes a predictor that labels 1 where a 3D image is above 0.5; keywords change its plan, ``max_ram`` its memory.

    The network has no weights: what comes out shows the geometry alone.
    """
    import torch
    from torch import nn

    from medseg.data.plan import Plan
    from medseg.device import choose_profile
    from medseg.inference import Predictor
    from medseg.inference.member import Member
    from medseg.targets import ExclusiveClasses

    class Threshold(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([torch.full_like(x[:, :1], 0.5), x.mean(1, keepdim=True)], dim=1) * 20

    def make(max_ram: int | str | None = None, **changes: Any) -> Predictor:
        labels = {"background": 0, "organ": 1}
        settings = {
            "dataset": "d", "spatial_dims": 3, "channel_names": ["MR"], "labels": labels, "ignore_label": None,
            "spacing": [1.0, 1.0, 1.0], "patch_size": [8, 8, 8], "batch_size": 1, "strides": [[1, 1, 1]],
            "normalization": [{"scheme": "none"}], "crop_nonzero": False, "mirror_axes": [], "mirror_swaps": {},
        }  # fmt: skip
        plan = Plan.from_dict({**settings, **changes})
        member = Member(Threshold(), plan, ExclusiveClasses(labels=labels), choose_profile("cpu", "fp32"))
        return Predictor([member], max_ram=max_ram)

    return make


@pytest.fixture(scope="session")
def write_series() -> Callable[..., list[Path]]:
    """Writes a series of DICOM CT slices: ``write_series(folder, voxels, **how)`` gives their paths by place."""
    pydicom = pytest.importorskip("pydicom")
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    def write(
        folder: Path,
        voxels: np.ndarray,  # (slices, rows, columns) int16
        *,
        spacing: Sequence[float] = (0.5, 0.75),  # between rows, between columns
        directions: Sequence[float] = (1, 0, 0, 0, 1, 0),
        origin: Sequence[float] = (-10.0, 20.0, -30.0),
        step: Sequence[float] = (0.0, 0.0, 2.5),
        slope: Callable[[int], float] = lambda _: 1.0,
        change: Callable[[Any, int], None] = lambda *_: None,
        prefix: str = "",
    ) -> list[Path]:
        folder.mkdir(parents=True, exist_ok=True)
        study, series, frame = (generate_uid() for _ in range(3))
        paths = []
        for k, pixels in enumerate(voxels):
            ds = pydicom.Dataset()
            ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, generate_uid()
            ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = study, series, frame
            ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = "Phantom^Test", "P1", "", ""
            ds.StudyDate, ds.StudyTime, ds.StudyID, ds.AccessionNumber = "20260101", "120000", "1", ""
            ds.ReferringPhysicianName, ds.Manufacturer, ds.Modality = "", "none", "CT"
            ds.SeriesNumber, ds.InstanceNumber = 1, len(voxels) - k
            ds.ImagePositionPatient = [float(o + k * s) for o, s in zip(origin, step, strict=True)]
            ds.ImageOrientationPatient, ds.PixelSpacing = list(directions), list(spacing)
            ds.SliceThickness = 2.5
            ds.Rows, ds.Columns, ds.SamplesPerPixel = *pixels.shape[:2], 1
            ds.PhotometricInterpretation = "MONOCHROME2"
            ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
            ds.RescaleSlope, ds.RescaleIntercept = slope(k), -1024
            ds.PixelData = pixels.astype("<i2").tobytes()
            ds.file_meta = pydicom.dataset.FileMetaDataset()
            ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            change(ds, k)
            paths.append(folder / f"{prefix}{len(voxels) - k:03d}")  # names run against the places
            ds.save_as(paths[-1], enforce_file_format=True)
        return paths

    return write

"""DICOM-SEG of labels made from a folder of DICOM slices, through highdicom (an extra)."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from medseg.errors import BadGeometry, InputRefused, UsageError
from medseg.io.atomic import atomic_path
from medseg.io.volume import Geometry


def write_dicom_seg(
    path: str | Path, labels: np.ndarray, geometry: Geometry, label_names: Mapping[str, int], *, model: str = "medseg"
) -> None:
    """Write a binary DICOM-SEG; its frames refer to the slices that ``geometry`` was read from.

    Segments are numbered from 1 in the order of the label values, and named; each is coded as an anatomical structure,
    as a model knows no codes. Patient and study are those of the slices. Empty frames are left out.

    Args:
        path: of the .dcm file.
        labels: (*S) integers on the grid of ``geometry``.
        geometry: as `medseg.io.read_geometry` gave it for a folder of slices.
        label_names: class name -> label value, with the background.
        model: named as the algorithm.

    Raises:
        UsageError: highdicom is not installed, or the labels do not come from DICOM slices.
        BadGeometry: the shape is not that of ``geometry``.
        InputRefused: the slices lack what a DICOM-SEG must say of them.
        ResourceError: it cannot be written; the old file is intact.
    """
    try:
        import highdicom
        import pydicom
        from pydicom.sr.codedict import codes
    except ImportError as error:
        raise UsageError(f"DICOM-SEG needs highdicom ({error})", fix='pip install "medseg[dicom]"') from None
    if geometry.source.get("format") != "dicom":
        raise UsageError("DICOM-SEG needs DICOM slices to refer to", path=path, fix="give a folder of slices")
    if labels.shape != geometry.shape:
        raise BadGeometry(f"labels {labels.shape} do not fit the slices {geometry}", path=path)
    classes = sorted((value, name) for name, value in label_names.items() if value)
    numbers = np.zeros(max(int(labels.max()), *(value for value, _ in classes)) + 1, np.uint16)
    for number, (value, _) in enumerate(classes, start=1):
        numbers[value] = number
    version = importlib.import_module("medseg").__version__
    family, structure = codes.DCM.ArtificialIntelligence, codes.SCT.AnatomicalStructure
    algorithm = highdicom.AlgorithmIdentificationSequence(name=model, version=version, family=family)
    described = [
        highdicom.seg.SegmentDescription(number, name, structure, structure, "AUTOMATIC", algorithm)
        for number, (_, name) in enumerate(classes, start=1)
    ]
    try:
        segmentation = highdicom.seg.Segmentation(
            source_images=[pydicom.dcmread(file, stop_before_pixels=True) for file in geometry.source["files"]],
            pixel_array=np.ascontiguousarray(numbers[labels].T),  # (slices, rows, columns)
            segmentation_type="BINARY",
            segment_descriptions=described,
            series_instance_uid=highdicom.UID(),
            series_number=100,
            sop_instance_uid=highdicom.UID(),
            instance_number=1,
            manufacturer="medseg",
            manufacturer_model_name=model,
            software_versions=version,
            device_serial_number="0",
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        problem = f"the headers of its slices do not allow a DICOM-SEG: {error}"
        raise InputRefused(problem, path=path, fix="export the slices again, or leave dicom_seg out") from error
    with atomic_path(path) as temporary:
        segmentation.save_as(temporary)

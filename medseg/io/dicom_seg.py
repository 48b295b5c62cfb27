"""DICOM-SEG of labels made from a folder of DICOM slices, through highdicom (an extra)."""

from __future__ import annotations

import importlib
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medseg.errors import BadGeometry, InputRefused, UsageError
from medseg.io.atomic import atomic_path
from medseg.io.volume import Geometry

if TYPE_CHECKING:
    from pydicom import Dataset

LABEL_LENGTH = 64  # characters of a SegmentLabel
UTF_8 = "ISO_IR 192"
_MAY_BE_EMPTY = ("PatientID", "PatientName", "AccessionNumber", "StudyID", "ReferringPhysicianName")
_DATES_AND_TIMES = {"PatientBirthDate": "DA", "StudyDate": "DA", "StudyTime": "TM"}


def write_dicom_seg(
    path: str | Path, labels: np.ndarray, geometry: Geometry, label_names: Mapping[str, int], *, model: str = "medseg"
) -> None:
    """Write a binary DICOM-SEG; its frames refer to the slices that ``geometry`` was read from.

    Segments are numbered from 1 in the order of the label values, and named; each is coded as an anatomical structure,
    as a model knows no codes. A name of over 64 characters is cut off, and is whole in SegmentDescription. Patient
    and study are those of the slices, in UTF-8 whatever their character set; what they may leave out is empty. Empty
    frames are left out.

    Args:
        path: of the .dcm file.
        labels: (*S) integers on the grid of ``geometry``.
        geometry: as `medseg.io.read_geometry` gave it for a folder of slices.
        label_names: class name -> label value, with the background.
        model: named as the algorithm.

    Raises:
        UsageError: highdicom is not installed, or the labels do not come from DICOM slices.
        BadGeometry: the shape is not that of ``geometry``.
        InputRefused: the slices lack what a DICOM-SEG must say of them, or as `check_segment_names`.
        ResourceError: it cannot be written; the old file is intact.
    """
    segments = require_dicom_seg(label_names)
    import highdicom
    from pydicom.sr.codedict import codes

    if geometry.source.get("format") != "dicom":
        raise UsageError("DICOM-SEG needs DICOM slices to refer to", path=path, fix="give a folder of slices")
    if labels.shape != geometry.shape:
        raise BadGeometry(f"labels {labels.shape} do not fit the slices {geometry}", path=path)
    numbers = np.zeros(max(int(labels.max()), *(value for value, *_ in segments)) + 1, np.uint16)
    for number, (value, *_) in enumerate(segments, start=1):
        numbers[value] = number
    version = importlib.import_module("medseg").__version__
    family, structure = codes.DCM.ArtificialIntelligence, codes.SCT.AnatomicalStructure
    algorithm = highdicom.AlgorithmIdentificationSequence(name=model, version=version, family=family)
    described = [
        highdicom.seg.SegmentDescription(number, short, structure, structure, "AUTOMATIC", algorithm)
        for number, (_, short, _) in enumerate(segments, start=1)
    ]
    for description, (_, short, name) in zip(described, segments, strict=True):
        if name != short:
            description.SegmentDescription = name[:1024]
    try:
        segmentation = highdicom.seg.Segmentation(
            source_images=_sources(geometry.source["files"]),
            pixel_array=np.ascontiguousarray(numbers[labels].T),  # (slices, rows, columns)
            segmentation_type="BINARY",
            segment_descriptions=described,
            series_instance_uid=highdicom.UID(),
            series_number=100,
            series_description=f"Segmentation by {model}"[:LABEL_LENGTH],
            sop_instance_uid=highdicom.UID(),
            instance_number=1,
            manufacturer="medseg",
            manufacturer_model_name=model,
            software_versions=version,
            device_serial_number="0",
            specific_character_set=UTF_8,
        )
        with atomic_path(path) as temporary:
            segmentation.save_as(temporary)
    except (AttributeError, LookupError, NotImplementedError, TypeError, ValueError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0][:200]
        problem = f"the headers of its slices do not allow a DICOM-SEG: {first}"
        raise InputRefused(problem, path=path, fix="export the slices again, or leave dicom_seg out") from error


def require_dicom_seg(label_names: Mapping[str, int]) -> list[tuple[int, str, str]]:
    """`check_segment_names`, to be called before anything is predicted that shall become a DICOM-SEG.

    Raises:
        UsageError: highdicom is not installed.
        InputRefused: as `check_segment_names`.
    """
    try:
        import highdicom  # noqa: F401
    except ImportError as error:
        raise UsageError(f"DICOM-SEG needs highdicom ({error})", fix='pip install "medseg[dicom]"') from None
    return check_segment_names(label_names)


def check_segment_names(label_names: Mapping[str, int]) -> list[tuple[int, str, str]]:
    """What a DICOM-SEG calls each class: label value, SegmentLabel of at most 64 characters, and the name itself.

    Args:
        label_names: class name -> label value, with the background.

    Raises:
        InputRefused: a name that DICOM cannot hold, is empty or, cut off, like another; no class at all.
    """
    segments = [(value, name.strip()[:LABEL_LENGTH].strip(), name) for name, value in label_names.items() if value]
    fix = "leave dicom_seg out, or train with another name"
    for _, short, name in segments:
        if not short or "\\" in name or any(unicodedata.category(character)[0] == "C" for character in name):
            problem = f"class {name!r} cannot be named in a DICOM-SEG (expected no backslash and no control character)"
            raise InputRefused(problem, fix=fix)
    if not segments or len({short for _, short, _ in segments}) < len(segments):
        problem = f"the classes differ only after {LABEL_LENGTH} characters" if segments else "there is no class"
        raise InputRefused(f"{problem}: no DICOM-SEG can be written", fix=fix)
    return sorted(segments)


def _sources(files: Iterable[str]) -> list[Dataset]:
    """The slices' headers in UTF-8, with all that the standard has to be there but may be empty."""
    import pydicom

    sources: list[Dataset] = []
    for file in files:
        source = pydicom.dcmread(file, stop_before_pixels=True, force=True)
        source.decode()
        source.SpecificCharacterSet = UTF_8
        for keyword in _MAY_BE_EMPTY:
            if keyword not in source:
                setattr(source, keyword, "")
        for keyword, kind in _DATES_AND_TIMES.items():
            setattr(source, keyword, _date_or_empty(str(source.get(keyword) or ""), kind))
        if source.get("PatientSex") not in ("M", "F", "O"):
            source.PatientSex = ""
        sources.append(source)
    return sources


def _date_or_empty(text: str, kind: str) -> str:
    from pydicom.valuerep import DA, TM

    try:
        (DA if kind == "DA" else TM)(text)
    except ValueError:
        return ""
    return text

"""Where NIfTI voxels are: sform, qform, units, and a header that says the same again.

Cox et al., "A (sort of) new image data format standard: NIfTI-1", 2004, and nifti1.h, "3D image (volume) orientation".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from nibabel import Nifti1Header, Nifti2Header

from medseg.errors import BadGeometry
from medseg.io.volume import Geometry, check_affine, corner_distance

FORM_TOLERANCE_VOXELS = 0.1
_MM_PER_UNIT = {1: 1000.0, 3: 0.001}  # metre, micron; 2 is mm, and 0 (unknown) is read as mm
_GEOMETRY_FIELDS = (
    *("dim_info", "xyzt_units", "pixdim", "sform_code", "srow_x", "srow_y", "srow_z"),
    *("qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
)


def grid_of(header: Nifti1Header, shape: tuple[int, ...]) -> Geometry:
    """The grid that a header describes, with the fields that `header_like` needs.

    Args:
        header: as stored, unchecked but for its spacing.
        shape: (i, j, k).

    Raises:
        BadGeometry: an affine that is no grid, or sform and qform that disagree.
    """
    fields = {name: np.asarray(header[name]).tolist() for name in _GEOMETRY_FIELDS}
    source = {"format": "nifti", "version": 2 if isinstance(header, Nifti2Header) else 1, "fields": fields}
    source["dimensions"] = min(int(header["dim"][0]), 3)
    clean = _restored(source)
    affine = _affine_mm(clean, shape)
    check_affine(affine)
    _check_forms(clean, shape)
    return Geometry(shape, affine, source)


def mm_per_unit(xyzt_units: int) -> float:
    """Millimetres in the unit of length that a header's xyzt_units names; an unknown unit is read as mm."""
    return _MM_PER_UNIT.get(int(xyzt_units) & 7, 1.0)


def _affine_mm(header: Nifti1Header, shape: tuple[int, ...]) -> np.ndarray:
    """Voxel to RAS+ mm: the sform if coded, else the qform, else nibabel's centred base affine."""
    usable = header.copy()
    usable.set_data_shape((*shape, 1)[:3])
    usable["pixdim"] = _usable_pixdim(header)
    try:
        affine = usable.get_best_affine()
    except ValueError as error:
        raise BadGeometry(f"the qform is not a rotation: {error}", fix="re-export the file") from None
    scale = mm_per_unit(header["xyzt_units"])
    return affine if scale == 1.0 else np.diag([scale, scale, scale, 1.0]) @ affine


def _usable_pixdim(header: Nifti1Header) -> np.ndarray:
    """pixdim with the standard's defaults: qfac 0 means 1, and an axis that a 2D file lacks is 1 thick."""
    pixdim = np.array(header["pixdim"])
    pixdim[0] = -1 if pixdim[0] < 0 else 1
    pixdim[1:] = np.where(pixdim[1:] > 0, pixdim[1:], 1)
    return pixdim


def _check_forms(header: Nifti1Header, shape: tuple[int, ...]) -> None:
    if not (header["sform_code"] and header["qform_code"]):
        return
    usable = header.copy()
    usable["pixdim"] = _usable_pixdim(header)
    try:
        sform, qform = usable.get_sform(), usable.get_qform()
    except ValueError as error:
        raise BadGeometry(f"the qform is not a rotation: {error}", fix="set qform_code to 0") from None
    first, any_corner = (corner_distance(sform, qform, size) for size in ((1, 1, 1), shape))
    allowed = FORM_TOLERANCE_VOXELS + _quaternion_slack(header, shape)
    if not (first <= FORM_TOLERANCE_VOXELS and any_corner <= allowed):  # so that NaN is refused
        problem = f"sform and qform disagree by {any_corner:.3g} voxels (at most {FORM_TOLERANCE_VOXELS})"
        raise BadGeometry(problem, fix="find out which is right and set the code of the other to 0")


def _quaternion_slack(header: Nifti1Header, shape: tuple[int, ...]) -> float:
    """Voxels by which a right qform may miss at the corner far from its exact offset.

    The file keeps b, c, d in single precision and leaves a = sqrt(1 - b^2 - c^2 - d^2) to the reader, who takes an
    a^2 below three roundings for 0. Near half a turn, where a is small, that moves a by up to 8e-4, which is 0.09
    degrees: nothing otherwise, but voxels at the far corner of a large volume.
    """
    rounding = 5.0 * float(np.finfo(np.float32).eps)  # the reader's three and the writer's two
    vector = np.array([header["quatern_b"], header["quatern_c"], header["quatern_d"]], dtype=np.float64)
    rest = max(1.0 - float(vector @ vector), 0.0)
    pixdim = np.abs(np.asarray(header["pixdim"][1:4], dtype=np.float64))
    anisotropy = float(pixdim.max() / pixdim.min()) if pixdim.min() > 0 else 1.0
    return 2.0 * float(np.sqrt(rest + rounding) - np.sqrt(rest)) * sum(shape) * anisotropy


def header_like(geometry: Geometry) -> Nifti1Header:
    """A header in the grid of ``geometry``: its file's own fields where they still describe it, else new ones."""
    large = max(geometry.shape) > np.iinfo(np.int16).max
    if geometry.source.get("format") == "nifti":
        header = _restored(geometry.source)
        if np.array_equal(_affine_mm(header, geometry.shape), geometry.affine):
            return header
    header = _new_header(2 if large else 1)
    header.set_data_shape((*geometry.shape, 1)[:3])
    header.set_sform(geometry.affine, code=1)
    header.set_qform(geometry.affine, code=1)
    if corner_distance(geometry.affine, header.get_qform(), geometry.shape) > FORM_TOLERANCE_VOXELS:
        header["qform_code"] = 0  # a quaternion cannot hold shear
    header.set_xyzt_units("mm")
    return header


def _new_header(version: int) -> Nifti1Header:
    return (Nifti2Header if version == 2 else Nifti1Header)(endianness="<")


def _restored(source: Mapping[str, Any]) -> Nifti1Header:
    header = _new_header(2 if source["version"] == 2 else 1)
    for name, value in source["fields"].items():
        header[name] = value
    return header

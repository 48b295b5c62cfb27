"""The NIfTI header: what it promises, checked before a voxel is read, and the way back into a new header.

NIfTI-1: Cox et al., "A (sort of) new image data format standard: NIfTI-1", 2004; nifti1.h. NIfTI-2: nifti2.h.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from nibabel import Nifti1Header, Nifti2Header
from nibabel.spatialimages import HeaderDataError

from medseg.errors import BadGeometry, BadVoxels, UnreadableFile
from medseg.io.volume import Geometry, check_affine, corner_distance

HEADER_BYTES = {348: 352, 540: 544}  # size field -> bytes up to the first possible voxel, NIfTI-1 and NIfTI-2
FORM_TOLERANCE_VOXELS = 0.1
_MM_PER_UNIT = {1: 1000.0, 3: 0.001}  # metre, micron; 2 is mm, and 0 (unknown) is read as mm
_GEOMETRY_FIELDS = (
    *("dim_info", "xyzt_units", "pixdim", "sform_code", "srow_x", "srow_y", "srow_z"),
    *("qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
)


@dataclass(frozen=True)
class NiftiFacts:
    """What a header says. shape: (i, j, k) or (i, j, k, channels); offset: first voxel's byte; slope None: unscaled."""

    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int
    slope: float | None
    intercept: float
    geometry: Geometry

    @property
    def voxel_bytes(self) -> int:
        """Size of the stored voxels."""
        count = 1
        for size in self.shape:  # Python integers: hostile sizes overflow others
            count *= size
        return count * self.dtype.itemsize


def header_bytes(start: bytes) -> int:
    """How many bytes the header takes, by the size field in its first four.

    Raises:
        UnreadableFile: that field is of no NIfTI file.
    """
    for order in ("little", "big"):
        size = int.from_bytes(start[:4], order)
        if len(start) >= 4 and size in HEADER_BYTES:
            return HEADER_BYTES[size]
    raise UnreadableFile("is not a NIfTI file: its first field is not a header size (348 or 540)")


def parse_header(head: bytes) -> NiftiFacts:
    """Check a header and say what it promises.

    Args:
        head: the first bytes of the file, from `header_bytes`.

    Raises:
        UnreadableFile: not a NIfTI file, or sizes and offsets that cannot be.
        BadVoxels: a data type or number of dimensions that is not an image's.
        BadGeometry: spacing, affine, or sform and qform that cannot be trusted.
    """
    header = _raw_header(head)
    shape = _image_shape(header)
    _check_pixdim(header)
    dtype = _voxel_type(header)
    slope, intercept = _scaling(header)
    geometry = _geometry(header, shape[:3])
    return NiftiFacts(shape, dtype, _voxel_offset(header), slope, intercept, geometry)


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


def _restored(source: Any) -> Nifti1Header:
    header = _new_header(2 if source["version"] == 2 else 1)
    for name, value in source["fields"].items():
        header[name] = value
    return header


def _raw_header(head: bytes) -> Nifti1Header:
    length = header_bytes(head)
    kind, magic = (Nifti1Header, head[344:348]) if length == 352 else (Nifti2Header, head[4:8])
    if len(head) < length:
        raise UnreadableFile(f"is truncated: it has {len(head)} bytes (its header alone takes {length})")
    header = kind(binaryblock=head[: length - 4], check=False)
    if magic != header.single_magic.ljust(4, b"\0"):
        raise UnreadableFile(
            f"its magic is {magic!r} (expected {header.single_magic!r}: header and voxels in one file)"
        )
    return header


def _image_shape(header: Nifti1Header) -> tuple[int, ...]:
    dims = [int(size) for size in header["dim"]]
    if not 2 <= dims[0] <= 7:
        raise UnreadableFile(f"dim[0] is {dims[0]} (an image has 2 to 7 dimensions)")
    shape = dims[1 : dims[0] + 1]
    for axis, size in enumerate(shape, start=1):
        if size < 1:
            raise UnreadableFile(f"dim[{axis}] is {size} (must be at least 1)", fix="re-export the file")
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    if len(shape) > 4:
        text = "x".join(map(str, shape))
        raise BadVoxels(f"has the {len(shape)} dimensions {text} (expected 3, or 4 with channels last)", fix="split it")
    return (*shape, 1)[: max(len(shape), 3)]


def _check_pixdim(header: Nifti1Header) -> None:
    for axis in range(1, min(int(header["dim"][0]), 3) + 1):
        value = float(header["pixdim"][axis])
        if not (np.isfinite(value) and value > 0):  # nibabel would make it 1 or positive without a word
            raise BadGeometry(f"pixdim[{axis}] (spacing) is {value} (must be finite and > 0)", fix="re-export the file")


def _voxel_type(header: Nifti1Header) -> np.dtype:
    try:
        dtype = header.get_data_dtype()
    except HeaderDataError:
        raise UnreadableFile(f"data type code {int(header['datatype'])} is unknown") from None
    if dtype.kind not in "iuf":
        raise BadVoxels(
            f"voxels are {header.get_value_label('datatype')} (expected real numbers)", fix="split channels"
        )
    return dtype


def _scaling(header: Nifti1Header) -> tuple[float | None, float]:
    try:
        slope, intercept = header.get_slope_inter()
    except HeaderDataError as error:
        raise BadVoxels(f"scl_slope or scl_inter cannot be used: {error}") from None
    identity = slope is None or (slope, intercept) == (1.0, 0.0)
    return (None, 0.0) if identity else (float(slope), float(intercept))


def _voxel_offset(header: Nifti1Header) -> int:
    value, least = float(header["vox_offset"]), header.single_vox_offset
    if not (np.isfinite(value) and value >= least and value == int(value)):
        problem = f"vox_offset is {value:g} (must be a whole number >= {least}: voxels would overlap the header)"
        raise UnreadableFile(problem, fix="re-export the file")
    return int(value)


def _geometry(header: Nifti1Header, shape: tuple[int, ...]) -> Geometry:
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
        distance = corner_distance(usable.get_sform(), usable.get_qform(), shape)
    except ValueError as error:
        raise BadGeometry(f"the qform is not a rotation: {error}", fix="set qform_code to 0") from None
    if not distance <= FORM_TOLERANCE_VOXELS + _quaternion_slack(header, shape):
        problem = f"sform and qform disagree by {distance:.3g} voxels (at most {FORM_TOLERANCE_VOXELS})"
        raise BadGeometry(problem, fix="find out which is right and set the code of the other to 0")


def _quaternion_slack(header: Nifti1Header, shape: tuple[int, ...]) -> float:
    """Voxels by which a right qform may miss at a corner.

    The file keeps b, c, d in single precision and leaves a = sqrt(1 - b^2 - c^2 - d^2) to the reader; near half a
    turn, where a is small, rounding moves a by up to 3e-4 and the far corner of a large volume by a part of a voxel.
    """
    rounding = 2.0 * float(np.finfo(np.float32).eps)
    vector = np.array([header["quatern_b"], header["quatern_c"], header["quatern_d"]], dtype=np.float64)
    rest = max(1.0 - float(vector @ vector), 0.0)
    pixdim = np.abs(np.asarray(header["pixdim"][1:4], dtype=np.float64))
    anisotropy = float(pixdim.max() / pixdim.min()) if pixdim.min() > 0 else 1.0
    return 2.0 * float(np.sqrt(rest + rounding) - np.sqrt(rest)) * sum(shape) * anisotropy

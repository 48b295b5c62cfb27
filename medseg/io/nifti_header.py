"""The NIfTI header: what it promises, checked before a voxel is read.

NIfTI-1: Cox et al., "A (sort of) new image data format standard: NIfTI-1", 2004; nifti1.h. NIfTI-2: nifti2.h.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from nibabel import Nifti1Header, Nifti2Header
from nibabel.spatialimages import HeaderDataError

from medseg.errors import BadGeometry, BadVoxels, UnreadableFile
from medseg.io.nifti_grid import grid_of
from medseg.io.volume import Geometry

HEADER_BYTES = {348: 352, 540: 544}  # size field -> bytes up to the first possible voxel, NIfTI-1 and NIfTI-2
_FORM_CODES = range(6)  # unknown, scanner, aligned, Talairach, MNI, template


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
    return HEADER_BYTES[_size_field(start)[0]]


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
    _check_codes(header)
    dtype = _voxel_type(header)
    slope, intercept = _scaling(header)
    geometry = grid_of(header, shape[:3])
    return NiftiFacts(shape, dtype, _voxel_offset(header), slope, intercept, geometry)


def _size_field(start: bytes) -> tuple[int, Literal["<", ">"]]:
    """The header's size field and the byte order in which it makes sense."""
    orders: tuple[Literal["<", ">"], ...] = ("<", ">")
    for order in orders:
        size = int(np.frombuffer(start[:4].ljust(4, b"\0"), f"{order}i4")[0])
        if size in HEADER_BYTES:
            return size, order
    raise UnreadableFile("is not a NIfTI file: its first field is not a header size (348 or 540)")


def _raw_header(head: bytes) -> Nifti1Header:
    size, order = _size_field(head)
    if len(head) < HEADER_BYTES[size]:
        raise UnreadableFile(f"is truncated: it has {len(head)} bytes (its header alone takes {HEADER_BYTES[size]})")
    kind, magic = (Nifti1Header, head[344:348]) if size == 348 else (Nifti2Header, head[4:8])
    header = kind(binaryblock=head[:size], endianness=order, check=False)  # nibabel would guess the order by dim[0]
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


def _check_codes(header: Nifti1Header) -> None:
    for name in ("qform_code", "sform_code"):  # nibabel takes a negative one for set, the standard for unset
        code = int(header[name])
        if code not in _FORM_CODES:
            raise BadGeometry(
                f"{name} is {code} (must be 0 to 5)", fix=f"set {name} to 1, or to 0 if it is not to be used"
            )


def _voxel_type(header: Nifti1Header) -> np.dtype:
    try:
        dtype = header.get_data_dtype()
    except (HeaderDataError, KeyError):
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

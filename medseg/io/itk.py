"""MetaImage and NRRD files (.mha, .mhd, .nrrd) through SimpleITK; ITK's LPS millimetres become RAS and back."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medseg.errors import BadGeometry, BadVoxels, MedsegError, UnreadableFile
from medseg.io.atomic import atomic_path
from medseg.io.endings import file_ending
from medseg.io.memory import require_memory
from medseg.io.metaimage import check_metaimage
from medseg.io.nrrd import check_nrrd, check_nrrd_voxels
from medseg.io.volume import Geometry, check_affine

if TYPE_CHECKING:
    import SimpleITK

_BYTES_PER_VALUE = 20  # at most 8 stored, in ITK's copy and in numpy's, and 4 as single precision
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def read_geometry(path: Path) -> Geometry:
    """The grid, from the header alone.

    Raises:
        UnreadableFile, BadVoxels, BadGeometry, UnsafeArtefact: see `read`.
    """
    return _geometry(_open(path, unpack=False))


def read(path: Path) -> tuple[np.ndarray, Geometry]:
    """Voxels (C, i, j, k) as stored, and their grid.

    Raises:
        UnreadableFile: not of its format, truncated or damaged.
        BadVoxels: complex numbers, or more than three dimensions.
        BadGeometry: spacing or directions that are no grid.
        UnsafeArtefact: the voxels would come from another folder.
        InputRefused: the header promises more than the memory holds.
    """
    import SimpleITK

    reader = _open(path, unpack=True)
    geometry = _geometry(reader)
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise _refused(error) from None
    voxels = SimpleITK.GetArrayFromImage(image)  # (k, j, i) or (k, j, i, C)
    if reader.GetNumberOfComponents() == 1:
        voxels = voxels[..., None]
    return voxels.T.reshape(-1, *geometry.shape), geometry


def write(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    """Write (C, *S), compressed, in exactly ``geometry``; more than one channel makes a vector image.

    Raises:
        ResourceError: it cannot be written; the old file is intact.
    """
    import SimpleITK

    grid = _grid_like(geometry)
    voxels = array.reshape(len(array), *(*geometry.shape, 1)[: len(grid["spacing"])]).T
    several = len(array) > 1
    image = SimpleITK.GetImageFromArray(voxels if several else voxels[..., 0], isVector=several)
    image.SetSpacing(grid["spacing"])
    image.SetOrigin(grid["origin"])
    image.SetDirection(grid["direction"])
    # A .mhd with its voxels inside is valid, and a single file can be replaced in one step.
    ending = ".nrrd" if file_ending(path) == ".nrrd" else ".mha"
    with atomic_path(path, ending=ending) as temporary:
        try:
            SimpleITK.WriteImage(image, str(temporary), useCompression=True)
        except RuntimeError as error:
            raise OSError(_reason(error)) from None


def _open(path: Path, *, unpack: bool) -> SimpleITK.ImageFileReader:
    """A reader that knows the header; with ``unpack`` the voxels are known to fit and to be whole."""
    import SimpleITK

    nrrd = file_ending(path) == ".nrrd"
    if nrrd:
        check_nrrd(path)
    else:
        check_metaimage(path, unpack=False)
    reader = SimpleITK.ImageFileReader()
    reader.SetImageIO("NrrdImageIO" if nrrd else "MetaImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise _refused(error) from None
    _check_kind(reader)
    if unpack:
        values = _values(reader)
        require_memory(values * _BYTES_PER_VALUE)
        if nrrd:
            check_nrrd_voxels(path, at_most=values * 8)
        else:
            check_metaimage(path, unpack=True)
    return reader


def _check_kind(reader: SimpleITK.ImageFileReader) -> None:
    import SimpleITK

    if reader.GetDimension() not in (2, 3):
        raise BadVoxels(f"has {reader.GetDimension()} dimensions (expected 2 or 3)", fix="split it into volumes")
    name = SimpleITK.GetPixelIDValueAsString(reader.GetPixelIDValue())
    if "complex" in name or "label" in name:
        raise BadVoxels(f"voxels are {name} (expected real numbers)", fix="write their magnitude")


def _values(reader: SimpleITK.ImageFileReader) -> int:
    values = reader.GetNumberOfComponents()
    for size in reader.GetSize():
        values *= size
    return values


def _geometry(reader: SimpleITK.ImageFileReader) -> Geometry:
    grid = {name: list(getattr(reader, f"Get{name.title()}")()) for name in ("spacing", "origin", "direction")}
    return grid_geometry(reader.GetSize(), grid)


def _affine(grid: dict[str, list[float]]) -> np.ndarray:
    """Voxel (i, j, k) to RAS+ mm; a 2D image lies in the plane k = 0 with 1 mm thickness."""
    dimension = len(grid["spacing"])
    affine = np.eye(4)
    affine[:dimension, :dimension] = np.reshape(grid["direction"], (dimension, dimension)) * grid["spacing"]
    affine[:dimension, 3] = grid["origin"]
    return _LPS_TO_RAS @ affine


def _grid_like(geometry: Geometry) -> dict[str, list[float]]:
    """ITK's own numbers of the file where they still describe the geometry, else ones made from its affine."""
    if geometry.source.get("format") == "itk":
        grid = {name: geometry.source[name] for name in ("spacing", "origin", "direction")}
        if np.array_equal(_affine(grid), geometry.affine):
            return grid
    lps = _LPS_TO_RAS @ geometry.affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    direction = lps[:3, :3] / spacing
    return {"spacing": spacing.tolist(), "origin": lps[:3, 3].tolist(), "direction": direction.ravel().tolist()}


def _refused(error: RuntimeError) -> MedsegError:
    reason = _reason(error)
    if "spacing" in reason or "direction" in reason:
        return BadGeometry(reason, fix="re-export the file from its source")
    return UnreadableFile(f"is damaged or of another format: {reason}", fix="copy or export the file again")


def _reason(error: RuntimeError) -> str:
    """ITK's message without source lines and addresses."""
    text = " ".join(str(error).split()).split("[nrrd] ")[-1]
    return re.sub(r"^.*ITK ERROR: (\w+\(0x[0-9a-f]+\): )?", "", text)[:300]


def grid_geometry(size: Sequence[int], grid: dict[str, list[float]]) -> Geometry:
    """The geometry of an image in memory: size (i, j, k) or (i, j), ITK's spacing, origin and direction in LPS.

    Raises:
        BadGeometry: they are no grid.
    """
    affine = _affine(grid)
    check_affine(affine)
    return Geometry((*size, 1)[:3], affine, {"format": "itk", **grid})

"""MetaImage and NRRD files (.mha, .mhd, .nrrd): read by our own strict parse, written by SimpleITK.

ITK's LPS millimetres become RAS and back.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medseg.io.atomic import atomic_path
from medseg.io.endings import file_ending
from medseg.io.metaimage import parse_metaimage
from medseg.io.nrrd import parse_nrrd
from medseg.io.raw_volume import RawVolume, check_length, read_voxels
from medseg.io.volume import Geometry, check_affine

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def read_geometry(path: Path) -> Geometry:
    """The grid, from the header alone; the file's length is compared with it.

    Raises:
        UnreadableFile, BadVoxels, BadGeometry, UnsafeArtefact: see `read`.
    """
    volume = _parse(path)
    check_length(volume)
    return _geometry(volume)


def read(path: Path) -> tuple[np.ndarray, Geometry]:
    """Voxels (C, i, j, k) as stored, and their grid.

    Raises:
        UnreadableFile: not of its format, truncated, too long or damaged.
        BadVoxels: complex numbers, or more than three dimensions.
        BadGeometry: spacing or directions that are no grid.
        UnsafeArtefact: the voxels would come from another folder.
        InputRefused: the header promises more than the memory holds.
    """
    volume = _parse(path)
    geometry = _geometry(volume)
    voxels = read_voxels(volume)
    return voxels.reshape(len(voxels), *geometry.shape), geometry


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


def _parse(path: Path) -> RawVolume:
    return parse_nrrd(path) if file_ending(path) == ".nrrd" else parse_metaimage(path)


def _geometry(volume: RawVolume) -> Geometry:
    grid = {"spacing": volume.spacing, "origin": volume.origin, "direction": volume.direction}
    return grid_geometry(volume.shape, grid)


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

"""Images that other libraries hold in memory, nibabel's and SimpleITK's, as volumes: the same as from their files."""

from __future__ import annotations

import sys

import numpy as np
from nibabel import Nifti1Image, Nifti1Pair
from nibabel.spatialimages import HeaderDataError, SpatialImage

from medseg.errors import BadGeometry, BadVoxels
from medseg.io.itk import grid_geometry
from medseg.io.nifti_grid import grid_of
from medseg.io.volume import Volume


def volume_of(image: object) -> Volume | None:
    """The voxels (C, i, j, k) of an image, scaled as it says, with its grid; None of what is no such image.

    Args:
        image: of nibabel, with channels last, or of SimpleITK, with channels as the components of its voxels.

    Raises:
        BadVoxels: no real numbers, or dimensions that are no image's.
        BadGeometry: spacing, affine or directions that are no grid.
    """
    if isinstance(image, SpatialImage):
        return _of_nibabel(image)
    library = sys.modules.get("SimpleITK")  # whoever has such an image has imported it
    return _of_itk(image) if library is not None and isinstance(image, library.Image) else None


def _of_nibabel(image: SpatialImage) -> Volume:
    try:
        image = image if isinstance(image, Nifti1Pair) else Nifti1Image.from_image(image)
        image.update_header()
    except (HeaderDataError, ValueError) as error:
        raise BadGeometry(f"nibabel cannot describe it as NIfTI: {error}", fix="correct its affine") from None
    voxels = _real(np.asarray(image.dataobj))
    shape = list(voxels.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    if not 2 <= len(shape) <= 4 or not all(shape):
        raise BadVoxels(f"has the dimensions {tuple(voxels.shape)} (expected 3, or 4 with channels last)")
    shape = [*shape, 1][:3] if len(shape) < 4 else shape
    channels = np.moveaxis(voxels.reshape(*shape[:3], -1), 3, 0)
    return Volume(channels, grid_of(image.header, tuple(shape[:3])))


def _of_itk(image: object) -> Volume:
    import SimpleITK

    assert isinstance(image, SimpleITK.Image)
    if image.GetDimension() not in (2, 3):
        raise BadVoxels(f"has {image.GetDimension()} dimensions (expected 2 or 3)", fix="split it into volumes")
    voxels = _real(SimpleITK.GetArrayFromImage(image))  # (k, j, i) or (k, j, i, C)
    if image.GetNumberOfComponentsPerPixel() == 1:
        voxels = voxels[..., None]
    grid = {name: list(getattr(image, f"Get{name.title()}")()) for name in ("spacing", "origin", "direction")}
    geometry = grid_geometry(image.GetSize(), grid)
    return Volume(voxels.T.reshape(-1, *geometry.shape), geometry)


def _real(voxels: np.ndarray) -> np.ndarray:
    if voxels.dtype.kind not in "biuf":
        raise BadVoxels(f"voxels are {voxels.dtype} (expected real numbers)", fix="split the channels")
    return voxels

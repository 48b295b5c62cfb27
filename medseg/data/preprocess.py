"""From a file's volume to the network's grid and back: canonical -> crop -> normalise -> resample."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from medseg.data.color import COLOR_FIX, in_color
from medseg.data.fingerprint import nonzero_box
from medseg.data.normalize import normalize
from medseg.data.plan import Plan
from medseg.data.resample import resample, resample_image, resample_labels
from medseg.errors import InputRefused
from medseg.io import Geometry, Volume, from_canonical, to_canonical

Box = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Preprocessed:
    """What an inverse needs.

    Attributes:
        geometry: of the file.
        bbox: (start, stop) per axis of the crop, in canonical voxels.
        canonical_shape: before the crop.
        cropped_shape: after the crop.
        resampled_shape: after resampling, the spatial shape of the array that the network sees.
    """

    geometry: Geometry
    bbox: Box
    canonical_shape: tuple[int, ...]
    cropped_shape: tuple[int, ...]
    resampled_shape: tuple[int, ...]

    @property
    def slices(self) -> tuple[slice, ...]:
        """The crop as an index of a canonical (*S) array."""
        return tuple(slice(start, stop) for start, stop in self.bbox)


def preprocess(volume: Volume, plan: Plan) -> tuple[np.ndarray, Preprocessed]:
    """Bring one image to the plan's orientation, crop, intensities and spacing.

    Args:
        volume: as read from the files.
        plan: of the dataset or the trained model.

    Returns:
        (C, *P) float32, and what `preprocess_labels` and the ``restore_`` functions need.

    Raises:
        InputRefused: number of channels or dimensions other than the plan's.
    """
    volume = in_color(volume, plan.color)
    if len(volume.array) != len(plan.channel_names) or volume.ndim != plan.spatial_dims:
        found = f"{volume.ndim}D with {len(volume.array)} channel(s)"
        expected = f"{plan.spatial_dims}D with {len(plan.channel_names)}: {', '.join(plan.channel_names)}"
        is_picture = plan.spatial_dims == volume.ndim == 2 and {len(volume.array), len(plan.channel_names)} == {1, 3}
        raise InputRefused(f"the image is {found} (expected {expected})", fix=COLOR_FIX if is_picture else None)
    canonical = volume.canonical()
    shape = canonical.spatial_shape
    box = nonzero_box(canonical.array) if plan.crop_nonzero else tuple((0, n) for n in shape)
    cropped = tuple(stop - start for start, stop in box)
    new_shape = plan.grid(cropped, canonical.spacing)
    done = Preprocessed(volume.geometry, box, shape, cropped, new_shape)
    normalized = normalize(canonical.array[(slice(None), *done.slices)], plan.normalization)
    return resample_image(normalized, new_shape), done


def preprocess_labels(labels: Volume, done: Preprocessed) -> np.ndarray:
    """The label map of the same case on the grid of `preprocess`.

    Args:
        labels: (1, *S) integers in the image's grid.
        done: what `preprocess` returned for the image.

    Returns:
        (*P), uint8 if all values are below 256, else int16 or int32.
    """
    # The image's geometry decides: two affines that differ by half a voxel may round to different orientations.
    cropped = to_canonical(labels.array, done.geometry)[0][done.slices]
    return np.ascontiguousarray(resample_labels(cropped, done.resampled_shape))


def preprocess_points(points: np.ndarray, done: Preprocessed) -> np.ndarray:
    """Landmarks of a 2D image on the grid of `preprocess`: (N, 2) pixels (x, y) of the file -> of that grid.

    Pixel i covers i to i + 1, as in `medseg.data.resample`: the outer edges of both grids are the same.
    """
    (top, _), (left, _) = done.bbox
    scale = np.divide(done.resampled_shape, done.cropped_shape)[::-1]
    return ((points - (left, top)) * scale).astype(np.float32)


def restore_points(points: np.ndarray, done: Preprocessed) -> np.ndarray:
    """The inverse of `preprocess_points`: (N, 2) pixels of the prepared grid -> of the file."""
    (top, _), (left, _) = done.bbox
    scale = np.divide(done.cropped_shape, done.resampled_shape)[::-1]
    return (points * scale + (left, top)).astype(np.float32)


def restore_probabilities(probabilities: torch.Tensor, done: Preprocessed) -> torch.Tensor:
    """Class probabilities back at the file's spacing: (K, *resampled_shape) -> (K, *cropped_shape), still canonical."""
    return resample(probabilities, done.cropped_shape)


def restore_labels(labels: np.ndarray, done: Preprocessed) -> np.ndarray:
    """Labels back in the file's grid: (*cropped_shape) canonical -> (*S) of the file; 0 outside the crop."""
    return restore_channels(labels[None], done)[0]


def restore_channels(array: np.ndarray, done: Preprocessed, outside: float = 0) -> np.ndarray:
    """`restore_labels` for (K, *cropped_shape) arrays, e.g. probabilities; `outside` fills what was cropped away."""
    full = np.full((len(array), *done.canonical_shape), outside, dtype=array.dtype)
    full[(slice(None), *done.slices)] = array
    return from_canonical(full, done.geometry)

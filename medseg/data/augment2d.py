"""2D augmentation through albumentations, on float images (C, H, W) of any number of channels.

albumentations clips intensities of float images to [0, 1], so the intensity steps run on the image scaled there and
back; the spatial steps do not clip and run on the normalised image, padded with 0.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from medseg.data.augment_inside import MoveInside
from medseg.data.augment_settings import AugmentationSettings, Sample, Transform

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # else the import asks the network for a newer version
import albumentations
import albumentations as A

__all__ = ["Intensity2d", "Spatial2d", "albumentations", "steps_2d"]

PIXELS_PER_CONTROL_POINT = 16
KEYPOINTS = A.KeypointParams(format="xy", remove_invisible=False)
DISTORTED = {"keypoint_remapping_method": "direct"}  # albumentations' "mask" loses points outside of the image


def steps_2d(settings: AugmentationSettings) -> tuple[Transform, ...]:
    """The spatial step and the intensity step."""
    move: Transform = MoveInside(settings, settings.spatial_probability)
    if not settings.keep_inside:
        move = Spatial2d(_spatial(settings), settings.spatial_probability)
    return move, Intensity2d(_intensity(settings))


def seeded(pipeline: Any, seed: int) -> Any:
    """An albumentations pipeline, ready to repeat what the seed says.

    ``set_random_seed`` would give every step the same numbers, so that all happen together or none.
    """
    pipeline.set_random_state(np.random.default_rng(seed), random.Random(seed))
    return pipeline


@dataclass(frozen=True)
class _Seeded:
    """An albumentations pipeline whose only parameter is a seed."""

    pipeline: Any = field(repr=False)
    probability: float = 1.0

    def draw(self, rng: np.random.Generator) -> int:
        """The seed."""
        return int(rng.integers(2**31))

    def seeded(self, seed: int) -> Any:
        """The pipeline, ready to repeat what the seed says."""
        return seeded(self.pipeline, seed)


class Spatial2d(_Seeded):
    """Rotation, zoom, shear and elastic deformation of image (linear) and label (nearest neighbour)."""

    def apply(self, sample: Sample, params: int) -> Sample:
        """Same shapes as before."""
        label = sample["label"][0].numpy()
        mask = label if label.dtype == np.uint8 else label.astype(np.float32)  # OpenCV has no 32-bit integer images
        keypoints = to_keypoints(sample)
        moved = self.seeded(params)(image=_channels_last(sample["image"]), mask=mask, keypoints=keypoints)
        points = {"points": from_keypoints(moved["keypoints"])} if "points" in sample else {}
        return {
            **sample,
            **points,
            "image": _channels_first(moved["image"]),
            "label": torch.from_numpy(np.ascontiguousarray(moved["mask"][None])).to(sample["label"].dtype),
        }


class Intensity2d(_Seeded):
    """Noise, blur, brightness, contrast, gamma and low resolution."""

    def apply(self, sample: Sample, params: int) -> Sample:
        """The image within its old range, the label untouched."""
        image = sample["image"]
        low = image.amin()
        extent = image.amax() - low
        extent = extent.where(extent > 0, 1.0)
        changed = self.seeded(params)(image=_channels_last((image - low) / extent))["image"]
        return {**sample, "image": _channels_first(changed) * extent + low}


def _spatial(s: AugmentationSettings) -> Any:
    shear = float(np.rad2deg(np.arctan(s.shear)))
    affine = A.Affine(scale=s.scale, rotate=(-s.rotation_degrees, s.rotation_degrees), shear=(-shear, shear), p=1.0)
    # Measured: smoothed noise of size alpha moves a pixel by at most about alpha / (5.5 sigma).
    alpha = s.elastic_voxels * 5.5 * PIXELS_PER_CONTROL_POINT
    elastic = A.ElasticTransform(alpha=alpha, sigma=PIXELS_PER_CONTROL_POINT, p=s.elastic_probability, **DISTORTED)
    return A.Compose([affine, elastic], keypoint_params=KEYPOINTS)


def _intensity(s: AugmentationSettings) -> Any:
    """Strengths are those of 3D; the noise's unit is the image's range here, taken as five standard deviations."""
    brightness, contrast = ((low - 1, high - 1) for low, high in (s.brightness, s.contrast))
    scaled_noise = (s.noise_std[0] / 5, s.noise_std[1] / 5)
    gamma = (round(100 * s.gamma[0]), round(100 * s.gamma[1]))
    low_resolution = (s.low_resolution[0], min(0.99, s.low_resolution[1]))
    return A.Compose(
        [
            A.GaussNoise(std_range=scaled_noise, p=s.noise_probability),
            A.GaussianBlur(sigma_limit=s.blur_sigma, blur_limit=0, p=s.blur_probability),
            A.RandomBrightnessContrast(brightness, 0.0, p=s.brightness_probability),
            A.RandomBrightnessContrast(0.0, contrast, p=s.contrast_probability),
            A.Downscale(scale_range=low_resolution, p=s.low_resolution_probability),
            A.RandomGamma(gamma_limit=gamma, p=s.gamma_probability),
        ]
    )


def to_keypoints(sample: Sample) -> np.ndarray:
    """The sample's landmarks, (N, 2); albumentations calls a pixel's centre 0 where ours is 0.5."""
    return sample["points"].numpy() - 0.5 if "points" in sample else np.empty((0, 2), np.float32)


def from_keypoints(keypoints: np.ndarray) -> torch.Tensor:
    """The inverse of `to_keypoints`."""
    return torch.from_numpy(np.asarray(keypoints, np.float32)[:, :2] + 0.5)


def _channels_last(image: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray(image.permute(1, 2, 0).numpy())


def _channels_first(image: np.ndarray) -> torch.Tensor:
    image = image[..., None] if image.ndim == 2 else image
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))

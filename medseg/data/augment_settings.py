"""How strong an augmentation is, and what one step of it must offer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

Sample = dict[str, Any]


@dataclass(frozen=True)
class AugmentationSettings:
    """Strengths and probabilities. Ranges are (low, high); a probability is per sample.

    Attributes:
        rotation_degrees: largest angle about each axis.
        scale: zoom factor; 2 shows everything twice as large.
        shear: largest shear coefficient.
        elastic_voxels: largest displacement of a control point; six control points per axis.
        spatial_probability: rotation, zoom and shear together.
        elastic_probability: elastic deformation, among the spatially transformed samples.
        mirror_probability: for each axis that the plan allows.
        noise_std: of the Gaussian noise, in units of the normalised image.
        blur_sigma: of the Gaussian, in voxels.
        brightness, contrast, gamma: factors and exponents.
        low_resolution: fraction of the resolution that is simulated.
        keep_inside: 2D only: no landmark, or no foreground, leaves the image, see `medseg.data.augment_inside`.
    """

    rotation_degrees: float = 30.0
    scale: tuple[float, float] = (0.7, 1.4)
    shear: float = 0.1
    elastic_voxels: float = 3.0
    noise_std: tuple[float, float] = (0.0, 0.3)
    blur_sigma: tuple[float, float] = (0.5, 1.0)
    brightness: tuple[float, float] = (0.75, 1.25)
    contrast: tuple[float, float] = (0.75, 1.25)
    gamma: tuple[float, float] = (0.7, 1.5)
    low_resolution: tuple[float, float] = (0.5, 1.0)
    spatial_probability: float = 0.5
    elastic_probability: float = 0.2
    mirror_probability: float = 0.5
    noise_probability: float = 0.1
    blur_probability: float = 0.1
    brightness_probability: float = 0.15
    contrast_probability: float = 0.15
    gamma_probability: float = 0.3
    low_resolution_probability: float = 0.15
    keep_inside: bool = False


PRESETS = {
    "default": AugmentationSettings(),
    "light": AugmentationSettings(
        rotation_degrees=15.0,
        scale=(0.85, 1.15),
        shear=0.0,
        elastic_probability=0.0,
        noise_std=(0.0, 0.1),
        blur_probability=0.0,
        low_resolution_probability=0.0,
        gamma=(0.8, 1.25),
    ),
    "landmarks": AugmentationSettings(
        rotation_degrees=3.0,
        scale=(0.8, 2.0),
        keep_inside=True,
        spatial_probability=1.0,
        mirror_probability=0.0,
        noise_std=(5 / 128, 5 / 128),  # 1/128 of the image's range
        noise_probability=1.0,
        gamma=(0.6, 1.2),
        gamma_probability=1.0,
        blur_probability=0.0,
        brightness_probability=0.0,
        contrast_probability=0.0,
        low_resolution_probability=0.0,
    ),
}


class Transform(Protocol):
    """One step: `draw` takes all randomness from the generator, `apply` is a pure function of sample and parameters."""

    @property
    def probability(self) -> float:
        """Share of the samples that it is applied to."""

    def draw(self, rng: np.random.Generator) -> Any:
        """Plain parameters of one application."""

    def apply(self, sample: Sample, params: Any) -> Sample:
        """The sample, {"image": (C, *S), "label": (1, *S)}, transformed; the input is left as it is."""

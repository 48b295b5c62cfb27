"""Intensity steps of 3D augmentation, in the strengths of nnU-Net; blur and gamma are MONAI's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.transforms.intensity.array import AdjustContrast, GaussianSmooth

from medseg.data.augment_settings import Sample

INVERTED_GAMMA = 0.25


@dataclass(frozen=True)
class Noise:
    """Add Gaussian noise."""

    std: tuple[float, float]
    probability: float

    def draw(self, rng: np.random.Generator) -> tuple[float, int]:
        """Standard deviation, and the seed of the noise."""
        return rng.uniform(*self.std), int(rng.integers(2**31))

    def apply(self, sample: Sample, params: tuple[float, int]) -> Sample:
        """Image + noise."""
        std, seed = params
        image = sample["image"]
        noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(seed))
        return {**sample, "image": torch.add(image, noise, alpha=std)}


@dataclass(frozen=True)
class _Intensity:
    """One factor, uniform in a range."""

    bounds: tuple[float, float]
    probability: float

    def draw(self, rng: np.random.Generator) -> float:
        """The factor."""
        return float(rng.uniform(*self.bounds))

    def apply(self, sample: Sample, params: float) -> Sample:
        """Change the image only."""
        return {**sample, "image": self.change(sample["image"], params)}

    def change(self, image: torch.Tensor, factor: float) -> torch.Tensor:
        """(C, *S) -> (C, *S)."""
        raise NotImplementedError


class Blur(_Intensity):
    """Gaussian smoothing, sigma in voxels."""

    def change(self, image: torch.Tensor, factor: float) -> torch.Tensor:
        """Smooth by sigma `factor`; the border is continued, where MONAI alone would darken it with zeros."""
        margin = math.ceil(4 * factor)
        padded = F.pad(image[None], (margin,) * 6, mode="replicate")[0]
        inner = slice(margin, -margin)
        return _plain(GaussianSmooth(factor)(padded))[:, inner, inner, inner].contiguous()


class Brightness(_Intensity):
    """Multiply the normalised image."""

    def change(self, image: torch.Tensor, factor: float) -> torch.Tensor:
        """Multiply by `factor`."""
        return image * factor


class Contrast(_Intensity):
    """Stretch around the mean of each channel, within the old range."""

    def change(self, image: torch.Tensor, factor: float) -> torch.Tensor:
        """Stretch by `factor`."""
        axes = tuple(range(1, image.ndim))
        mean = image.mean(axes, keepdim=True)
        return torch.clamp((image - mean) * factor + mean, image.amin(axes, True), image.amax(axes, True))


class LowResolution(_Intensity):
    """Sample down by nearest neighbour and up again linearly, as if the scan were coarser."""

    def change(self, image: torch.Tensor, factor: float) -> torch.Tensor:
        """Keep `factor` of the resolution."""
        small = [max(1, round(n * factor)) for n in image.shape[1:]]
        coarse = F.interpolate(image[None], size=small, mode="nearest-exact")
        return F.interpolate(coarse, size=image.shape[1:], mode="trilinear", align_corners=False)[0]


@dataclass(frozen=True)
class Gamma:
    """Power curve over the image's range, mean and deviation kept; now and then on the inverted image."""

    bounds: tuple[float, float]
    probability: float

    def draw(self, rng: np.random.Generator) -> tuple[float, bool]:
        """Exponent, and whether the image is inverted first."""
        return float(rng.uniform(*self.bounds)), bool(rng.random() < INVERTED_GAMMA)

    def apply(self, sample: Sample, params: tuple[float, bool]) -> Sample:
        """Change the image only."""
        gamma, invert = params
        return {**sample, "image": _plain(AdjustContrast(gamma, invert, retain_stats=True)(sample["image"]))}


def _plain(image: Any) -> torch.Tensor:
    """MONAI returns its MetaTensor, which the rest need not know."""
    return image.as_tensor() if hasattr(image, "as_tensor") else image

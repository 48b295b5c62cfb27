"""Augmentation of images that a network sees as a whole: landmarks never leave them.

HybridGNet's recipe (Gaggion et al. 2022, official code): width and height are scaled apart, from 0.8 up to the largest
factor at which all landmarks are still inside, and the image is turned by up to 3 degrees. Ours: a limit of that
factor, the random shift, and that scale and angle are applied in one resampling.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from medseg.data.augment_settings import AugmentationSettings, Sample

SHIFT = 0.1  # of the image's width and height, at most, to either side


@dataclass(frozen=True)
class MoveInside:
    """Scale, rotation and shift of image, label and landmarks.

    What stays inside are the sample's landmarks or, where it has none, its foreground.
    """

    settings: AugmentationSettings
    probability: float = 1.0

    def draw(self, rng: np.random.Generator) -> dict[str, Any]:
        """``degrees``; ``scale`` and ``shift`` per axis (x, y) in 0..1, as shares of what the sample allows."""
        limit = self.settings.rotation_degrees
        return {"degrees": float(rng.uniform(-limit, limit)), "scale": rng.random(2), "shift": rng.random(2)}

    def apply(self, sample: Sample, params: dict[str, Any]) -> Sample:
        """Same shapes as before; what comes in from outside is 0."""
        size = np.array(sample["image"].shape[:0:-1], float)
        matrix, offset = inside_affine(kept_points(sample), size, self.settings.scale, params)
        moved = {name: warp(sample[name], matrix, offset) for name in ("image", "label")}
        if "points" in sample:
            moved["points"] = torch.from_numpy((sample["points"].numpy() @ matrix.T + offset).astype(np.float32))
        return {**sample, **moved}


def kept_points(sample: Sample) -> np.ndarray:
    """(n, 2) pixels (x, y): the landmarks, the corners of the foreground's box, or those of the image."""
    if "points" in sample:
        return sample["points"].numpy()
    rows, columns = np.nonzero(sample["label"][0].numpy())
    if not len(rows):
        rows, columns = (np.array([0, n - 1]) for n in sample["label"].shape[1:])
    x, y = (columns.min(), columns.max() + 1), (rows.min(), rows.max() + 1)
    return np.array([(a, b) for a in x for b in y], float)


def inside_affine(
    points: np.ndarray, size: np.ndarray, limits: tuple[float, float], params: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """(2, 2) and (2,): ``matrix @ (x, y) + offset`` of pixels, about the image's centre."""
    angle, centre = np.deg2rad(params["degrees"]), size / 2
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    turned = (points - centre) @ turn.T
    low, high = turned.min(axis=0), turned.max(axis=0)
    largest = np.minimum(limits[1], size / np.maximum(high - low, 1))
    smallest = np.minimum(limits[0], largest)
    scale = smallest + params["scale"] * (largest - smallest)
    wanted = centre + (2 * params["shift"] - 1) * SHIFT * size
    first, last = -scale * low, size - scale * high  # where the centre may go
    place = np.clip(wanted, np.minimum(first, last), np.maximum(first, last))
    matrix = scale[:, None] * turn
    return matrix, place - matrix @ centre


def warp(array: torch.Tensor, matrix: np.ndarray, offset: np.ndarray) -> torch.Tensor:
    """(C, H, W) moved by `inside_affine`: floats linearly, whole numbers to the nearest pixel."""
    import cv2

    # OpenCV counts from a pixel's centre, which is half a pixel from the corner that we count from.
    full = np.column_stack([matrix, matrix @ [0.5, 0.5] + offset - 0.5])
    mode = cv2.INTER_LINEAR if array.is_floating_point() else cv2.INTER_NEAREST
    source = array.numpy() if array.dtype in (torch.uint8, torch.float32) else array.numpy().astype(np.float32)
    moved = [cv2.warpAffine(np.ascontiguousarray(one), full, one.shape[::-1], flags=mode) for one in source]
    return torch.from_numpy(np.stack(moved)).to(array.dtype)

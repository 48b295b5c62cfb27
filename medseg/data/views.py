"""Two random views of an image, for pretraining: albumentations' steps, drawn by (seed, index)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from medseg.data.augment2d import seeded
from medseg.data.color import in_color
from medseg.data.dataset import Case
from medseg.data.normalize import normalize
from medseg.data.plan import Plan
from medseg.data.sampling import case_in_turn, one_thread
from medseg.errors import InputRefused, UsageError, nearest
from medseg.io import read_channels

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # else the import asks the network for a newer version
import albumentations as A

Sample = dict[str, Any]

KEYS = (
    "crop", "horizontal_flip", "vertical_flip", "rotation_degrees", "rotation", "jitter", "brightness", "contrast",
    "saturation", "hue", "gray", "blur", "solarize",
)  # fmt: skip


class ViewDataset(Dataset[Sample]):
    """Two views of an image for any index from 0 up, without end, the same for any number of workers.

    The images go round in a new random order each time; no batch holds one twice.

    Args:
        cases: the images, 2D.
        plan: its patch size is the views' size; views are normalised as it says, after the random steps.
        settings: of the random steps, as in ``configs/views``.
        batch_size: indices ``batch_size * b`` and on are the images of batch b; at most the number of images.
        seed: of all randomness.

    Raises:
        UsageError: an unknown setting.
    """

    def __init__(
        self, cases: Sequence[Case], plan: Plan, settings: Mapping[str, Any], *, batch_size: int, seed: int = 0
    ) -> None:
        self.cases = {case.id: case for case in cases}
        self.ids, self.plan, self.seed, self.batch_size = sorted(self.cases), plan, seed, batch_size
        self.steps = view_steps(settings, plan.patch_size, len(plan.channel_names))
        self.announce: Callable[[str], None] = lambda case_id: None  # told each case before it is read

    def __getitem__(self, index: int) -> Sample:
        """{"image": (2, C, *patch) float32, "case": id}."""
        batch, place = divmod(index, self.batch_size)
        turn, batch = divmod(batch, len(self.ids) // self.batch_size)
        case_id = case_in_turn(self.ids, self.seed, turn * len(self.ids) + batch * self.batch_size + place)
        self.announce(case_id)
        image = in_color(read_channels(self.cases[case_id].images, case=case_id), self.plan.color).array
        if len(image) != len(self.plan.channel_names) or image.ndim != 3:
            expected = f"2D with {len(self.plan.channel_names)} channels"
            raise InputRefused(f"the image is {image.ndim - 1}D with {len(image)} (expected {expected})", case=case_id)
        rng = np.random.default_rng((self.seed, index))
        with one_thread():
            views = [self._view(image, int(rng.integers(2**31))) for _ in range(2)]
        return {"image": torch.from_numpy(np.stack(views)), "case": case_id}

    def _view(self, image: np.ndarray, seed: int) -> np.ndarray:
        """Random steps on intensities scaled to 0..1, which albumentations expects; then back and normalised."""
        low, high = image.min(), image.max()
        extent = float(high - low) or 1.0
        scaled = np.ascontiguousarray(((image - low) / extent).transpose(1, 2, 0))
        changed = seeded(self.steps, seed)(image=scaled)["image"]
        changed = changed[..., None] if changed.ndim == 2 else changed
        return normalize(changed.transpose(2, 0, 1) * extent + low, self.plan.normalization)


def view_steps(settings: Mapping[str, Any], size: Sequence[int], channels: int) -> Any:
    """The albumentations pipeline of ``configs/views``; colour steps only where the image has colours.

    Raises:
        UsageError: an unknown setting, or one that is missing.
    """
    for key in (*settings, *KEYS):
        if key not in KEYS or key not in settings:
            raise UsageError(f"views has {'no' if key not in KEYS else 'to set'} '{key}': {nearest(key, KEYS)}")
    s = settings
    steps: list[Any] = [
        A.RandomResizedCrop(tuple(size), scale=tuple(s["crop"]), ratio=(size[1] / size[0],) * 2),
        A.HorizontalFlip(p=s["horizontal_flip"]),
        A.VerticalFlip(p=s["vertical_flip"]),
        A.Rotate(limit=s["rotation_degrees"], border_mode=cv2.BORDER_REFLECT, p=s["rotation"]),
    ]
    if channels == 3:
        strengths = (s["brightness"], s["contrast"], s["saturation"], s["hue"])
        steps += [A.ColorJitter(*strengths, p=s["jitter"]), A.ToGray(p=s["gray"])]
    else:
        steps.append(A.RandomBrightnessContrast(s["brightness"], s["contrast"], p=s["jitter"]))
    return A.Compose([*steps, A.GaussianBlur(p=s["blur"]), A.Solarize(p=s["solarize"])])

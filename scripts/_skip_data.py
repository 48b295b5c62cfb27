"""Small arrays of real tasks for bench_skips.py: trained on one domain, tested on it and under shift."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from medseg.data.catalogue import data_folders, find_dataset
from medseg.data.dataset import open_dataset
from medseg.data.splits import nnunet_splits
from medseg.io import read_labels, read_volume

Example = tuple[str, Tensor, Tensor]  # case, image (C, *S) of zero mean and unit deviation, label (1, *S)
SIZE = {2: (64, 64), 3: (32, 48, 32)}  # of what the networks see: a quarter of a picture's pixels a side; a box


@dataclass(frozen=True)
class Task:
    """Training cases, and test cases by domain; the first domain is that of the training."""

    name: str
    spatial_dims: int
    channels: int
    labels: dict[str, int]
    train: list[Example]
    test: dict[str, list[Example]]


def invert(image: Tensor) -> Tensor:
    """Contrast inverted."""
    return -image


def noisy(image: Tensor) -> Tensor:
    """Noise of half the image's deviation, always the same."""
    return image + 0.5 * torch.randn(image.shape, generator=torch.Generator().manual_seed(0))


def coarse(image: Tensor) -> Tensor:
    """Half the resolution, interpolated back."""
    mode = "bilinear" if image.ndim == 3 else "trilinear"
    small = torch.nn.functional.interpolate(image[None], scale_factor=0.5, mode="area")
    return torch.nn.functional.interpolate(small, size=image.shape[1:], mode=mode)[0]


SHIFTS: dict[str, Callable[[Tensor], Tensor]] = {"inverted": invert, "noise": noisy, "resolution": coarse}


def load(name: str, limit: int | None = None) -> Task:
    """Task ``lungs``, ``isic`` or ``hippocampus``; `limit` cases at most of every part."""
    return {"lungs": _lungs, "isic": _isic, "hippocampus": _hippocampus}[name](limit)


def _lungs(limit: int | None) -> Task:
    root = _folder("cxr_lungs")
    held = set((root / "val.txt").read_text().split())
    names = sorted(path.stem for path in (root / "images").iterdir())
    own = [name for name in names if name.startswith("CHN") and name not in held]
    parts = {"Shenzhen": sorted(held), "Montgomery": [name for name in names if name.startswith("MCU")]}
    pick = lambda some: [_flat(root, name) for name in list(some)[:limit]]  # noqa: E731
    labels = {"background": 0, "lungs": 1}
    return Task("lungs", 2, 1, labels, pick(own), {key: pick(some) for key, some in parts.items()})


def _isic(limit: int | None) -> Task:
    root = _folder("isic2017_256")
    held = (root / "val.txt").read_text().split()
    names = sorted(path.stem for path in (root / "images").iterdir())
    own = [_flat(root, name) for name in [name for name in names if name not in set(held)][:limit]]
    test = [_flat(root, name) for name in held[:limit]]
    return Task("isic", 2, 3, {"background": 0, "lesion": 1}, own, _with_shifts("own", test))


def _hippocampus(limit: int | None) -> Task:
    dataset = open_dataset(find_dataset("hippocampus"))
    split = nnunet_splits([case.id for case in dataset.training])[0]
    parts = {key: [_volume(dataset.case(name)) for name in split[key][:limit]] for key in ("train", "val")}
    return Task("hippocampus", 3, 1, dict(dataset.labels), parts["train"], _with_shifts("own", parts["val"]))


def _with_shifts(name: str, cases: Iterable[Example]) -> dict[str, list[Example]]:
    own = list(cases)
    shifted = {key: [(case, shift(image), label) for case, image, label in own] for key, shift in SHIFTS.items()}
    return {name: own, **shifted}


def _folder(name: str) -> Path:
    found = next((folder / name for folder in data_folders() if (folder / name).is_dir()), None)
    if found is None:
        raise SystemExit(f"{name} is in none of {', '.join(map(str, data_folders()))}: set MEDSEG_DATA")
    return found


def _flat(root: Path, name: str) -> Example:
    """An image at a quarter of its resolution."""
    image_file = next((root / "images").glob(f"{name}.*"))
    label_file = next((root / "masks").glob(f"{name}*"))
    image, label = read_volume(image_file).array, read_labels(label_file).array
    small = torch.nn.functional.avg_pool2d(torch.from_numpy(image.astype(np.float32))[None], 4)[0]
    return name, _normal(small), torch.from_numpy((label[:1, ::4, ::4] > 0).astype(np.uint8))


def _volume(case) -> Example:  # type: ignore[no-untyped-def]
    image, label = read_volume(case.images[0]).array, read_labels(case.label).array
    fitted = [torch.from_numpy(_fit(array.astype(np.float32))) for array in (image, label)]
    return case.id, _normal(fitted[0]), fitted[1].to(torch.uint8)


def _fit(array: np.ndarray) -> np.ndarray:
    """(C, *S) padded with zeros or cut around its middle to `SIZE`."""
    box = SIZE[3]
    out = np.zeros((len(array), *box), array.dtype)
    sizes = [min(a, b) for a, b in zip(array.shape[1:], box, strict=True)]
    source = tuple(slice((n - m) // 2, (n - m) // 2 + m) for n, m in zip(array.shape[1:], sizes, strict=True))
    target = tuple(slice((n - m) // 2, (n - m) // 2 + m) for n, m in zip(box, sizes, strict=True))
    out[(slice(None), *target)] = array[(slice(None), *source)]
    return out


def _normal(image: Tensor) -> Tensor:
    return (image - image.mean()) / image.std().clamp_min(1e-6)

"""Patches for training: foreground oversampled, classes and cases balanced, the same for any number of workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from medseg.data.plan import Plan
from medseg.data.plan_rules import inserted
from medseg.data.prepared import PreparedDataset
from medseg.errors import BadDataset, UsageError

Sample = dict[str, Any]
JITTER = 4  # a patch's centre lies within a quarter of the patch from the voxel it was drawn for


class PatchDataset(Dataset[Sample]):
    """One random patch for any index from 0 up, without end; seed and index decide it, so workers change nothing.

    In every batch the last ``round(batch_size * foreground_fraction)`` patches hold foreground: a class is drawn
    first, then a case that has it, so rare classes are seen as often as common ones. The other patches go round the
    cases in a new random order each time, at uniformly random places.

    Args:
        prepared: where the arrays are.
        plan: patch size and batch size are used.
        ids: the training cases.
        batch_size: default the plan's; indices ``batch_size * b`` and on are the patches of batch b.
        seed: of all randomness.
        foreground_fraction: share of each batch that is drawn around foreground voxels.
        augment: ``(generator, sample) -> sample`` as `medseg.data.augment.make_augmentation` builds it. Its
            ``input_size``, if it has one, is cut instead of the patch: the margin that rotation draws from. Where the
            plan cuts slices, it sees them as 2D images.
        whole: every patch must hold the whole image, as networks that find landmarks need it.
        points: add the landmarks that were prepared.
    """

    def __init__(
        self,
        prepared: PreparedDataset,
        plan: Plan,
        ids: Sequence[str],
        *,
        batch_size: int | None = None,
        seed: int = 0,
        foreground_fraction: float = 1 / 3,
        augment: Callable[[np.random.Generator, Sample], Sample] | None = None,
        whole: bool = False,
        points: bool = False,
    ) -> None:
        if not ids:
            raise BadDataset("there is no case to sample patches from", fix="give this fold cases that train")
        self.prepared, self.ids, self.seed, self.augment = prepared, sorted(ids), seed, augment
        self.points = points
        self.patch_size, self.batch_size = plan.patch_size, batch_size or plan.batch_size
        self.slice_axis = plan.slice_axis
        self.foreground_from = self.batch_size - round(self.batch_size * foreground_fraction)
        self.announce: Callable[[str], None] = lambda case_id: None  # told each case before it is read
        self.having: dict[int, list[str]] = {}
        for id_ in self.ids:
            if whole:
                check_whole(prepared.labels(id_).shape, plan.patch_size, id_)
            for value in prepared.classes(id_):
                self.having.setdefault(value, []).append(id_)

    def __getitem__(self, index: int) -> Sample:
        """{"image": (C, *patch) float32, "label": (1, *patch) integers, "case": id}, as tensors.

        With landmarks also "points" (N, 2) float32, x and y in units of the patch's width and height.
        """
        rng = np.random.default_rng((self.seed, index))
        batch, place = divmod(index, self.batch_size)
        if place >= self.foreground_from and self.having:
            case_id, voxel = self._foreground_voxel(rng)
        else:
            case_id, voxel = case_in_turn(self.ids, self.seed, batch * self.foreground_from + place), None
        sample = self._cut(rng, case_id, voxel)
        if self.augment is not None:
            with one_thread():
                sample = self._augmented(rng, sample)
        if self.points:
            sample["points"] = sample["points"] / torch.tensor(sample["image"].shape[:0:-1])
        return {**sample, "case": case_id}

    def _augmented(self, rng: np.random.Generator, sample: Sample) -> Sample:
        """The sample augmented; a slice, (C, *S) one voxel thick, as the 2D image that it is."""
        assert self.augment is not None
        axis = self.slice_axis
        if axis is None:
            return self.augment(rng, sample)
        flat = {name: tensor.squeeze(1 + axis) for name, tensor in sample.items()}
        return {name: tensor.unsqueeze(1 + axis) for name, tensor in self.augment(rng, flat).items()}

    def _input_size(self, augment: Any) -> tuple[int, ...]:
        if not hasattr(augment, "input_size"):
            return self.patch_size
        return augment.input_size if self.slice_axis is None else inserted(augment.input_size, self.slice_axis, 1)

    def _foreground_voxel(self, rng: np.random.Generator) -> tuple[str, np.ndarray]:
        value = sorted(self.having)[rng.integers(len(self.having))]
        case_id = self.having[value][rng.integers(len(self.having[value]))]
        positions = self.prepared.foreground(case_id)[value]
        return case_id, positions[rng.integers(len(positions))]

    def _cut(self, rng: np.random.Generator, case_id: str, voxel: np.ndarray | None) -> Sample:
        self.announce(case_id)
        image, labels = self.prepared.image(case_id), self.prepared.labels(case_id)
        start = patch_start(rng, labels.shape, self.patch_size, voxel)
        size = self.patch_size if self.augment is None else self._input_size(self.augment)
        start = [first - (wide - n) // 2 for first, wide, n in zip(start, size, self.patch_size, strict=True)]
        sample = {
            "image": torch.from_numpy(cut_padded(image, start, size)),
            "label": torch.from_numpy(cut_padded(labels[None], start, size)),
        }
        if self.points:
            corner = np.array(start[::-1], np.float32)
            sample["points"] = torch.from_numpy(self.prepared.points(case_id) - corner)
        return sample


def check_whole(shape: Sequence[int], patch: Sequence[int], case_id: str | None = None) -> None:
    """Refuse an image larger than what a network sees that must see it as a whole. Raises UsageError."""
    if all(n <= p for n, p in zip(shape, patch, strict=True)):
        return
    found, seen = ("x".join(map(str, size)) for size in (shape, patch))
    problem = f"the image has {found} pixels at the plan's spacing, and the network sees a whole image in {seen}"
    raise UsageError(problem, case=case_id, fix="train with a larger plan.patch_size, or a coarser plan.spacing")


def case_in_turn(ids: Sequence[str], seed: int, number: int) -> str:
    """The case that comes `number`-th when all go round in a new random order each time."""
    turn, place = divmod(number, len(ids))
    return ids[np.random.default_rng((seed, turn, 1)).permutation(len(ids))[place]]


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute as a loader's worker does: with several threads, torch sums in another order and the last bits differ."""
    threads = torch.get_num_threads()
    if threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def patch_start(
    rng: np.random.Generator, shape: Sequence[int], patch: Sequence[int], voxel: np.ndarray | None
) -> list[int]:
    """First voxel of a random patch, per axis.

    Where the image is larger, the patch stays inside; where it is smaller, the start is negative and random, so that
    the image lies anywhere in the patch. With a voxel given, the patch's centre lies within a quarter patch of it.
    """
    low = [min(0, n - p) for n, p in zip(shape, patch, strict=True)]
    high = [max(0, n - p) for n, p in zip(shape, patch, strict=True)]
    start = rng.integers(low, np.add(high, 1))
    if voxel is None:
        return start.tolist()
    jitter = np.asarray(patch) // JITTER
    around = np.clip(voxel - np.asarray(patch) // 2 + rng.integers(-jitter, jitter + 1), low, high)
    return np.where(np.asarray(high) > 0, around, start).tolist()


def cut_padded(array: np.ndarray, start: Sequence[int], size: Sequence[int]) -> np.ndarray:
    """Copy a box of (C, *S); what lies outside is 0: the mean of a normalised image, background of a label map."""
    out = np.zeros((len(array), *size), array.dtype)
    shape = array.shape[1:]
    source = [slice(max(0, a), max(0, min(n, a + k))) for a, k, n in zip(start, size, shape, strict=True)]
    target = [slice(s.start - a, s.start - a + max(0, s.stop - s.start)) for s, a in zip(source, start, strict=True)]
    out[(slice(None), *target)] = array[(slice(None), *source)]
    return out

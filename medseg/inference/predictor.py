"""Predictor: model folders in, segmentations of files out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, combinations
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from medseg.data.plan import Plan
from medseg.data.prepare import preprocess, restore_channels, restore_labels, restore_probabilities
from medseg.device import DeviceProfile, choose_profile
from medseg.errors import UnreadableFile, UsageError
from medseg.inference.segmentation import Segmentation
from medseg.inference.sliding_window import sliding_window
from medseg.io import Volume, load_model, read_channels
from medseg.models import create_model
from medseg.targets import Target, build_target

Source = str | Path | Sequence[str | Path] | Volume


@dataclass(frozen=True)
class Member:
    """One trained network of an ensemble, with the plan and target that it was trained for."""

    network: nn.Module
    plan: Plan
    target: Target


class Predictor:
    """Predicts files with one network or the mean of several.

    Args:
        members: trained networks; they share the target.
        profile: device, precision, memory format.
        overlap: of the sliding window, 0 <= overlap < 1.
        tta: average over mirrored copies along the axes that the plan allows.
        window_batch: windows per network call.

    Example:
        >>> predictor = Predictor.from_pretrained("runs/phantom/unet/first")  # doctest: +SKIP
        >>> predictor.predict("case.nii.gz").save("case_seg.nii.gz")  # doctest: +SKIP
    """

    def __init__(
        self,
        members: Sequence[Member],
        profile: DeviceProfile,
        *,
        overlap: float = 0.5,
        tta: bool = False,
        window_batch: int = 1,
    ) -> None:
        if not 0 <= overlap < 1:
            raise UsageError(f"overlap is {overlap} (must be at least 0 and below 1)")
        _check_same_target(members)
        self.members, self.profile = list(members), profile
        self.overlap, self.tta, self.window_batch = overlap, tta, window_batch

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path | Sequence[str | Path],
        *,
        device: str = "auto",
        precision: str = "auto",
        threads: int | None = None,
        overlap: float = 0.5,
        tta: bool = False,
        window_batch: int = 1,
    ) -> Predictor:
        """Load model folders; a run of several folds, or several folders, become an ensemble. No code is executed.

        Raises:
            UnreadableFile, UnsafeArtefact, UsageError: as `medseg.io.load_model`, and for weights of another model.
        """
        profile = choose_profile(device, precision, threads=threads)
        given = [folder] if isinstance(folder, str | Path) else list(folder)
        members = [load_member(found, profile) for one in given for found in model_folders(Path(one))]
        return cls(members, profile, overlap=overlap, tta=tta, window_batch=window_batch)

    @property
    def plan(self) -> Plan:
        """The first member's plan: channels, labels and the ranges seen in training."""
        return self.members[0].plan

    def predict(
        self,
        source: Source,
        *,
        probabilities: bool = False,
        nan: Literal["refuse", "zero"] = "refuse",
        case: str | None = None,
    ) -> Segmentation:
        """Segment one case.

        Args:
            source: a file, the files of its channels in order, or a `Volume`.
            probabilities: also return class probabilities on the input's grid.
            nan: ``"refuse"`` or ``"zero"`` voxels that are not finite.
            case: name used in errors.

        Raises:
            InputRefused: an unreadable file, the wrong number of channels or dimensions, NaN voxels.
        """
        seconds: dict[str, float] = {}
        with _timed(seconds, "read"):
            volume = _read(source, nan, case)
        total: Tensor | None = None
        for member in self.members:
            with _timed(seconds, "preprocess"):
                array, done = preprocess(volume, member.plan)
            with _timed(seconds, "network"):
                predicted = self.probabilities(member, torch.from_numpy(array))
            with _timed(seconds, "restore"):
                predicted = restore_probabilities(predicted, done)
                # Members may have other plans, hence other crops: they meet on the file's own grid.
                if len(self.members) > 1:
                    predicted = torch.from_numpy(restore_channels(predicted.numpy(), done))
                total = predicted if total is None else total + predicted
        assert total is not None
        with _timed(seconds, "restore"):
            mean = total / len(self.members)
            labels = self.members[0].target.decode(mean[None])[0].numpy()
            if len(self.members) == 1:
                labels = restore_labels(labels, done)
                mean = torch.from_numpy(restore_channels(mean.numpy(), done)) if probabilities else mean
        return Segmentation(labels, volume.geometry, self.plan.labels, mean.numpy() if probabilities else None, seconds)

    def probabilities(self, member: Member, array: Tensor) -> Tensor:
        """(C, *P) preprocessed image -> (K, *P) float32 probabilities of one member, averaged over mirrored copies."""
        axes = member.plan.mirror_axes if self.tta else ()
        flips = list(chain.from_iterable(combinations(axes, n) for n in range(len(axes) + 1)))
        total: Tensor | None = None
        for flip in flips:
            dims = [1 + axis for axis in flip]
            logits = sliding_window(
                member.network,
                array.flip(dims),
                member.plan.patch_size,
                self.profile,
                overlap=self.overlap,
                window_batch=self.window_batch,
            )
            predicted = member.target.activate(logits[None])[0].flip(dims)[_swapped_channels(member, flip)]
            total = predicted if total is None else total + predicted
        assert total is not None
        return total / len(flips)


def model_folders(folder: Path) -> list[Path]:
    """The folder itself if it holds a model, else its ``fold_*`` folders."""
    folds = sorted(path.parent for path in folder.glob("fold_*/model.json"))
    return folds if folds and not (folder / "model.json").exists() else [folder]


def load_member(folder: Path, profile: DeviceProfile) -> Member:
    """Rebuild a network from a model folder and put it on the device, in evaluation mode.

    Raises:
        UnreadableFile: the weights are not those of the model that the folder names.
    """
    state, description = load_model(folder)
    missing = [key for key in ("model", "plan", "target") if key not in description]
    if missing:
        raise UnreadableFile(f"model.json lacks {', '.join(missing)}", path=folder, fix="train or copy the model again")
    network = create_model(**description["model"])
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        problem = f"the weights are not those of model '{description['model']['name']}': {_first_lines(error)}"
        raise UnreadableFile(problem, path=folder, fix="use a folder that medseg train wrote") from error
    target = build_target(description["target"])
    return Member(profile.place(network.eval()), Plan.from_dict(description["plan"]), target)


def _first_lines(error: RuntimeError) -> str:
    lines = [line.strip() for line in str(error).splitlines()[1:3]]
    return " ".join(line if len(line) < 200 else line[:200] + "..." for line in lines)


def _check_same_target(members: Sequence[Member]) -> None:
    if len({str(member.target.to_dict()["labels"]) for member in members}) != 1:
        raise UsageError("the models of an ensemble must predict the same labels", fix="give models of one dataset")


def _swapped_channels(member: Member, flip: Sequence[int]) -> list[int]:
    """Channel order after mirroring: left and right classes change places on an axis that the plan says swaps them."""
    values = sorted(member.plan.labels.values())
    order = list(range(member.target.out_channels))
    for axis in flip:
        for left, right in member.plan.mirror_swaps.get(str(axis), ()):
            a, b = values.index(left), values.index(right)
            order[a], order[b] = order[b], order[a]
    return order


def _read(source: Source, nan: Literal["refuse", "zero"], case: str | None) -> Volume:
    if isinstance(source, Volume):
        return source
    paths = [source] if isinstance(source, str | Path) else list(source)
    return read_channels(paths, nan=nan, case=case)


@contextmanager
def _timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[step] = seconds.get(step, 0.0) + time.perf_counter() - start

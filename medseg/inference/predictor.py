"""Predictor: model folders in, segmentations of files out, in memory that grows with neither classes nor depth."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from medseg.data.dataset import Case
from medseg.data.plan import Plan
from medseg.data.preprocess import Preprocessed, preprocess, restore_points
from medseg.device import DeviceProfile, choose_profile
from medseg.errors import MedsegError, UsageError
from medseg.inference.guard import outside_training
from medseg.inference.inputs import Source, read_source, resolve_source, source_geometry
from medseg.inference.member import Member, load_member, model_folders
from medseg.inference.memory import MemoryNeed, PeakMeter, as_bytes, longest_axis, must_spill, predict_need
from medseg.inference.pipeline import PreparedCase, overlapped
from medseg.inference.postprocess import common_operations, postprocess
from medseg.inference.restore import restore_planes
from medseg.inference.segmentation import Segmentation
from medseg.inference.sliding_window import stream_planes
from medseg.inference.stopwatch import Stopwatch
from medseg.inference.uncertainty import MEASURES, check_measure
from medseg.inference.whole import locate
from medseg.io import Geometry, from_canonical
from medseg.targets import Target

logger = logging.getLogger(__name__)

BLOCK_BYTES = 16 * 2**20  # of probabilities that are decoded at a time


class Predictor:
    """Predicts files with one network or the mean of several.

    The windows of every member run along one axis, and what is final is resampled to the file's spacing, averaged and
    decoded a few planes at a time: never more than one window's depth of logits is in memory.

    Args:
        members: trained networks; they share the target.
        overlap: of the sliding window, 0 <= overlap < 1.
        tta: average the logits of every window over mirrored copies along the axes that the plan allows.
        window_batch: windows per network call.
        max_ram: bytes, or e.g. "8G", that the process may hold; None: what is free. A case whose logits do not fit
            keeps them in a temporary file, and one that does not fit even so is refused before anything is allocated.
        postprocess: apply the operations that are stored with the model (with every model of an ensemble).
        uncertainty: "entropy" or "mutual_information" adds a map of it, see `medseg.inference.uncertainty`.

    Example:
        >>> predictor = Predictor.from_pretrained("runs/phantom/unet/first")  # doctest: +SKIP
        >>> predictor.predict("case.nii.gz").save("case_seg.nii.gz")  # doctest: +SKIP
    """

    def __init__(
        self,
        members: Sequence[Member],
        *,
        overlap: float = 0.5,
        tta: bool = False,
        window_batch: int = 1,
        max_ram: int | str | None = None,
        postprocess: bool = True,
        uncertainty: str | None = None,
    ) -> None:
        if not 0 <= overlap < 1:
            raise UsageError(f"overlap is {overlap} (must be at least 0 and below 1)")
        _check_same_target(members)
        self.members, self.overlap, self.tta, self.window_batch = list(members), overlap, tta, window_batch
        self.max_ram = as_bytes(max_ram)
        self.uncertainty = check_measure(uncertainty, len(members))
        if self.uncertainty and not self.target.dense:
            raise UsageError(f"a model with target {self.target.name} has no uncertainty map")
        self.operations = common_operations([member.postprocessing for member in members]) if postprocess else []

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
        max_ram: int | str | None = None,
        postprocess: bool = True,
        uncertainty: str | None = None,
    ) -> Predictor:
        """Load model folders; a run of several folds, or several folders, become an ensemble. No code is executed.

        Raises:
            UnreadableFile, UnsafeArtefact, UsageError: as `medseg.io.load_model`, and for weights of another model.
        """
        profile = choose_profile(device, precision, threads=threads)
        given = [folder] if isinstance(folder, str | Path) else list(folder)
        members = [load_member(found, profile) for one in given for found in model_folders(Path(one))]
        return cls(
            members,
            overlap=overlap,
            tta=tta,
            window_batch=window_batch,
            max_ram=max_ram,
            postprocess=postprocess,
            uncertainty=uncertainty,
        )

    @property
    def plan(self) -> Plan:
        """The first member's plan: channels, labels and the ranges seen in training."""
        return self.members[0].plan

    @property
    def target(self) -> Target:
        """What the members' outputs mean: the first one's target."""
        return self.members[0].target

    @property
    def profile(self) -> DeviceProfile:
        """What the first member runs on."""
        return self.members[0].profile

    def predict(
        self,
        source: Source,
        *,
        spacing: Sequence[float] | None = None,
        probabilities: bool = False,
        nan: Literal["refuse", "zero"] = "refuse",
        case: str | None = None,
    ) -> Segmentation:
        """Segment one case.

        Args:
            source: a file, the files of its channels in order, a folder of DICOM slices, a `Case`, a `Volume`, or an
                array (*S) or (C, *S), whose axes run to the right, to the front and up (RAS+).
            spacing: voxel size of an array in mm, one number per spatial axis.
            probabilities: also return class probabilities on the input's grid, all of them in memory.
            nan: ``"refuse"`` or ``"zero"`` voxels that are not finite.
            case: name used in errors and in the log; a `Case` has one already.

        Raises:
            InputRefused: an unreadable file, the wrong number of channels or dimensions, NaN voxels.
            ResourceError: the case does not fit into memory.
        """
        meter = PeakMeter()
        prepared = self.prepare(source, spacing=spacing, probabilities=probabilities, nan=nan, case=case)
        segmentation = self.segment(prepared)
        segmentation.memory["measured"] = meter.peak()
        logger.info("memory: %s", segmentation.memory)
        return segmentation

    def predict_many(
        self,
        sources: Iterable[Source],
        *,
        spacing: Sequence[float] | None = None,
        probabilities: bool = False,
        nan: Literal["refuse", "zero"] = "refuse",
        errors: Literal["raise", "yield"] = "raise",
    ) -> Generator[Segmentation | MedsegError]:
        """Segment cases one after the other; the next one is read and preprocessed while the network works.

        At most one case is read ahead, and only while both fit into memory.

        Args:
            sources: as for `predict`; taken one by one, so that it may be a generator.
            spacing: of all arrays.
            probabilities: as for `predict`.
            nan: as for `predict`.
            errors: ``"yield"`` gives the error of a refused case in its place and goes on; ``"raise"`` ends there.

        Yields:
            Segmentations in the order of the sources; their ``memory["measured"]`` is None, as cases overlap.
        """
        prepare = partial(self.prepare, spacing=spacing, probabilities=probabilities, nan=nan)
        with closing(overlapped(prepare, self.segment, sources, self.max_ram)) as outcomes:
            for outcome in outcomes:
                if isinstance(outcome, MedsegError) and errors == "raise":
                    raise outcome
                yield outcome

    def prepare(
        self,
        source: Source,
        *,
        spacing: Sequence[float] | None = None,
        probabilities: bool = False,
        nan: Literal["refuse", "zero"] = "refuse",
        case: str | None = None,
        gate: Callable[[int], None] | None = None,
    ) -> PreparedCase:
        """The first half of `predict`: read a case and bring it to every member's grid.

        Args:
            source: and the other arguments, as for `predict`.
            gate: called with the bytes that the case will need, before anything is allocated; may wait.
        """
        clock = Stopwatch()
        if probabilities and not self.target.dense:
            raise UsageError(f"a model with target {self.target.name} has no probabilities")
        with clock("read"):
            case = source.id if isinstance(source, Case) else case
            resolved = resolve_source(source, spacing, case)
            need = self.memory_need(source_geometry(resolved, case), probabilities=probabilities)
            if gate is not None:
                with clock("wait"):
                    gate(need.total)
            spill = Path(tempfile.gettempdir()) if must_spill(need, self.max_ram) else None
            volume = read_source(resolved, nan, case)
        del source, resolved  # only the prepared arrays are needed in the end
        with clock("preprocess"):
            arrays = [preprocess(volume, member.plan) for member in self.members]
            warnings = outside_training(volume, arrays[0][1], self.plan)
        for warning in warnings:
            logger.warning("%s%s", f"case {case}: " if case else "", warning)
        return PreparedCase(volume.geometry, arrays, need, probabilities, spill, warnings, clock)

    def segment(self, case: PreparedCase) -> Segmentation:
        """The second half of `predict`: network, resampling to the file's grid, labels."""
        shares = doubt = landmarks = None
        with case.clock("restore"):
            if self.target.dense:
                labels, shares, doubt = self._segment(case.arrays, case.probabilities, case.spill, case.clock)
            else:
                labels, landmarks = self._locate(case.arrays, case.clock)
            labels = from_canonical(labels[None], case.geometry)[0]
            shares = None if shares is None else from_canonical(shares, case.geometry)
            doubt = None if doubt is None else from_canonical(doubt[None], case.geometry)[0]
        with case.clock("postprocess"):
            labels = postprocess(labels, self.operations, case.geometry.spacing)
        memory = {"predicted": case.need.total, "measured": None}
        logger.info("memory: predicted %s%s", case.need, ", spilled" if case.spill else "")
        return Segmentation(
            labels, case.geometry, self.plan.labels, shares, case.clock.seconds, memory, case.warnings, doubt, landmarks
        )

    def memory_need(self, geometry: Geometry, *, probabilities: bool = False) -> MemoryNeed:
        """What `predict` will need for an image of this grid, beside what the process holds already."""
        return predict_need(
            self.members,
            geometry,
            window_batch=self.window_batch,
            block_bytes=BLOCK_BYTES,
            probabilities=probabilities,
        )

    @torch.inference_mode()
    def _locate(
        self, prepared: Sequence[tuple[np.ndarray, Preprocessed]], clock: Stopwatch
    ) -> tuple[np.ndarray, np.ndarray]:
        """Labels (*S), and the landmarks (N, 2) that they are painted from: the mean over the members, in pixels."""
        found = []
        for member, (array, done) in zip(self.members, prepared, strict=True):
            run = clock.timed("network", partial(member.logits, mirror=self.tta))
            pixels = locate(run, member.target, torch.from_numpy(array), member.plan.patch_size)
            found.append(restore_points(pixels.numpy(), done))
        landmarks = np.stack(found).mean(axis=0)
        shape = prepared[0][1].canonical_shape
        labels = self.target.decode((torch.from_numpy(landmarks) / torch.tensor(shape[::-1]))[None], shape)[0]
        return labels.numpy(), landmarks

    @torch.inference_mode()
    def _segment(
        self,
        prepared: Sequence[tuple[np.ndarray, Preprocessed]],
        probabilities: bool,
        spill: Path | None,
        clock: Stopwatch,
    ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        """Labels (*S) and, if wanted, probabilities (K, *S) and uncertainty (*S), in canonical orientation."""
        target, (array, done) = self.members[0].target, prepared[0]
        axis = longest_axis(array.shape[1:], self.plan.patch_size)
        shape = done.canonical_shape
        rest = tuple(n for a, n in enumerate(shape) if a != axis)
        blocks = _blocks(shape[axis], 4 * target.out_channels * int(np.prod(rest)))
        labels: np.ndarray | None = None
        shares = np.empty((target.out_channels, *shape), np.float32) if probabilities else None
        doubt = np.empty(shape, np.float32) if self.uncertainty else None
        streams = [self._stream(*one, axis, blocks, spill, clock) for one in zip(self.members, prepared, strict=True)]
        for (start, stop), parts in zip(blocks, zip(*streams, strict=True), strict=True):
            mean = parts[0] if len(parts) == 1 else torch.stack(parts).mean(0)
            decoded = target.decode(mean).numpy()
            labels = np.zeros(shape, decoded.dtype) if labels is None else labels
            np.moveaxis(labels, axis, 0)[start:stop] = decoded
            if shares is not None:
                np.moveaxis(shares, 1 + axis, 0)[start:stop] = mean.numpy()
            if doubt is not None and self.uncertainty:
                np.moveaxis(doubt, axis, 0)[start:stop] = MEASURES[self.uncertainty](parts).numpy()
        assert labels is not None
        return labels, shares, doubt

    def _stream(
        self,
        member: Member,
        prepared: tuple[np.ndarray, Preprocessed],
        axis: int,
        blocks: Sequence[tuple[int, int]],
        spill: Path | None,
        clock: Stopwatch,
    ) -> Iterator[Tensor]:
        """Probabilities (n, K, *R) of one member for each block of planes of the whole image."""
        array, done = prepared
        crop, rest = done.bbox[axis], [box for a, box in enumerate(done.bbox) if a != axis]
        whole = tuple(n for a, n in enumerate(done.canonical_shape) if a != axis)
        parts = [(max(a, crop[0]) - crop[0], min(b, crop[1]) - crop[0]) for a, b in blocks]
        logits = stream_planes(
            clock.timed("network", partial(member.logits, mirror=self.tta)),
            torch.from_numpy(array),
            member.plan.patch_size,
            axis=axis,
            overlap=self.overlap,
            window_batch=self.window_batch,
            most=max(1, BLOCK_BYTES // (4 * member.target.out_channels * int(np.prod(whole)))),
            spill=spill,
        )
        shape = (done.cropped_shape[axis], *(b - a for a, b in rest))
        restored = restore_planes(
            map(member.target.activate, logits), array.shape[1 + axis], shape, [(a, b) for a, b in parts if a < b]
        )
        for (start, stop), (a, b) in zip(blocks, parts, strict=True):
            if (b - a, *shape[1:]) == (stop - start, *whole):
                yield next(restored)
                continue
            # Outside the crop no class is probable, so the background is decoded there.
            full = torch.zeros(stop - start, member.target.out_channels, *whole)
            if a < b:
                inner = slice(a + crop[0] - start, b + crop[0] - start)
                full[(inner, slice(None), *(slice(*box) for box in rest))] = next(restored)
            yield full


def _blocks(count: int, plane_bytes: int) -> list[tuple[int, int]]:
    height = max(1, BLOCK_BYTES // plane_bytes)
    return [(start, min(start + height, count)) for start in range(0, count, height)]


def _check_same_target(members: Sequence[Member]) -> None:
    if len({str(member.target.to_dict()["labels"]) for member in members}) != 1:
        raise UsageError("the models of an ensemble must predict the same labels", fix="give models of one dataset")

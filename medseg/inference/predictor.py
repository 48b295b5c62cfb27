"""Predictor: model folders in, segmentations of files out, in memory that grows with neither classes nor depth."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial, reduce
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from medseg.data.dataset import Case
from medseg.data.plan import Plan
from medseg.data.preprocess import preprocess, restore_points
from medseg.device import DeviceProfile, choose_profile
from medseg.errors import MedsegError, UsageError
from medseg.inference.dropout import thinned_members
from medseg.inference.fallback import WindowRunner
from medseg.inference.guard import outside_training
from medseg.inference.inputs import (
    Mask,
    Source,
    read_mask,
    read_source,
    resolve_source,
    source_geometry,
)
from medseg.inference.member import Member, load_member, model_folders
from medseg.inference.memory import MemoryNeed, PeakMeter, as_bytes, longest_axis, must_spill, predict_need
from medseg.inference.pipeline import PreparedCase, overlapped
from medseg.inference.postprocess import common_operations, postprocess
from medseg.inference.segmentation import Segmentation
from medseg.inference.stopwatch import Stopwatch
from medseg.inference.streams import (
    BLOCK_BYTES,
    Streaming,
    check_scales,
    decoded_blocks,
    probability_planes,
    scaled_images,
)
from medseg.inference.uncertainty import MEASURES, check_measure
from medseg.inference.vram import device_need, fitting_window_batch
from medseg.inference.whole import locate
from medseg.io import Geometry, Volume, from_canonical
from medseg.targets import Target, build_target

logger = logging.getLogger(__name__)

MEANING = ("name", "labels", "binary", "regions", "class_order", "structures", "values", "edges")  # of what is averaged
Maps = tuple[np.ndarray, np.ndarray | None, np.ndarray | None]


class Predictor:
    """Predicts files with one network or the mean of several.

    The windows of every member run along one axis, and what is final is resampled to the file's spacing, averaged and
    decoded a few planes at a time: never more than one window's depth of logits is in memory.

    Args:
        members: trained networks; they share the target.
        overlap: of the sliding window, 0 <= overlap < 1.
        tta: average the logits of every window over mirrored copies along the axes that the plan allows.
        tta_scales: average the logits of the image resampled by these factors, e.g. ``(1.0, 1.25)``; each from 0.25
            to 4. All scales run at once, so memory stays bounded.
        mc_dropout: passes of every member with dropout active, see `medseg.inference.dropout`; their mean is decoded.
            0: one pass without dropout.
        window_batch: windows per network call, at most; None: what ``max_vram`` allows, up to 16, else 1.
        skip_empty: of the windows that hold one and the same value everywhere (air), the network sees one only.
        max_vram: bytes, or e.g. "8G", that weights and windows may take on an accelerator, told before anything runs;
            None: not limited. Where a device's memory does not suffice all the same, a case goes on with fewer windows
            per call, then on the CPU.
        max_ram: bytes, or e.g. "8G", that the process may hold; None: what is free. A case whose logits do not fit
            keeps them in a temporary file, and one that does not fit even so is refused before anything is allocated.
        postprocess: apply the operations that are stored with the model (with every model of an ensemble), none
            (False), or those of a list, see `medseg.inference.postprocess`.
        uncertainty: "entropy" or "mutual_information" adds a map of it, see `medseg.inference.uncertainty`.
        threshold: of the probability of a binary target's foreground; None: the target's own, 0.5 if not set.

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
        tta_scales: Sequence[float] = (1.0,),
        mc_dropout: int = 0,
        window_batch: int | None = None,
        skip_empty: bool = False,
        max_ram: int | str | None = None,
        max_vram: int | str | None = None,
        postprocess: bool | Sequence[Mapping[str, Any]] = True,
        uncertainty: str | None = None,
        threshold: float | None = None,
    ) -> None:
        if not 0 <= overlap < 1:
            raise UsageError(f"overlap is {overlap} (must be at least 0 and below 1)")
        if not isinstance(mc_dropout, int) or mc_dropout < 0:
            raise UsageError(f"mc_dropout is {mc_dropout} (must be a number of passes, 0 for none)")
        _check_same_target(members)
        self.members, self.overlap, self.tta, self.skip_empty = list(members), overlap, tta, skip_empty
        self.tta_scales = check_scales(tta_scales)
        self.passes = [thinned_members(member, mc_dropout) for member in members]
        self.window_batch = fitting_window_batch(members, window_batch, as_bytes(max_vram))
        self.max_ram = as_bytes(max_ram)
        self.uncertainty = check_measure(uncertainty, sum(map(len, self.passes)))
        own = common_operations([member.postprocessing for member in members]) if postprocess is True else []
        self.operations = own if isinstance(postprocess, bool) else [dict(operation) for operation in postprocess]
        self.target = _with_threshold(members[0].target, threshold)
        if self.uncertainty and not self.target.dense:
            raise UsageError(f"a model with target {self.target.name} has no uncertainty map")

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path | Sequence[str | Path],
        *,
        adapter: str | Path | None = None,
        device: str = "auto",
        precision: str = "auto",
        threads: int | None = None,
        overlap: float = 0.5,
        tta: bool = False,
        tta_scales: Sequence[float] = (1.0,),
        mc_dropout: int = 0,
        window_batch: int | None = None,
        skip_empty: bool = False,
        max_ram: int | str | None = None,
        max_vram: int | str | None = None,
        postprocess: bool | Sequence[Mapping[str, Any]] = True,
        uncertainty: str | None = None,
        threshold: float | None = None,
    ) -> Predictor:
        """Load model folders; a run of several folds, or several folders, become an ensemble. No code is executed.

        With `adapter`, what ``medseg adapt`` made of the model is put on top; an adapter's folder names its model.

        Raises:
            UnreadableFile, UnsafeArtefact, UsageError: as `medseg.io.load_model`, and for weights or an adapter of
                another model.
        """
        profile = choose_profile(device, precision, threads=threads)
        given = [folder] if isinstance(folder, str | Path) else list(folder)
        members = [load_member(found, profile, adapter) for one in given for found in model_folders(Path(one))]
        return cls(
            members,
            overlap=overlap,
            tta=tta,
            tta_scales=tta_scales,
            mc_dropout=mc_dropout,
            window_batch=window_batch,
            skip_empty=skip_empty,
            max_ram=max_ram,
            max_vram=max_vram,
            postprocess=postprocess,
            uncertainty=uncertainty,
            threshold=threshold,
        )

    @property
    def plan(self) -> Plan:
        """The first member's plan: channels, labels and the ranges seen in training."""
        return self.members[0].plan

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
        mask: Mask | None = None,
        case: str | None = None,
    ) -> Segmentation:
        """Segment one case.

        Args:
            source: a file, the files of its channels in order, a folder of DICOM slices, a `Case`, a `Volume`, an
                image of nibabel or SimpleITK, or an array (*S) or (C, *S), whose axes run to the right, to the front
                and up (RAS+).
            spacing: voxel size of an array in mm, one number per spatial axis.
            probabilities: also return class probabilities on the input's grid, all of them in memory.
            nan: ``"refuse"`` or ``"zero"`` voxels that are not finite.
            mask: where there can be anything: a file or an array (*S) in the image's grid, or a folder with a file
                for each case. Outside of it is background; inside, the result is what it is without a mask; windows
                that do not touch it are not computed. Landmarks stay where they are; what they fill is cut.
            case: name used in errors and in the log; a `Case` has one already.

        Raises:
            InputRefused: an unreadable file, the wrong number of channels or dimensions, NaN voxels; a network that
                answers with numbers that are not finite.
            UsageError: a source of another kind, e.g. a tensor.
            ResourceError: the case does not fit into memory.
        """
        meter = PeakMeter()
        prepared = self.prepare(source, spacing=spacing, probabilities=probabilities, nan=nan, mask=mask, case=case)
        return self._measured(prepared, meter)

    def predict_many(
        self,
        sources: Iterable[Source],
        *,
        spacing: Sequence[float] | None = None,
        probabilities: bool = False,
        nan: Literal["refuse", "zero"] = "refuse",
        mask: Mask | None = None,
        errors: Literal["raise", "yield"] = "raise",
    ) -> Generator[Segmentation | MedsegError]:
        """Segment cases one after the other; the next one is read and preprocessed while the network works.

        At most one case is read ahead, and only while both fit into memory.

        Args:
            sources: as for `predict`; taken one by one, so that it may be a generator.
            spacing: of all arrays.
            probabilities: as for `predict`.
            nan: as for `predict`.
            mask: as for `predict`.
            errors: ``"yield"`` gives the error of a refused case in its place and goes on; ``"raise"`` ends there.

        Yields:
            Segmentations in the order of the sources; ``memory["measured"]`` is the process's peak while the case was
            in work, above what it held before the first, with ``memory["beside"]`` predicted for the next one's image.
        """
        prepare = partial(self.prepare, spacing=spacing, probabilities=probabilities, nan=nan, mask=mask)
        start = PeakMeter().start

        def segment(case: PreparedCase) -> Segmentation:
            return self._measured(case, PeakMeter(start))

        with closing(overlapped(prepare, segment, sources, self.max_ram)) as outcomes:
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
        mask: Mask | None = None,
        case: str | None = None,
        gate: Callable[[MemoryNeed], None] | None = None,
    ) -> PreparedCase:
        """The first half of `predict`: read a case and bring it to every member's grid.

        Args:
            source: and the other arguments, as for `predict`.
            gate: called with what the case will need, before anything is allocated; may wait.
        """
        clock = Stopwatch()
        if probabilities and not self.target.dense:
            raise UsageError(f"a model with target {self.target.name} has no probabilities")
        with clock("read"):
            case = source.id if isinstance(source, Case) else case
            resolved = resolve_source(source, spacing, case)
            geometry = source_geometry(resolved, case)
            need = self.memory_need(geometry, probabilities=probabilities, mask=mask is not None)
            if gate is not None:
                with clock("wait"):
                    gate(need)
            spill = Path(tempfile.gettempdir()) if must_spill(need, self.max_ram) else None
            volume = read_source(resolved, nan, case)
            inside = None if mask is None else read_mask(mask, volume.geometry, case)
            sources = () if isinstance(resolved, Volume) else tuple(path.absolute() for path in resolved)
        del source, resolved  # only the prepared arrays are needed in the end
        with clock("preprocess"):
            arrays = [preprocess(volume, member.plan) for member in self.members]
            warnings = outside_training(volume, arrays[0][1], self.plan)
        for warning in warnings:
            logger.warning("%s%s", f"case {case}: " if case else "", warning)
        return PreparedCase(volume.geometry, arrays, need, probabilities, spill, warnings, clock, inside, sources)

    def segment(self, case: PreparedCase) -> Segmentation:
        """The second half of `predict`: network, resampling to the file's grid, labels."""
        runner = WindowRunner(self.window_batch, self.max_ram)
        shares = doubt = landmarks = None
        with case.clock("restore"):
            if self.target.dense:
                labels, shares, doubt = self._segment(case, runner)
            else:
                labels, landmarks = self._locate(case, runner)
            labels = from_canonical(labels[None], case.geometry)[0]
            shares = None if shares is None else from_canonical(shares, case.geometry)
            doubt = None if doubt is None else from_canonical(doubt[None], case.geometry)[0]
        with case.clock("postprocess"):
            labels = postprocess(labels, self.operations, case.geometry.spacing)
        memory = {
            "predicted": case.need.total,
            "beside": 0,
            "measured": None,
            "error": None,
            "device_predicted": device_need(self.members, self.window_batch),
            "window_batch": runner.window_batch,
            "fallbacks": runner.steps,
        }
        logger.info("memory: predicted %s%s", case.need, ", spilled" if case.spill else "")
        return Segmentation(
            labels,
            case.geometry,
            self.plan.labels,
            shares,
            case.clock.seconds,
            memory,
            case.warnings,
            doubt,
            landmarks,
            self.target.channels,
            case.sources,
        )

    def _measured(self, case: PreparedCase, meter: PeakMeter) -> Segmentation:
        """`segment`, and how far the memory was from what was predicted."""
        segmentation = self.segment(case)
        memory, measured = segmentation.memory, meter.peak()
        memory["measured"], memory["beside"] = measured, sum(case.beside)
        if measured is not None:
            memory["error"] = round(measured / (memory["predicted"] + memory["beside"]) - 1, 3)
        logger.info("memory: %s", memory)
        return segmentation

    def memory_need(self, geometry: Geometry, *, probabilities: bool = False, mask: bool = False) -> MemoryNeed:
        """What `predict` will need for an image of this grid, beside what the process holds already."""
        return predict_need(
            self.members,
            geometry,
            window_batch=self.window_batch,
            block_bytes=BLOCK_BYTES,
            probabilities=probabilities,
            passes=len(self.passes[0]),
            scales=self.tta_scales,
            skip_empty=self.skip_empty,
            mask=mask,
        )

    @torch.inference_mode()
    def _locate(self, case: PreparedCase, runner: WindowRunner) -> tuple[np.ndarray, np.ndarray]:
        """Labels (*S), and the landmarks (N, 2) that they are painted from: the mean over the members, in pixels."""
        found = []
        for member, (array, done) in zip(self.members, case.arrays, strict=True):
            network = case.clock.timed("network", partial(runner.logits, member))
            pixels = locate(network, member.target, torch.from_numpy(array), member.plan.patch_size)
            found.append(restore_points(pixels.numpy(), done))
        landmarks = np.stack(found).mean(axis=0)
        shape = case.arrays[0][1].canonical_shape
        labels = self.target.decode((torch.from_numpy(landmarks) / torch.tensor(shape[::-1]))[None], shape)[0]
        inside = labels.numpy() if case.mask is None else labels.numpy() * case.mask
        return inside, landmarks

    @torch.inference_mode()
    def _segment(self, case: PreparedCase, runner: WindowRunner) -> Maps:
        """Labels (*S) and, if wanted, probabilities (P, *S) and uncertainty (*S), in canonical orientation."""
        target, (array, done) = self.target, case.arrays[0]
        axis = longest_axis(array.shape[1:], self.plan.patch_size)
        shape = done.canonical_shape
        blocks = decoded_blocks(shape[axis], 4 * target.probability_channels * prod(shape) // shape[axis])
        labels: np.ndarray | None = None
        shares = np.empty((target.probability_channels, *shape), np.float32) if case.probabilities else None
        doubt = np.empty(shape, np.float32) if self.uncertainty else None
        inside = None if case.mask is None else torch.from_numpy(np.moveaxis(case.mask, axis, 0))
        streams = self._streams(case, runner, axis, blocks)
        for start, stop in blocks:
            parts = [next(stream) for stream in streams]
            unsure = MEASURES[self.uncertainty](parts, target.entropy) if self.uncertainty else None
            mean = reduce(Tensor.add_, parts).div_(len(parts))
            if inside is not None:  # outside of the mask no class is probable, which every target decodes as background
                mean = mean * inside[start:stop, None]
                unsure = None if unsure is None else unsure * inside[start:stop]
            decoded = target.decode(mean).numpy()
            labels = np.zeros(shape, decoded.dtype) if labels is None else labels
            np.moveaxis(labels, axis, 0)[start:stop] = decoded
            if shares is not None:
                np.moveaxis(shares, 1 + axis, 0)[start:stop] = mean.numpy()
            if doubt is not None and unsure is not None:
                np.moveaxis(doubt, axis, 0)[start:stop] = unsure.numpy()
            del parts, mean, unsure  # before the streams make the next
        assert labels is not None
        return labels, shares, doubt

    def _streams(
        self, case: PreparedCase, runner: WindowRunner, axis: int, blocks: Sequence[tuple[int, int]]
    ) -> list[Iterator[Tensor]]:
        """Probabilities of every pass of every member, block after block."""
        how = Streaming(axis, self.overlap, self.window_batch, self.skip_empty, case.spill)
        streams = []
        for member, passes, (array, done) in zip(self.members, self.passes, case.arrays, strict=True):
            with case.clock("preprocess"):
                images = scaled_images(array, done, self.tta_scales, case.mask)
            for one in passes:
                network = case.clock.timed("network", partial(runner.logits, one, mirror=self.tta))
                patch_size = member.plan.patch_size
                streams.append(probability_planes(network, one.target, patch_size, images, done, blocks, how))
        return streams


def _with_threshold(target: Target, threshold: float | None) -> Target:
    if threshold is None:
        return target
    settings = target.to_dict()
    if not settings.get("binary"):
        raise UsageError(f"threshold={threshold} is for a binary target", fix="leave it out: the likeliest class wins")
    return build_target({**settings, "threshold": threshold})


def _check_same_target(members: Sequence[Member]) -> None:
    meanings = {str([member.target.to_dict().get(key) for key in MEANING]) for member in members}
    if len(meanings) != 1:
        fix = "give models of one dataset and one kind of target"
        raise UsageError("the models of an ensemble must predict the same labels in the same way", fix=fix)

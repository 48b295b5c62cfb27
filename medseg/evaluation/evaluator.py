"""The evaluator: folders of label maps in, a report out."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from medseg.errors import MedsegError, ResourceError, UsageError, nearest
from medseg.evaluation.arrays import Labels, Tolerance, as_classes, as_tolerances, build_metrics, checked_surface
from medseg.evaluation.boundary import Surface
from medseg.evaluation.case import CaseResult, Resample, Settings, evaluate_case
from medseg.evaluation.folders import CaseFiles
from medseg.evaluation.overlap import COUNTS
from medseg.evaluation.report import Report, Skipped

OnError = Literal["stop", "skip"]
EVALUATED = (
    "dice",
    "iou",
    "precision",
    "recall",
    "hausdorff_distance_95",
    "assd",
    "nsd",
    "volume_ml",
    "reference_volume_ml",
)
SMALL_JOB_BYTES = 4 * 2**20  # below it, starting worker processes takes longer than the work


@dataclass(frozen=True)
class Evaluator:
    """Scores cases and gathers them in a report.

    Args:
        labels: as for `evaluate_arrays`.
        metrics: names from `METRICS`; voxel counts are added always.
        tolerance: mm, one number or one for each class.
        surface: definition of the boundary, "surfel" or "voxel".
        ignore_label: reference value whose voxels are not counted.
        known: further values that label maps may hold without being evaluated; anything else is refused.
        empty: what empty masks score, see `medseg.evaluation.metrics.empty_rule`.
        resample: "nearest" brings a prediction on another grid onto the reference's; None refuses it.
        relabel: label value of a prediction -> the value that it is taken for, for tools with other labels.
        relabel_references: likewise of a reference.
        pixel_size: mm of a pixel of pictures (png, jpg, tif, bmp), which do not say it; None: distances are in pixels.
        on_error: "stop" at the first case that is refused, or "skip" it and list it in the report.
        workers: processes; None decides by the size of the job.
        progress: show a bar on stderr.

    Raises:
        UsageError: a setting that is not known.
    """

    labels: Labels
    metrics: Sequence[str] = EVALUATED
    tolerance: Tolerance = 1.0
    surface: Surface = "surfel"
    ignore_label: int | None = None
    known: frozenset[int] = frozenset()
    empty: Mapping[str, Any] | None = None
    resample: Resample | None = None
    relabel: Mapping[int, int] = field(default_factory=dict)
    relabel_references: Mapping[int, int] = field(default_factory=dict)
    pixel_size: float | None = None
    on_error: OnError = "stop"
    workers: int | None = None
    progress: bool = True
    settings: Settings = field(init=False, repr=False)

    def __post_init__(self) -> None:
        _check_choice("on_error", self.on_error, ("stop", "skip"))
        if self.resample is not None:
            _check_choice("resample", self.resample, ("nearest",))
        if self.pixel_size is not None and not 0 < float(self.pixel_size) < float("inf"):
            raise UsageError(f"pixel_size is {self.pixel_size} (expected mm above 0)")
        object.__setattr__(self, "settings", self._settings())

    def evaluate(self, cases: Sequence[CaseFiles], *, extra: Sequence[Path] = ()) -> Report:
        """Score every case.

        Args:
            cases: as `pair_folders` finds them; a case without prediction gets the worst value of every metric.
            extra: predictions without reference, to be named in the report.

        Raises:
            InputRefused: the first case that cannot be evaluated, with ``on_error="stop"``; or all of them.
        """
        results: list[CaseResult] = []
        skipped: list[Skipped] = []
        for case, outcome in zip(cases, self._outcomes(cases), strict=True):
            if isinstance(outcome, CaseResult):
                results.append(outcome)
            elif self.on_error == "stop":
                raise outcome
            else:
                skipped.append(Skipped(case.id, outcome.problem))
                last = outcome
        if not results:
            raise last if skipped else UsageError("there is no case to evaluate")
        return Report(self.settings, tuple(results), tuple(skipped), tuple(extra))

    def _outcomes(self, cases: Sequence[CaseFiles]) -> Iterator[CaseResult | MedsegError]:
        from joblib import Parallel, delayed
        from joblib.externals.loky.process_executor import TerminatedWorkerError
        from rich.console import Console
        from rich.progress import track

        parallel = Parallel(n_jobs=self._choose_workers(cases), return_as="generator")
        outcomes = parallel(delayed(_guarded)(case, self.settings) for case in cases)
        console = Console(stderr=True)
        try:
            yield from track(outcomes, "Evaluating", len(cases), console=console, disable=not self.progress)
        except TerminatedWorkerError as error:
            problem = "a worker process died (killed, out of memory, or a crash in a library)"
            raise ResourceError(problem, fix="free memory or set workers=1") from error

    def _choose_workers(self, cases: Sequence[CaseFiles]) -> int:
        if self.workers is not None:
            return max(1, self.workers)
        if sum(case.reference.stat().st_size for case in cases if case.reference.exists()) < SMALL_JOB_BYTES:
            return 1
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(cores, len(cases))

    def _settings(self) -> Settings:
        classes = {str(key): values for key, values in as_classes(self.labels).items()}
        tolerance = self.tolerance
        if isinstance(tolerance, Mapping):
            tolerance = {str(key): value for key, value in tolerance.items()}
        values = {value for group in classes.values() for value in group}
        ignored = {self.ignore_label} if self.ignore_label is not None else set()
        return Settings(
            classes=classes,
            metrics=build_metrics(tuple(dict.fromkeys((*self.metrics, *COUNTS))), self.empty),
            tolerances=as_tolerances(tolerance, classes),
            surface=checked_surface(self.surface),
            ignore_label=self.ignore_label,
            known=frozenset({0, *values, *self.known, *ignored}),
            resample=self.resample,
            relabel=as_relabelling(self.relabel),
            relabel_references=as_relabelling(self.relabel_references),
            pixel_size=None if self.pixel_size is None else float(self.pixel_size),
        )


def as_relabelling(values: Mapping[Any, Any]) -> dict[int, int]:
    """Old -> new label value, from numbers or text. Raises UsageError for anything else."""
    try:
        found = {int(old): int(new) for old, new in values.items()}
    except (AttributeError, TypeError, ValueError):
        found = {-1: -1}
    if any(value < 0 for pair in found.items() for value in pair):
        raise UsageError(f"relabel is {values!r} (expected label values >= 0, as {{3: 1}})")
    return found


def _guarded(case: CaseFiles, settings: Settings) -> CaseResult | MedsegError:
    """Errors of the data become values, so that one case does not take the others with it."""
    try:
        return evaluate_case(case, settings)
    except MedsegError as error:
        error.case = error.case or case.id
        return error


def _check_choice(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise UsageError(f"unknown {name} '{value}': {nearest(str(value), known)}")

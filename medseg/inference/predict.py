"""`medseg predict`: a file, a folder, a dataset, a table or DICOM slices in, a folder of segmentations out."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Literal

from medseg.data.dataset import Case
from medseg.data.landmark_files import LAYOUT
from medseg.data.outputs import check_outputs, keep_account, plain_path
from medseg.data.own_split import matching
from medseg.errors import MedsegError, PartialFailure
from medseg.inference.inputs import find_cases, take_shard
from medseg.inference.prediction_files import check_prediction_files, output_files, refuse_one_name
from medseg.inference.predictor import Predictor
from medseg.inference.record import Record, record_path
from medseg.inference.segmentation import Segmentation
from medseg.io import require_dicom_seg, require_writable, write_json
from medseg.termination import Terminated, interrupted

Outcome = Segmentation | MedsegError


def predict_cases(
    predictor: Predictor,
    cases: Sequence[Case],
    output: str | Path,
    *,
    overwrite: bool = True,
    probabilities: bool = False,
    dicom_seg: bool = False,
    nan: Literal["refuse", "zero"] = "refuse",
    mask: str | Path | None = None,
    progress: bool = True,
    record: Record | None = None,
) -> list[Path]:
    """Predict cases into ``output/<case id><ending of its image>``, ``.nii.gz`` for DICOM slices.

    The next case is read and the last one written while the network works; see `Predictor.predict_many`.

    Args:
        predictor: what predicts.
        cases: what to predict.
        output: folder, created if needed.
        overwrite: False skips cases whose files are all there already.
        probabilities: write ``<case id>_probabilities.nii.gz`` too.
        dicom_seg: write ``<case id>.dcm`` too, a DICOM-SEG, for cases of DICOM slices.
        nan: ``"refuse"`` or ``"zero"``.
        mask: a file, or a folder with a file for each case, see `Predictor.predict`.
        progress: show a progress bar on stderr.
        record: takes down files, seconds, warnings and errors. With one that has a file, as ``medseg predict`` gives
            it, nothing is replaced but what medseg wrote; without, nothing but inputs is spared.

    Returns:
        The segmentation files, in the order of the cases.

    Raises:
        UsageError: an output would cost the user something, see `medseg.data.outputs`; two cases have one name; or a
            file there was made from other images of the same name.
        InputRefused: with ``dicom_seg``, a class that a DICOM-SEG cannot name.
        PartialFailure: some cases failed; each is named with its reason, the others are written.
        MedsegError: the error of the only case, or of the first if all failed.
    """
    record = Record() if record is None else record
    output = plain_path(output)
    files = [
        output_files(
            case,
            output,
            probabilities=probabilities,
            dicom_seg=dicom_seg,
            uncertainty=predictor.uncertainty,
            landmarks=not predictor.target.dense,
            highest=max(predictor.plan.labels.values()),
        )
        for case in cases
    ]
    if any("dicom_seg" in paths for paths in files):
        require_dicom_seg(predictor.plan.labels)
    todo = [
        (case, paths)
        for case, paths in zip(cases, files, strict=True)
        if overwrite or not all(map(os.path.exists, paths.values()))
    ]
    refuse_one_name(cases, files, output)
    for case, paths in zip(cases, files, strict=True):
        record.refuse_other_images(case.id, case.images, paths["path"])
    names = [path.name for _, paths in todo for path in paths.values()]
    names += [LAYOUT] if predictor.target.layout is not None else []
    names += [record.path.name] if record.path is not None else []
    check_prediction_files(names, output, cases, mask, ours_only=record.path is not None)
    require_writable(output)
    if record.path is not None:
        keep_account(output, names)
    if predictor.target.layout is not None:
        write_json(output / LAYOUT, predictor.target.layout)
    record.todo = len(todo)
    outcomes = predictor.predict_many(
        (case for case, _ in todo), probabilities=probabilities, nan=nan, mask=mask, errors="yield"
    )
    # Closed at once if anything is raised here, else its reader would wait for a turn that never comes.
    with closing(outcomes), _bar(len(todo), progress) as bar, ThreadPoolExecutor(1, "medseg-write") as writer:
        writing: Future[None] | None = None
        jobs = iter(todo)
        for outcome in outcomes:  # zip would hold on to each while the next is made
            case, paths = next(jobs)
            if writing is not None:
                writing.result()
            writing = writer.submit(_settle, case, paths, outcome, record)
            del outcome
            if probabilities:  # too much to hold beside the next case
                writing.result()
            bar.advance(bar.task_ids[0])
        if writing is not None:
            writing.result()
    if record.errors:
        raise _summary(record.errors, len(todo), output)
    return [paths["path"] for paths in files]


def _settle(case: Case, files: Mapping[str, Path], outcome: Outcome, record: Record) -> None:
    """Write a segmentation and take down what became of the case."""
    if isinstance(outcome, Segmentation):
        try:
            outcome.save(**files)
        except MedsegError as error:
            outcome = error
    if isinstance(outcome, MedsegError):
        outcome.case = outcome.case or case.id
        outcome.args = (str(outcome),)
    record.add(case.id, case.images, files["path"], outcome)


def _bar(total: int, progress: bool) -> Any:
    from rich.console import Console
    from rich.progress import Progress

    bar = Progress(console=Console(stderr=True), disable=not progress)
    bar.add_task("predict", total=total)
    return bar


def _summary(failed: Mapping[str, MedsegError], count: int, output: Path) -> MedsegError:
    first = next(iter(failed.values()))
    if len(failed) == count:
        return first
    reasons = "; ".join(f"{case}: {error.problem}" for case, error in failed.items())
    written = f"The other {count - len(failed)} are in {output}."
    fix = "repair them and run again with overwrite=false"
    return PartialFailure(f"{len(failed)} of {count} cases failed: {reasons}", fix=fix, written=written)


def predict_folder(cfg: Mapping[str, Any]) -> int:
    """Run ``medseg predict`` from its config (``model``, ``input``, ``output``, ... see configs/predict.yaml)."""
    models = [cfg["model"]] if isinstance(cfg["model"], str) else list(cfg["model"])
    place = record_path(plain_path(cfg["output"]), cfg["shard"])
    source = plain_path(cfg["input"])
    read = (source, source.parent if os.path.isfile(source) else None, *models, cfg["adapter"], cfg["mask"])
    output = check_outputs(cfg["output"], [place.name], read)  # before the model is loaded
    predictor = Predictor.from_pretrained(
        models,
        adapter=cfg["adapter"],
        device=cfg["device"],
        precision=cfg["precision"],
        threads=cfg["threads"],
        overlap=cfg["overlap"],
        tta=cfg["tta"],
        tta_scales=cfg["tta_scales"],
        mc_dropout=cfg["mc_dropout"],
        window_batch=cfg["window_batch"],
        skip_empty=cfg["skip_empty"],
        max_ram=cfg["max_ram"],
        max_vram=cfg["max_vram"],
        postprocess=cfg["postprocess"],
        uncertainty=cfg["uncertainty"],
        threshold=cfg["threshold"],
    )
    cases = find_cases(cfg["input"], len(predictor.plan.channel_names))
    cases = take_shard(matching(cases, cfg["cases"]) if cfg.get("cases") else cases, cfg["shard"])
    print(f"medseg: predicting {len(cases)} case(s) on {predictor.profile}")
    record = Record(place)
    with kept_and_told(record, output):
        try:
            paths = predict_cases(
                predictor,
                cases,
                output,
                overwrite=cfg["overwrite"],
                probabilities=cfg["probabilities"],
                dicom_seg=cfg["dicom_seg"],
                nan=cfg["nan"],
                mask=cfg["mask"],
                record=record,
            )
        finally:
            if cfg["verbose"]:
                record.print()
    print(f"medseg: {len(paths)} segmentation(s) in {output}")
    return 0


@contextmanager
def kept_and_told(record: Record, output: Path) -> Iterator[None]:
    """Save the record however the predicting ends, and say at SIGTERM or Ctrl-C what is done.

    Raises:
        Interrupted: with the number of cases that are written.
    """
    try:
        yield
    except (Terminated, KeyboardInterrupt) as stop:
        problem = f"stopped after {record.done} of {record.todo} cases"
        written = f"The segmentations of {record.done} are in {output}, whole." if record.done else ""
        fix = "run it again with overwrite=false, which skips the cases that are there"
        raise interrupted(stop, problem, fix=fix, written=written) from None
    finally:
        record.save()

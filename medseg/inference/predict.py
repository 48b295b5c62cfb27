"""`medseg predict`: a file, a folder, a dataset, a table or DICOM slices in, a folder of segmentations out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

from medseg.data.dataset import Case
from medseg.data.landmark_files import LAYOUT
from medseg.data.own_split import matching
from medseg.errors import MedsegError, PartialFailure
from medseg.inference.inputs import find_cases, take_shard
from medseg.inference.predictor import Predictor
from medseg.inference.record import Record, record_path
from medseg.inference.segmentation import Segmentation
from medseg.io import (
    KNOWN_ENDINGS,
    file_ending,
    holds_dicom,
    label_ending,
    require_dicom_seg,
    require_writable,
    write_json,
)

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
        record: takes down files, seconds, warnings and errors.

    Returns:
        The segmentation files, in the order of the cases.

    Raises:
        InputRefused: with ``dicom_seg``, a class that a DICOM-SEG cannot name.
        PartialFailure: some cases failed; each is named with its reason, the others are written.
        MedsegError: the error of the only case, or of the first if all failed.
    """
    require_writable(output)
    record = Record() if record is None else record
    doubt = predictor.uncertainty
    files = [
        output_files(
            case,
            Path(output),
            probabilities=probabilities,
            dicom_seg=dicom_seg,
            uncertainty=doubt,
            landmarks=not predictor.target.dense,
            highest=max(predictor.plan.labels.values()),
        )
        for case in cases
    ]
    if any("dicom_seg" in paths for paths in files):
        require_dicom_seg(predictor.plan.labels)
    if predictor.target.layout is not None:
        write_json(Path(output) / LAYOUT, predictor.target.layout)
    todo = [
        (case, paths)
        for case, paths in zip(cases, files, strict=True)
        if overwrite or not all(path.exists() for path in paths.values())
    ]
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
        raise _summary(record.errors, len(todo), Path(output))
    return [paths["path"] for paths in files]


def output_files(
    case: Case,
    folder: Path,
    *,
    probabilities: bool,
    dicom_seg: bool,
    uncertainty: str | None = None,
    landmarks: bool = False,
    highest: int = 0,
) -> dict[str, Path]:
    """The files of a case, by the arguments of `Segmentation.save` that name them; `highest` is of the label values."""
    image = case.images[0]
    known = image.name.lower().endswith(KNOWN_ENDINGS) and not image.is_dir()
    files = {"path": folder / f"{case.id}{label_ending(file_ending(image), highest) if known else '.nii.gz'}"}
    if probabilities:
        files["probabilities"] = folder / f"{case.id}_probabilities.nii.gz"
    if uncertainty:
        files["uncertainty"] = folder / f"{case.id}_{uncertainty}.nii.gz"
    if landmarks:
        files["landmarks"] = folder / f"{case.id}.npy"
    if dicom_seg and holds_dicom(image):
        files["dicom_seg"] = folder / f"{case.id}.dcm"
    return files


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
    record.add(case.id, files["path"], outcome)


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
    record = Record(record_path(Path(cfg["output"]), cfg["shard"]))
    try:
        paths = predict_cases(
            predictor,
            cases,
            cfg["output"],
            overwrite=cfg["overwrite"],
            probabilities=cfg["probabilities"],
            dicom_seg=cfg["dicom_seg"],
            nan=cfg["nan"],
            mask=cfg["mask"],
            record=record,
        )
    finally:
        record.save()
        if cfg["verbose"]:
            record.print()
    print(f"medseg: {len(paths)} segmentation(s) in {cfg['output']}")
    return 0

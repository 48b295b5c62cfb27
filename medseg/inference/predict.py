"""`medseg predict`: a file, a folder of files or a dataset in, a folder of segmentations out."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from medseg.data.dataset import Case, open_dataset
from medseg.errors import BadDataset, MedsegError, PartialFailure, UsageError
from medseg.inference.predictor import Predictor
from medseg.io import KNOWN_ENDINGS, file_ending, label_ending

logger = logging.getLogger(__name__)


def predict_cases(
    predictor: Predictor,
    cases: Sequence[Case],
    output: str | Path,
    *,
    overwrite: bool = True,
    probabilities: bool = False,
    nan: Literal["refuse", "zero"] = "refuse",
    progress: bool = True,
) -> list[Path]:
    """Predict cases into ``output/<case id><ending of its image>``, one after the other.

    Args:
        predictor: what predicts.
        cases: what to predict.
        output: folder, created if needed.
        overwrite: False skips cases whose file is there already.
        probabilities: write ``<case id>_probabilities.nii.gz`` too.
        nan: ``"refuse"`` or ``"zero"``.
        progress: show a progress bar on stderr.

    Returns:
        The segmentation files, in the order of the cases.

    Raises:
        PartialFailure: some cases failed; each is named with its reason, the others are written.
        MedsegError: the error of the only case, or of the first if all failed.
    """
    from rich.console import Console
    from rich.progress import track

    paths = [Path(output) / f"{case.id}{label_ending(file_ending(case.images[0]))}" for case in cases]
    failed: dict[str, MedsegError] = {}
    todo = [(case, path) for case, path in zip(cases, paths, strict=True) if overwrite or not path.exists()]
    bar = track(todo, "predict", console=Console(stderr=True), disable=not progress)
    for case, path in bar:
        try:
            segmentation = predictor.predict(case.images, probabilities=probabilities, nan=nan, case=case.id)
            path.parent.mkdir(parents=True, exist_ok=True)
            segmentation.save(path, path.parent / f"{case.id}_probabilities.nii.gz" if probabilities else None)
            logger.info("%s %s", case.id, {step: round(s, 2) for step, s in segmentation.seconds.items()})
        except MedsegError as error:
            error.case = error.case or case.id
            failed[case.id] = error
    if failed:
        raise _summary(failed, len(todo), Path(output))
    return paths


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
        device=cfg["device"],
        precision=cfg["precision"],
        threads=cfg["threads"],
        overlap=cfg["overlap"],
        tta=cfg["tta"],
    )
    cases = find_cases(Path(cfg["input"]), len(predictor.plan.channel_names))
    print(f"medseg: predicting {len(cases)} case(s) on {predictor.profile}")
    paths = predict_cases(
        predictor,
        cases,
        cfg["output"],
        overwrite=cfg["overwrite"],
        probabilities=cfg["probabilities"],
        nan=cfg["nan"],
    )
    print(f"medseg: {len(paths)} segmentation(s) in {cfg['output']}")
    return 0


def find_cases(source: Path, channels: int) -> list[Case]:
    """The cases of a file, of a folder of image files, or of a dataset (its test cases, else its training cases).

    In a folder, ``CASE_0000``, ``CASE_0001`` ... are the channels of one case; other names are cases of one file each.

    Raises:
        BadDataset: nothing there that can be read.
        UsageError: a case without all channels.
    """
    if (source / "dataset.json").exists():
        dataset = open_dataset(source)
        return list(dataset.test or dataset.training)
    if not source.exists():
        raise BadDataset("the input does not exist", path=source, fix="give a file, a folder of images or a dataset")
    files = sorted(source.iterdir()) if source.is_dir() else [source]
    grouped: dict[str, list[Path]] = {}
    for file in files:
        if file.name.lower().endswith(KNOWN_ENDINGS) and not file.name.startswith("."):
            grouped.setdefault(_case_id(file), []).append(file)
    if not grouped:
        raise BadDataset("no image found", path=source, fix=f"give files that end in one of {', '.join(KNOWN_ENDINGS)}")
    for case, paths in grouped.items():
        if len(paths) not in (1, channels):
            problem = f"{len(paths)} channel files (the model expects {channels}, named {case}_0000 and so on)"
            raise UsageError(problem, case=case, path=source)
    return [Case(id=case, images=tuple(paths)) for case, paths in grouped.items()]


def _case_id(file: Path) -> str:
    stem = file.name[: -len(file_ending(file))]
    return stem[:-5] if len(stem) > 5 and stem[-5] == "_" and stem[-4:].isdigit() else stem

"""After training: the validation cases predicted from their files, evaluated, and the learning curve drawn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg.data.dataset import Case, SegmentationDataset
from medseg.evaluation import CaseFiles, Evaluator, Report, report_landmarks
from medseg.inference import Predictor, predict_cases
from medseg.inference.postprocess import postprocess
from medseg.inference.postprocess_choice import CaseMaps, choose_postprocessing
from medseg.io import LabelCoding, atomic_path, load_model, read_json, read_labels, save_model, write_json, write_labels
from medseg.text import for_figure
from medseg.training.run_folder import RunFolder


def report_validation(
    run: RunFolder, dataset: SegmentationDataset, ids: Sequence[str], settings: Mapping[str, Any]
) -> None:
    """Predict the validation cases exactly as ``medseg predict`` would, evaluate them, store the means in the model.

    Args:
        run: holds the exported model; ``validation/`` receives predictions and report.
        dataset: of the cases.
        ids: the validation cases; none at all writes the curve only.
        settings: ``device``, ``precision``, ``threads``, ``tta`` and ``progress`` of the trainer.
    """
    draw_curve(run)
    if not ids:
        return
    predictor = Predictor.from_pretrained(
        run.path,
        device=settings["device"],
        precision=settings["precision"],
        threads=settings["threads"],
        tta=settings["tta"],
    )
    cases = [dataset.case(case) for case in ids]
    files = predict_cases(predictor, cases, run.validation, progress=settings["progress"])
    single = all(len(values) == 1 for values in predictor.target.classes.values())
    # Operations know label values: in a map of regions they would tear holes into the regions around.
    operations = postprocess_validation(run, dataset, cases, files) if single else []
    report = evaluate_predictions(predictor, dataset, cases, files, progress=settings["progress"])
    report.save(run.validation)
    report.print()
    state, description = load_model(run.path)
    points = report_landmarks(report, run.validation)
    metrics = {**report.summary()["foreground_mean"], **({"landmarks": points["all"]} if points else {})}
    found = {"metrics": metrics, "postprocessing": operations}
    save_model(run.path, state, {**description, **found})
    print(
        f"medseg: report {run.validation / 'report.html'}, picture {run.validation / 'overlay.png'}, curve {run.curve}"
    )


def evaluate_predictions(
    predictor: Predictor, dataset: SegmentationDataset, cases: Sequence[Case], files: Sequence[Path], *, progress: bool
) -> Report:
    """Evaluate the predictions of those cases that have a reference, for the classes that the predictor tells apart."""
    evaluator = Evaluator(
        predictor.target.classes,
        ignore_label=dataset.ignore_label,
        known=frozenset(dataset.labels.values()),
        progress=progress,
    )
    pairs = [
        CaseFiles(case.id, case.label, file, case.images[0], coding=case.coding, landmarks=case.landmarks)
        for case, file in zip(cases, files, strict=True)
        if case.label is not None
    ]
    return evaluator.evaluate(pairs)


def postprocess_validation(
    run: RunFolder, dataset: SegmentationDataset, cases: Sequence[Case], files: Sequence[Path]
) -> list[dict[str, Any]]:
    """Choose post-processing on the validation predictions, and apply it to them, as ``medseg predict`` will.

    Their scores are then a little too good, by at most the gains that ``validation/postprocessing.json`` states.
    """
    pairs = [(file, c.label, c.coding) for c, file in zip(cases, files, strict=True) if c.label is not None]
    choice = choose_postprocessing(_ReadAgain(pairs), dataset.labels)
    operations = choice.operations
    write_json(run.validation / "postprocessing.json", {"operations": operations, "dice": choice.dice})
    for operation in operations:
        print(f"medseg: post-processing {operation}")
    if operations:
        mean = choice.dice["foreground_mean"]
        print(f"medseg: post-processing takes the mean Dice from {mean['before']:.4f} to {mean['after']:.4f}")
    for file in files if operations else ():
        volume = read_labels(file)
        write_labels(file, postprocess(volume.array[0], operations, volume.spacing), volume.geometry)
    return operations


@dataclass(frozen=True)
class _ReadAgain:
    """Label maps of predictions and references; each time they are gone through, the files are read."""

    pairs: Sequence[tuple[Path, Path, LabelCoding | None]]

    def __iter__(self) -> Iterator[CaseMaps]:
        for file, label, coding in self.pairs:
            prediction = read_labels(file)
            yield prediction.array[0], read_labels(label, coding=coding).array[0], prediction.spacing


def report_folds(run: RunFolder, folds: Sequence[RunFolder]) -> None:
    """Mean over the folds' validation means, as ``crossval.json`` and one line."""
    means = {fold.path.name: read_json(fold.validation / "summary.json")["foreground_mean"] for fold in folds}
    names = [name for name in next(iter(means.values())) if all(mean[name] is not None for mean in means.values())]
    overall = {name: sum(mean[name] for mean in means.values()) / len(means) for name in names}
    write_json(run.path / "crossval.json", {"folds": means, "mean": overall})
    print(f"medseg: {len(folds)} folds, mean foreground Dice {overall.get('Dice', float('nan')):.4f}")


def draw_curve(run: RunFolder) -> None:
    """Loss and validation Dice against steps, from the CSV logs of every start of this run, as ``progress.png``."""
    import pandas as pd
    from matplotlib.figure import Figure

    logs = [pd.read_csv(file) for file in sorted(run.path.glob("logs/version_*/metrics.csv")) if file.stat().st_size]
    if not logs:
        return
    log = pd.concat(logs).sort_values("step")
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel="step", ylabel="loss")
    if "train/loss" in log:
        loss = log.dropna(subset=["train/loss"])
        axes.plot(loss["step"], loss["train/loss"], color="tab:grey", lw=1, label="training loss")
    if "val/dice" in log:
        scored = log.dropna(subset=["val/dice"])
        twin = axes.twinx()
        for name in [str(column) for column in log if str(column).startswith("val/")]:
            marker, width = ("o", 2) if name == "val/dice" else ("", 1)
            twin.plot(
                scored["step"], scored[name], label=for_figure(name.removeprefix("val/")), marker=marker, lw=width, ms=3
            )
        twin.set(ylabel="validation Dice", ylim=(0, 1))
        twin.legend(loc="center right")
    axes.legend(loc="lower left")
    with atomic_path(run.curve) as temporary:
        figure.savefig(temporary, dpi=120)

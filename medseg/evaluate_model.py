"""``medseg evaluate``: predictions that are there, or those of a model that are made first."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medseg.data.outputs import check_outputs, plain_path
from medseg.errors import BadDataset, UsageError
from medseg.evaluation import evaluate_command as evaluate_predictions
from medseg.evaluation.command import check_report_folder


def evaluate_command(cfg: Mapping[str, Any]) -> int:
    """Evaluate predictions; with ``model``, segment the labelled cases of a dataset first.

    Args:
        cfg: as for `medseg.evaluation.evaluate_command`; or ``model`` (run or model folder) with ``references`` (a
            dataset folder) and ``output``: test cases with labels are segmented into ``output/predictions``, or,
            where there are none, those that the dataset has validate, or all training cases.

    Raises:
        UsageError: both or neither of model and predictions.
        BadDataset: the dataset has no labels.
    """
    if (cfg.get("model") is None) == (cfg.get("predictions") is None):
        raise UsageError(
            "exactly one of model and predictions is needed", fix="give predictions=FOLDER or model=FOLDER"
        )
    if cfg.get("model") is None:
        return evaluate_predictions(cfg)
    if cfg.get("references") is None or cfg.get("output") is None:
        raise UsageError("model needs references and output", fix="give references=DATASET output=FOLDER")
    check_report_folder(cfg["output"], None, cfg["references"], cfg["model"], cfg.get("metadata"))
    predictions, regions = predict_labelled(cfg)
    return evaluate_predictions({**cfg, "predictions": str(predictions), "labels": cfg.get("labels") or regions})


def predict_labelled(cfg: Mapping[str, Any]) -> tuple[Path, dict[str, tuple[int, ...]] | None]:
    """Segment the labelled cases of a dataset; returns the folder of the segmentations, and the model's regions."""
    from medseg.data.dataset import open_dataset
    from medseg.inference import Predictor, predict_cases
    from medseg.inference.predict import kept_and_told
    from medseg.inference.record import Record, record_path

    place = record_path(plain_path(cfg["output"]) / "predictions", None)
    check_outputs(place.parent, [place.name], [cfg["references"], cfg["model"]])
    instances, threshold = bool(cfg.get("instances")), cfg.get("mask_threshold")
    dataset = open_dataset(cfg["references"], strict=False, instances=instances, mask_threshold=threshold)
    parts = (dataset.test, dataset.validation, dataset.training)
    labelled = ([case for case in part if case.label is not None] for part in parts)
    cases = next((part for part in labelled if part), [])
    if not cases:
        raise BadDataset("the dataset has no labels to evaluate with", path=dataset.root)
    wanted = any(name in ("ece", "brier") for name in cfg.get("metrics") or ())
    predictor = Predictor.from_pretrained(cfg["model"])
    record = Record(place)
    with kept_and_told(record, place.parent):
        predict_cases(predictor, cases, place.parent, probabilities=wanted, record=record)
    classes = predictor.target.classes
    return place.parent, classes if any(len(values) > 1 for values in classes.values()) else None

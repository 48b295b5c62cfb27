"""fit: a config becomes a trained model folder. Read top to bottom, it is the whole story of a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from medseg.data.catalogue import resolve_dataset
from medseg.data.dataset import SegmentationDataset
from medseg.data.fingerprint import make_fingerprint
from medseg.data.plan import Plan, make_plan
from medseg.data.prepare import PreparedDataset, prepare
from medseg.data.sampling import check_whole
from medseg.data.splits import limit_training, write_splits
from medseg.inference.memory import activation_bytes
from medseg.io import load_checkpoint, save_model, write_json
from medseg.models import create_model
from medseg.models.slices import with_slices, without_slices
from medseg.settings.training_verbs import TrainSettings
from medseg.targets import Target
from medseg.training.callbacks import Checkpoints, Validation
from medseg.training.loader import TrainingData
from medseg.training.pretrained import load_pretrained
from medseg.training.progress import ProgressReport
from medseg.training.report import report_folds, report_validation
from medseg.training.run_folder import RunFolder
from medseg.training.setup import (
    check_model,
    check_outlines,
    choose_folds,
    fit_plan,
    lasting_arguments,
    load_encoder,
    make_data,
    make_folds,
    make_profile,
    make_target,
    make_task,
    make_trainer,
    model_arguments,
    start_heads,
)
from medseg.training.signals import catch_stop_signals
from medseg.training.task import TrainingTask

Config = Mapping[str, Any]


def train_command(cfg: Config) -> int:
    """``medseg train``: fit and say where the results lie."""
    run = fit(cfg)
    print(f"medseg: model, metrics and report are in {run}")
    return 0


def fit(cfg: Config) -> Path:
    """Train one fold, or all folds one after the other, from a config with the keys of ``configs/train.yaml``.

    Returns:
        The run folder: ``model.json`` and ``model.safetensors`` (for all folds: in ``fold_0``, ``fold_1``, ...), the
        plan, splits, logs, checkpoints, and ``validation/`` with predictions, ``summary.json`` and ``report.html``.

    Raises:
        MedsegError: unusable data or settings; `Interrupted` after a signal, with the state saved.
    """
    cfg = TrainSettings.of(cfg).to_config()
    run = RunFolder(cfg["run_dir"])
    with run.lock():
        write_json(run.config, dict(cfg))
        dataset = resolve_dataset(cfg["data"])
        target = make_target(cfg["target"], dataset)  # refused, if it must be, before any case is read
        check_model(cfg["model"]["name"], target, dataset.spatial_dims)
        splits = make_folds(dataset, cfg["data"])
        splits = [limit_training(split, cfg["data"]["limit_train"], cfg["seed"]) for split in splits]
        write_splits(run.splits, splits)
        folds = choose_folds(cfg["fold"], len(splits))
        plan = plan_training(dataset, cfg)
        plan.save(run.plan)
        ids = sorted({case for fold in folds for part in ("train", "val") for case in splits[fold][part]})
        workers = cfg["data"]["workers"]
        prepared = prepare(dataset, plan, ids, cache_dir=cfg["cache_dir"], workers=workers, points=target.points)
        folders = [run] if len(folds) == 1 else [RunFolder(run.path / f"fold_{fold}") for fold in folds]
        for fold, folder in zip(folds, folders, strict=True):
            fit_fold(cfg, folder, dataset, prepared, plan, target, splits[fold], fold)
        if len(folds) > 1:
            report_folds(run, folders)
    return run.path


def plan_training(dataset: SegmentationDataset, cfg: Config) -> Plan:
    """The plan of a dataset: from ``plan.file`` if given, else made from its fingerprint, with the user's overrides."""
    overrides = dict(cfg["plan"])
    file = overrides.pop("file", None)
    if file:
        return Plan.load(file).override(**overrides)
    device = make_profile(cfg["trainer"]).device.type
    fingerprint = make_fingerprint(dataset, workers=cfg["data"]["workers"], cache_dir=cfg["cache_dir"])
    return make_plan(fingerprint, device=device, slices=cfg["data"].get("slices"), **overrides)


def fit_fold(
    cfg: Config,
    run: RunFolder,
    dataset: SegmentationDataset,
    prepared: PreparedDataset,
    plan: Plan,
    target: Target,
    split: Mapping[str, list[str]],
    fold: int,
) -> None:
    """Train on one split, export the averaged weights, predict and evaluate its validation cases."""
    checkpoint = run.newest_checkpoint(cfg["resume"])
    pl.seed_everything(cfg["seed"] + fold, verbose=False)
    profile = make_profile(cfg["trainer"])
    arguments = model_arguments(cfg["model"], plan, target.model_arguments())
    from_run = cfg["pretrained"] and not Path(cfg["pretrained"]).is_file()
    pretrained = load_pretrained(cfg["pretrained"]) if from_run else None
    if pretrained:
        arguments = pretrained.adopt(arguments, cfg["model"])
    network = create_model(**arguments)
    if cfg["pretrained"] and pretrained is None:
        load_encoder(network, cfg["pretrained"])
    start_heads(network, target)
    network = with_slices(network, plan.slice_axis)
    plan = fit_plan(plan, network, target)
    if not target.dense:  # of the training cases, the patches see to it
        for case in split["val"]:
            check_whole(prepared.labels(case).shape, plan.patch_size, case)
    check_outlines(target, (prepared.labels(case) for case in split["train"]))
    data = make_data(cfg, prepared, plan, split["train"], target, profile)
    description: dict[str, Any] = {
        "model": lasting_arguments(arguments),
        "target": target.to_dict(),
        "plan": plan.to_dict(),
        "window_bytes": activation_bytes(network, (1, len(plan.channel_names), *plan.patch_size)),
        "training": {"dataset": dataset.name, "fold": fold, "seed": cfg["seed"], "cases": len(split["train"])},
    }
    size = f"{arguments['name']}, {sum(p.numel() for p in network.parameters()):,} parameters"
    cases = f"{len(split['train'])} training and {len(split['val'])} validation cases"
    print(f"medseg: {size}; {cases}; patch {list(plan.patch_size)}, batch {plan.batch_size}; {profile}", flush=True)
    if pretrained:
        description["training"]["pretrained"] = pretrained.load_into(without_slices(network))
        pretrained.warn_of_overlap(split["val"])
    validation = Validation(prepared, split["val"], run, description, cfg["trainer"])
    task = make_task(cfg, network, target, profile)
    description["training"].update(train(cfg["trainer"], run, task, data, [validation], checkpoint))
    save_model(run.path, without_slices(task.final_network).state_dict(), description)
    report_validation(run, dataset, split["val"], cfg["trainer"])


def train(
    settings: Config,
    run: RunFolder,
    task: TrainingTask,
    data: TrainingData,
    more: Sequence[pl.Callback],
    checkpoint: Path | None,
) -> dict[str, Any]:
    """Turn the crank until the budget is spent; returns the facts of the training.

    Args:
        settings: ``trainer`` of the config.
        run: receives checkpoints and logs.
        task: what is trained.
        data: its batches.
        more: callbacks that act before a checkpoint is saved.
        checkpoint: to go on from.
    """
    progress = ProgressReport(data.dataset.batch_size, settings["progress"])
    with catch_stop_signals() as stop, data.name_lost_workers():
        callbacks = [progress, *more, Checkpoints(run, settings["checkpoint_minutes"], stop)]
        trainer = make_trainer(settings, run, task.profile, callbacks)
        trainer.fit(task, data, ckpt_path=checkpoint)
    state = load_checkpoint(run.checkpoint)  # processes that were spawned leave their counts there only
    facts = {"steps": state["global_step"], "seconds": round(state["elapsed"], 1)}
    return {**facts, **state["callbacks"][progress.state_key]}

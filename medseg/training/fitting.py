"""fit: a config becomes a trained model folder. Read top to bottom, it is the whole story of a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from medseg.data.catalogue import resolve_dataset
from medseg.data.dataset import SegmentationDataset
from medseg.data.plan import Plan
from medseg.data.prepare import PreparedDataset, plan_dataset, prepare
from medseg.data.sampling import check_whole
from medseg.data.splits import Split, limit_training
from medseg.inference.memory import activation_bytes
from medseg.io import save_model
from medseg.models import create_model
from medseg.models.slices import with_slices, without_slices
from medseg.settings.training_verbs import TrainSettings
from medseg.targets import Target
from medseg.training.callbacks import Validation
from medseg.training.checkpoints import RunPart
from medseg.training.loop import TrainingLoop
from medseg.training.memory import memory_suffices, require_room
from medseg.training.pretrained import load_pretrained
from medseg.training.report import report_folds, report_validation
from medseg.training.run_folder import RunFolder, check_run_dir
from medseg.training.run_record import RunRecord, begin, open_record
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
    model_arguments,
    start_heads,
)
from medseg.training.signals import StopRequest

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
    check_run_dir(cfg["run_dir"], cfg["data"]["path"], cfg["pretrained"])
    run = RunFolder(cfg["run_dir"])
    with run.lock(), memory_suffices():
        stored = open_record(run, "train", cfg)
        dataset = resolve_dataset(cfg["data"])
        target = make_target(cfg["target"], dataset)  # refused, if it must be, before any case is read
        check_model(cfg["model"]["name"], target, dataset.spatial_dims)
        splits = stored.splits if stored else split_training(dataset, cfg)
        folds = choose_folds(cfg["fold"], len(splits))
        ids = sorted({case for fold in folds for part in ("train", "val") for case in splits[fold][part]})
        if stored:
            stored.require_cases([case.id for case in dataset.training])
        plan = Plan.from_dict(stored.plan) if stored else plan_training(dataset, cfg)
        workers = cfg["data"]["workers"]
        prepared = prepare(dataset, plan, ids, cache_dir=cfg["cache_dir"], workers=workers, points=target.points)
        record = make_record("train", cfg, plan, dataset, splits, prepared, target=target.to_dict())
        if stored:
            stored.agree(record)
        parts = [RunPart(run, stored or record, f"fold_{fold}" if len(folds) > 1 else "") for fold in folds]
        for number, (fold, part) in enumerate(zip(folds, parts, strict=True)):
            training = FoldTraining(cfg, part, dataset, prepared, plan, target, splits[fold], fold, stored is not None)
            if number == 0:
                training.check_cases([splits[fold] for fold in folds])
                for later in parts[1:] if stored else ():
                    later.newest_checkpoint()
                begin(run, part.record, cfg, resumed=stored is not None)
            training.run()
        if len(folds) > 1:
            report_folds(run, [part.folder for part in parts])
    return run.path


def split_training(dataset: SegmentationDataset, cfg: Config) -> list[Split]:
    """The folds of a dataset, with as many of their training cases as ``data.limit_train`` allows."""
    return [
        limit_training(split, cfg["data"]["limit_train"], cfg["seed"]) for split in make_folds(dataset, cfg["data"])
    ]


def make_record(
    verb: str,
    cfg: Config,
    plan: Plan,
    dataset: SegmentationDataset,
    splits: Sequence[Split],
    prepared: PreparedDataset,
    **facts: Any,
) -> RunRecord:
    """What a run on prepared cases is bound to."""
    return RunRecord.of(
        verb,
        cfg,
        plan.to_dict(),
        splits=splits,
        cases={case: prepared.content(case) for case in prepared.ids},
        facts={"labels": dataset.labels, "channels": dataset.channel_names, **facts},
        known=sorted(case.id for case in dataset.training),
    )


def plan_training(dataset: SegmentationDataset, cfg: Config) -> Plan:
    """The plan of a dataset: from ``plan.file`` if given, else made from its fingerprint, with the user's overrides."""
    return plan_dataset(dataset, cfg, make_profile(cfg["trainer"]).device.type)


class FoldTraining:
    """The training of one fold, ready: all that may be refused is refused here, and nothing is written before `run`.

    Args:
        cfg: of ``medseg train``.
        part: of the run: the folder that the fold's results go to.
        dataset: of the cases.
        prepared: the cases of all folds that are trained.
        plan: of the dataset; what the network and the target ask for is added.
        target: of the dataset.
        split: ids under ``train`` and ``val``.
        fold: its number.
        resumed: go on where the fold has begun.
    """

    def __init__(
        self,
        cfg: Config,
        part: RunPart,
        dataset: SegmentationDataset,
        prepared: PreparedDataset,
        plan: Plan,
        target: Target,
        split: Split,
        fold: int,
        resumed: bool,
    ) -> None:
        self.settings, self.part, self.dataset = cfg["trainer"], part, dataset
        self.prepared, self.target, self.split = prepared, target, split
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
        self.plan = plan = fit_plan(plan, network, target)
        data = make_data(cfg, prepared, plan, split["train"], target, profile)
        self.description: dict[str, Any] = {
            "model": lasting_arguments(arguments),
            "target": target.to_dict(),
            "plan": plan.to_dict(),
            "window_bytes": activation_bytes(network, (1, len(plan.channel_names), *plan.patch_size)),
            "training": {"dataset": dataset.name, "fold": fold, "seed": cfg["seed"], "cases": len(split["train"])},
        }
        require_room(self.description["window_bytes"], plan, profile)
        size = f"{arguments['name']}, {sum(p.numel() for p in network.parameters()):,} parameters"
        cases = f"{len(split['train'])} training and {len(split['val'])} validation cases"
        print(f"medseg: {size}; {cases}; patch {list(plan.patch_size)}, batch {plan.batch_size}; {profile}", flush=True)
        if pretrained:
            self.description["training"]["pretrained"] = pretrained.load_into(without_slices(network))
            pretrained.warn_of_overlap(split["val"])
        stop = StopRequest()
        validation = Validation(prepared, split["val"], part.folder.best, self.description, self.settings, stop)
        task = make_task(cfg, network, target, profile)
        self.loop = TrainingLoop(self.settings, part, task, data, [validation], stop, resumed=resumed)

    def check_cases(self, splits: Sequence[Split]) -> None:
        """Refuse what cannot be learnt, or not be validated, from the cases of any fold of the run."""
        for split in splits:
            if not self.target.dense:  # of this fold's training cases, the patches saw to it
                for case in split["val"]:
                    check_whole(self.prepared.labels(case).shape, self.plan.patch_size, case)
            check_outlines(self.target, (self.prepared.labels(case) for case in split["train"]))

    def run(self) -> None:
        """Train, export the averaged weights, predict and evaluate the validation cases."""
        self.description["training"].update(self.loop.run())
        network, folder = without_slices(self.loop.task.final_network), self.part.folder
        save_model(folder.path, network.state_dict(), self.description)
        report_validation(folder, self.dataset, self.split["val"], self.settings)

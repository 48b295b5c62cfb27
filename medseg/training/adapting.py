"""adapt: a trained model meets a new site; a part of it is fitted and saved as a small file on top of the base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from torch import Tensor, nn

from medseg.blocks.skip.attach import attach_skips, changed_state
from medseg.blocks.skip.scale import calibrate
from medseg.data.catalogue import resolve_dataset
from medseg.data.dataset import SegmentationDataset
from medseg.data.plan import Plan
from medseg.data.prepare import PreparedDataset, prepare
from medseg.errors import UsageError, nearest
from medseg.inference import Predictor, predict_cases
from medseg.inference.description import described, model_arguments, naming
from medseg.inference.memory import activation_bytes
from medseg.inference.rebuild import rebuild
from medseg.io import load_model, model_fingerprint, save_adapter, write_json
from medseg.models import create_model
from medseg.models.skip_table import check_host
from medseg.models.slices import with_slices, without_slices
from medseg.settings.training_verbs import AdaptSettings
from medseg.targets import build_target
from medseg.training.adapt_checks import check_request, check_site
from medseg.training.callbacks import Validation
from medseg.training.checkpoints import RunPart
from medseg.training.fitting import Config, make_record
from medseg.training.loop import TrainingLoop
from medseg.training.memory import memory_suffices, require_room
from medseg.training.report import evaluate_predictions
from medseg.training.run_folder import RunFolder, check_run_dir
from medseg.training.run_record import begin, open_record
from medseg.training.setup import choose_folds, make_data, make_folds, make_profile, make_task

METHODS: dict[str, tuple[dict[str, Any] | None, str]] = {  # what is attached, and what is trained
    "skip_tuner": ({"edit": [{"name": "sc_tuner"}]}, "skips"),
    "skip_scale": (None, ""),
    "head": (None, "head"),
    "decoder": (None, "decoder"),
    "all": (None, "all"),
}


def adapt_command(cfg: Config) -> int:
    """``medseg adapt``: adapt and say where the adapter lies."""
    run = adapt(cfg)
    print(f"medseg: the adapter is {run / 'adapter'}; medseg predict model={cfg['model']} adapter={run / 'adapter'}")
    return 0


def adapt(cfg: Config) -> Path:
    """Adapt a model from a config with the keys of ``configs/adapt.yaml``.

    Returns:
        The run folder: ``adapter/`` is what ``Predictor.from_pretrained(BASE, adapter=...)`` reads; where cases are
        held out, ``before.json`` and ``after.json`` are their means without and with it.

    Raises:
        MedsegError: unusable data or settings, labels or channels other than the model's.
    """
    cfg = AdaptSettings.of(cfg).to_config()
    method, base = cfg["method"], Path(cfg["model"]).resolve()
    if method not in METHODS:
        raise UsageError(f"unknown method '{method}': {nearest(method, METHODS)}")
    check_request(cfg, base)
    check_run_dir(cfg["run_dir"], base, cfg["data"]["path"])
    state, description = load_model(base)
    with naming(base):
        arguments = model_arguments(description.get("model"))
    check_host(arguments["name"])
    told = described(description, base)
    fingerprint = model_fingerprint(base)  # of what was read: the base may be trained again in the meantime
    run = RunFolder(cfg["run_dir"])
    with run.lock(), memory_suffices():
        stored = open_record(run, "adapt", cfg)
        dataset, plan = resolve_dataset(cfg["data"]), told.plan
        check_site(dataset, plan)
        plan = plan.override(batch_size=cfg["batch_size"])
        splits = stored.splits if stored else make_folds(dataset, cfg["data"])
        split = splits[choose_folds(cfg["fold"], len(splits))[0]]
        if stored:
            stored.require_cases([case.id for case in dataset.training])
        ids = sorted({*split["train"], *split["val"]})
        prepared = prepare(dataset, plan, ids, cache_dir=cfg["cache_dir"], workers=cfg["data"]["workers"])
        record = make_record("adapt", cfg, plan, dataset, splits, prepared, base=fingerprint)
        if stored:
            stored.agree(record)
        pl.seed_everything(cfg["seed"], verbose=False)
        network = rebuild(partial(create_model, **told.arguments), state, base, arguments["name"])
        planned = {**description, "plan": plan.to_dict()}
        site = Site(cfg, RunPart(run, stored or record), network, planned, prepared, stored is not None)
        found = fit_scales(site, split["train"]) if method == "skip_scale" else fit_part(site, split["train"], state)
        facts = {"dataset": dataset.name, "seed": cfg["seed"], "cases": len(split["train"]), **found[2]}
        origin = {"path": str(base), "fingerprint": fingerprint, "model": description["model"]["name"]}
        save_adapter(
            run.path / "adapter", found[0], {"base": origin, "method": method, "skips": found[1], "training": facts}
        )
        compare_held_out(cfg, run, base, dataset, split["val"])
    return run.path


Found = tuple[dict[str, Tensor], dict[str, Any] | None, dict[str, Any]]  # state, skips, facts


@dataclass(frozen=True)
class Site:
    """What a model is adapted with.

    Attributes:
        cfg: of ``medseg adapt``.
        part: the run.
        network: with the weights of the base.
        description: of the base, with the plan of the site.
        prepared: the cases.
        resumed: go on where the run has begun.
    """

    cfg: Config
    part: RunPart
    network: nn.Module
    description: Mapping[str, Any]
    prepared: PreparedDataset
    resumed: bool

    @property
    def plan(self) -> Plan:
        """Of the site."""
        return Plan.from_dict(self.description["plan"])

    def begin(self) -> None:
        """The first write."""
        begin(self.part.run, self.part.record, self.cfg, resumed=self.resumed)


def fit_part(site: Site, ids: Sequence[str], state: Mapping[str, Tensor]) -> Found:
    """Train what the method names, with the training's own machinery."""
    cfg, network, plan = site.cfg, site.network, site.plan
    skips, part = METHODS[cfg["method"]]
    skips = cfg["skips"] or skips
    trained = attach_skips(network, skips, train=cfg["train"] or part)
    sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
    count, total = sum(sizes[name] for name in trained), sum(sizes.values())
    print(f"medseg: {cfg['method']} trains {count:,} of {total:,} parameters on {len(ids)} cases", flush=True)
    profile = make_profile(cfg["trainer"])
    require_room(activation_bytes(network, (1, len(plan.channel_names), *plan.in_slice().patch_size)), plan, profile)
    target = build_target(site.description["target"])
    task = make_task(cfg, with_slices(network, plan.slice_axis), target, profile)
    data = make_data(cfg, site.prepared, plan, ids, target, profile)
    loop = TrainingLoop(cfg["trainer"], site.part, task, data, resumed=site.resumed)
    site.begin()
    facts = loop.run()
    changed = changed_state(without_slices(task.final_network).cpu(), state)
    return changed, skips, {**facts, "trained_parameters": count, "parameters": total}


def fit_scales(site: Site, ids: Sequence[str]) -> Found:
    """Choose the factors of the skips by the Dice of the labelled cases; nothing is trained."""
    cfg, network = site.cfg, site.network
    profile = make_profile(cfg["trainer"])
    plain = {**cfg, "trainer": {**cfg["trainer"], "ema": 0}}
    whole = with_slices(network, site.plan.slice_axis)
    task = make_task(plain, whole, build_target(site.description["target"]), profile)
    judge = Validation(site.prepared, ids, site.part.folder.best, site.description, cfg["trainer"])
    scores = cfg["skip_scale"]
    site.begin()
    found = calibrate(
        network,
        lambda model: float(np.nanmean(judge.dice(task) or np.nan)),
        grid=scores["grid"],
        mode=scores["mode"],
        tolerance=scores["tolerance"],
    )
    site.part.begun()
    print(f"medseg: factors, finest first: {list(found.per_level)}; Dice {found.before:.4f} -> {found.after:.4f}")
    total = sum(parameter.numel() for parameter in network.parameters())
    facts = {"before": found.before, "after": found.after, "trained_parameters": 0, "parameters": total}
    return {}, {"edit": [{"name": "scale", "per_level": list(found.per_level)}]}, facts


def compare_held_out(cfg: Config, run: RunFolder, base: Path, dataset: SegmentationDataset, ids: Sequence[str]) -> None:
    """Means of the cases that were held out, without and with the adapter."""
    cases = [dataset.case(case) for case in ids]
    if not cases:
        return
    dice = []
    for name, adapter in (("before", None), ("after", run.path / "adapter")):
        settings = {key: cfg["trainer"][key] for key in ("device", "precision", "threads")}
        predictor = Predictor.from_pretrained(base, adapter=adapter, **settings)
        files = predict_cases(predictor, cases, run.path / name, progress=cfg["trainer"]["progress"])
        report = evaluate_predictions(predictor, dataset, cases, files, progress=False)
        means = report.summary()
        write_json(run.path / f"{name}.json", means["foreground_mean"])
        dice.append(means["foreground_mean"]["Dice"])
    print(f"medseg: mean Dice of {len(cases)} held-out cases {dice[0]:.4f} -> {dice[1]:.4f}")

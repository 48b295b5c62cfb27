"""pretrain: images without labels become an encoder, by Barlow Twins (Zbontar et al. 2021, arXiv 2103.03230)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from medseg.data.catalogue import find_dataset, resolve_dataset
from medseg.data.dataset import Case
from medseg.data.keys import content_key
from medseg.data.plan import Plan
from medseg.data.splits import read_splits
from medseg.data.unlabelled import at_least_two, find_images, is_labelled, plan_images, source_ids
from medseg.data.views import ViewDataset
from medseg.device import DeviceProfile
from medseg.errors import UsageError
from medseg.losses.barlow_twins import barlow_twins_loss
from medseg.models import create_model
from medseg.settings.training_verbs import PretrainSettings
from medseg.training.checkpoints import RunPart
from medseg.training.fitting import plan_training
from medseg.training.loader import TrainingData, choose_loader_workers
from medseg.training.loop import TrainingLoop
from medseg.training.memory import memory_suffices
from medseg.training.pretrained import encoder_of, save_pretrained
from medseg.training.report import draw_curve
from medseg.training.run_folder import RunFolder, check_run_dir
from medseg.training.run_record import RunRecord, begin, open_record
from medseg.training.schedule import Budget
from medseg.training.setup import (
    choose_folds,
    fit_patch,
    lasting_arguments,
    make_budget,
    make_folds,
    make_profile,
    model_arguments,
)
from medseg.training.task import TrainingTask

Config = Mapping[str, Any]


def pretrain_command(cfg: Config) -> int:
    """``medseg pretrain``: pretrain and say where the encoder lies."""
    folder = pretrain(cfg)
    print(f"medseg: the encoder is in {folder}; start from it with medseg train pretrained={folder.parent}")
    return 0


def pretrain(cfg: Config) -> Path:
    """Pretrain the encoder of a model, from a config with the keys of ``configs/pretrain.yaml``.

    Views are made while training, from the images of this run alone: what a fold validates is never read.

    Returns:
        The model folder of the encoder, ``run_dir/encoder``.

    Raises:
        MedsegError: unusable data or settings; `Interrupted` after a signal, with the state saved.
    """
    cfg = PretrainSettings.of(cfg).to_config()
    check_run_dir(cfg["run_dir"], cfg["data"]["path"])
    run = RunFolder(cfg["run_dir"])
    with run.lock(), memory_suffices():
        stored = open_record(run, "pretrain", cfg)
        profile = make_profile(cfg["trainer"])
        cases, plan, known = choose_images(cfg, profile, stored)
        keys = {case.id: content_key(case) for case in cases}
        record = RunRecord.of("pretrain", cfg, plan.to_dict(), splits=[], cases=keys, known=known)
        if stored:
            stored.agree(record)
        pl.seed_everything(cfg["seed"], verbose=False)
        arguments = model_arguments(cfg["model"], plan, {"out_channels": 1})
        model = create_model(**arguments)
        encoder = encoder_of(model, arguments["name"])
        plan = fit_patch(plan, model)
        network = Embedding(encoder, embedding_width(encoder, plan), cfg["projector"])
        task = make_pretraining(cfg, network, profile)
        data = make_views(cfg, cases, plan, profile)
        size = f"encoder of {arguments['name']}, {sum(p.numel() for p in encoder.parameters()):,} parameters"
        views = f"views of {list(plan.patch_size)}, batch {data.dataset.batch_size}"
        print(f"medseg: {size}; {len(cases)} images, {views}; {profile}", flush=True)
        loop = TrainingLoop(cfg["trainer"], RunPart(run, stored or record), task, data, resumed=stored is not None)
        begin(run, stored or record, cfg, resumed=stored is not None)
        facts = loop.run()
        draw_curve(run)
        final = task.final_network
        assert isinstance(final, Embedding)
        seen = {"method": "barlow_twins", "dataset": cfg["data"]["name"], "seed": cfg["seed"], **facts}
        description = {"model": lasting_arguments(arguments), "plan": plan.to_dict()}
        seen = {**seen, "views": dict(cfg["views"]), "cases": [case.id for case in cases]}
        return save_pretrained(run.path, final.encoder, {**description, "pretraining": seen})


def choose_images(
    cfg: Config, profile: DeviceProfile, stored: RunRecord | None = None
) -> tuple[list[Case], Plan, list[str]]:
    """The images to see, the plan, and the ids of all that are there.

    Of a dataset, the images are what a training of that fold trains on, else all of a folder but those that validate.
    A run that goes on keeps its own.

    Raises:
        BadDataset: fewer than two images, or images that the stored run saw are gone.
        UsageError: volumes instead of images.
    """
    data = cfg["data"]
    root = Path(data["path"]).expanduser() if data["path"] else find_dataset(data["name"])
    if is_labelled(root):
        dataset = resolve_dataset(data)
        if dataset.spatial_dims != 2:
            raise UsageError("pretraining takes 2D images, this dataset holds volumes", path=root)
        known = [case.id for case in dataset.training]
        if stored:
            stored.require_cases(known)
            return [dataset.case(case) for case in stored.cases], Plan.from_dict(stored.plan), known
        folds = make_folds(dataset, data)
        (fold,) = choose_folds(cfg["fold"], len(folds))
        cases = [dataset.case(case) for case in folds[fold]["train"]]
        return at_least_two(cases, root), plan_training(dataset, cfg), known
    if data["group_by"]:
        raise UsageError("data.group_by needs a dataset, this is a folder of images", path=root, fix="leave it out")
    left_out: list[str] = []
    if data["split_file"] and not stored:
        folds = read_splits(Path(data["split_file"]), None)
        left_out = folds[choose_folds(cfg["fold"], len(folds))[0]]["val"]
    there = find_images(root, test=data["test"])
    known = [case.id for case in there]
    if stored:
        stored.require_cases(known)
        return [case for case in there if case.id in stored.cases], Plan.from_dict(stored.plan), known
    cases = [case for case in there if source_ids(case.id).isdisjoint(left_out)]
    at_least_two(cases, root)
    given = dict(cfg["plan"])
    if given.pop("file", None):
        return cases, Plan.load(cfg["plan"]["file"]).override(**given), known
    choices = {"workers": data["workers"], "color": data["color"], "device": profile.device.type}
    return cases, plan_images(cases, data["name"], given=given, **choices), known


class Embedding(nn.Module):
    """An encoder, the mean of its deepest features over space, and a projector: two hidden layers and a linear one.

    Args:
        encoder: image (B, C, *S) -> features, the deepest last.
        channels: of the deepest features.
        width: of the projector's three layers.
    """

    def __init__(self, encoder: nn.Module, channels: int, width: int) -> None:
        super().__init__()
        self.encoder, self.projector = encoder, nn.Sequential()
        for inputs in (channels, width):
            self.projector.extend([nn.Linear(inputs, width), nn.BatchNorm1d(width), nn.ReLU(inplace=True)])
        self.projector.append(nn.Linear(width, width))

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, *S) -> (B, width)."""
        return self.projector(self.encoder(image)[-1].flatten(2).mean(2))


class BarlowTwinsTask(TrainingTask):
    """Two views of each image through one network.

    Args:
        network: image (B, C, *S) -> embedding (B, D).
        redundancy: lambda of the loss.
        optimizer, budget, profile, ema: as for `TrainingTask`.
    """

    def __init__(
        self,
        network: Embedding,
        *,
        redundancy: float,
        optimizer: Mapping[str, Any],
        budget: Budget,
        profile: DeviceProfile,
        ema: float,
    ) -> None:
        super().__init__(network, optimizer=optimizer, budget=budget, profile=profile, ema=ema)
        self.redundancy = redundancy

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """batch: ``image`` (B, 2, C, *S), ``case`` B ids -> scalar loss. Each view is a batch of its own."""
        first, second = (self.network(self.profile.place_batch(view)) for view in batch["image"].unbind(1))
        return self.finite(barlow_twins_loss(first, second, redundancy=self.redundancy), batch["case"])


@torch.no_grad()
def embedding_width(encoder: nn.Module, plan: Plan) -> int:
    """Channels of the deepest features."""
    training = encoder.training
    features: Sequence[Tensor] = encoder.eval()(torch.zeros(1, len(plan.channel_names), *plan.patch_size))
    encoder.train(training)
    return features[-1].shape[1]


def make_pretraining(cfg: Config, network: Embedding, profile: DeviceProfile) -> BarlowTwinsTask:
    """Network, loss, optimiser and budget as one Lightning module."""
    return BarlowTwinsTask(
        network,
        redundancy=cfg["redundancy"],
        optimizer=cfg["optimizer"],
        budget=make_budget(cfg["trainer"]),
        profile=profile,
        ema=cfg["trainer"]["ema"],
    )


def make_views(cfg: Config, cases: Sequence[Case], plan: Plan, profile: DeviceProfile) -> TrainingData:
    """Batches of two views of as many images as asked, or of all of them."""
    batch = min(cfg["batch_size"], len(cases))
    dataset = ViewDataset(cases, plan, cfg["views"], batch_size=batch, seed=cfg["seed"])
    workers = choose_loader_workers(cfg["data"]["loader_workers"], profile.device.type)
    settings = cfg["trainer"]
    return TrainingData(dataset, workers=workers, timeout=settings["worker_timeout"], accumulate=settings["accumulate"])

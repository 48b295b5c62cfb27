"""The parts of a training, built from its config."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger
from torch import nn

from medseg.blocks.encoders import NamedEncoder
from medseg.data.augment import make_augmentation
from medseg.data.check_landmarks import APART
from medseg.data.dataset import SegmentationDataset
from medseg.data.plan import NEVER_MIRRORED, Plan, check_stages
from medseg.data.prepared import PreparedDataset
from medseg.data.sampling import PatchDataset
from medseg.data.splits import make_splits
from medseg.device import DeviceProfile, choose_profile
from medseg.errors import BadDataset, UsageError
from medseg.io.weights import read_weights
from medseg.models import MODELS
from medseg.targets import Landmarks, Target
from medseg.targets.base import configure_target
from medseg.targets.contours import lost_structures
from medseg.training.checkpoints import AtomicCheckpointIO, RunPart
from medseg.training.loader import TrainingData, choose_loader_workers
from medseg.training.schedule import Budget, parse_max_time
from medseg.training.task import SegmentationTask

Config = Mapping[str, Any]
DEFAULT_EPOCHS = 100


def make_folds(dataset: SegmentationDataset, data: Config) -> list[dict[str, list[str]]]:
    """The dataset's folds, checked for subjects on both sides."""
    return make_splits(
        dataset,
        folds=data["folds"],
        seed=data["split_seed"],
        file=data["split_file"],
        group_by=data["group_by"],
        leave_out=data["leave_out"],
        own=data.get("own_split", True),
    )


def choose_folds(fold: int | str, count: int) -> list[int]:
    """``fold=all`` or one number -> the folds to train. Raises UsageError for a fold that is not there."""
    if fold == "all":
        return list(range(count))
    if not isinstance(fold, int) or not 0 <= fold < count:
        raise UsageError(f"fold is {fold!r} (must be 0..{count - 1} or all)")
    return [fold]


def make_profile(settings: Config) -> DeviceProfile:
    """Device profile of ``trainer``."""
    return choose_profile(
        settings["device"],
        settings["precision"],
        channels_last=settings["channels_last"],
        compile=settings["compile"],
        threads=settings["threads"],
    )


def make_target(settings: Config, dataset: SegmentationDataset) -> Target:
    """The target of ``target``, with the dataset's labels, regions and landmarks where it takes them."""
    return configure_target(settings, dataset.label_facts)


def check_model(name: str, target: Target, spatial_dims: int) -> None:
    """Refuse a model that cannot give what the target learns from, before any case is read.

    Args:
        name: of the model.
        target: of voxels or of points.
        spatial_dims: of the dataset.

    Raises:
        UsageError: points from a model of voxels, voxels from a model of points, or points in volumes.
    """
    gives_points = "structures" in MODELS.arguments(name)
    if gives_points == target.dense:
        gives, learns = ("points", "voxels") if gives_points else ("voxels", "points")
        problem = f"model {name} gives {gives}, and target {target.name} learns {learns}"
        raise UsageError(problem, fix="use model=hybridgnet with target=landmarks, and other models without it")
    if not target.dense and spatial_dims != 2:
        problem = f"target {target.name} is for 2D images, and the dataset is {spatial_dims}D"
        raise UsageError(problem, fix="use another model with target=exclusive")


def check_outlines(target: Target, masks: Iterable[np.ndarray]) -> None:
    """Refuse to learn landmarks from masks (H, W) of which none has an outline of one of the structures.

    Raises:
        BadDataset: naming the structures.
    """
    if isinstance(target, Landmarks) and target.from_masks:
        lost = lost_structures(masks, target.structures)
        if lost:
            problem = f"no training mask has a piece of its own for {', '.join(lost)}, so that nothing would be learnt"
            raise BadDataset(problem, fix=APART)


def start_heads(network: nn.Module, target: Target) -> None:
    """Let the last convolutions, ``network.heads``, begin where the target wants its logits, if it says so.

    Where a network adds its heads up (``network.sums_heads``), the bias goes to the first one.
    """
    heads = getattr(network, "heads", None)
    if target.head_start is None or not isinstance(heads, nn.Module):
        return
    bias, scale = target.head_start
    summed = bool(getattr(network, "sums_heads", False))
    for place, head in enumerate(module for module in heads.modules() if isinstance(module, nn.Conv2d | nn.Conv3d)):
        head.weight.data.mul_(scale)
        if head.bias is not None:
            head.bias.data.fill_(0.0 if summed and place else bias)


def model_arguments(settings: Config, plan: Plan, wanted: Config) -> dict[str, Any]:
    """Name and arguments of the model: as configured, with what the plan and the target decide filled in."""
    known = MODELS.arguments(settings["name"])
    seen = plan.in_slice()
    decided = {
        "spatial_dims": seen.spatial_dims,
        "in_channels": len(plan.channel_names),
        **wanted,
        "strides": [list(step) for step in seen.strides],
        "image_size": list(seen.patch_size),
    }
    given = {key: value for key, value in settings.items() if value is not None}
    if "depth" in given:
        del decided["strides"]
    elif "strides" in known and "strides" not in given:
        check_stages(plan)
    return {**{key: value for key, value in decided.items() if key in known}, **given}


def lasting_arguments(arguments: Config) -> dict[str, Any]:
    """What builds the network again from its model folder: without the file that its first weights came from."""
    return {key: value for key, value in arguments.items() if key != "pretrained"}


def load_encoder(network: nn.Module, path: str | Path) -> None:
    """Load a file of weights into a network whose encoder is a named backbone.

    Raises:
        UsageError: it has another encoder.
        InputRefused: the weights are of another backbone.
    """
    encoder = getattr(network, "encoder", None)
    if not isinstance(encoder, NamedEncoder):
        takes_them = "pretrained" in inspect.signature(type(network)).parameters
        fix = f"set model.pretrained={path}" if takes_them else "e.g. model=unet model.encoder=timm/resnet34"
        raise UsageError("a file of weights needs a named encoder", path=path, fix=fix)
    encoder.load_backbone(read_weights(path))


def fit_plan(plan: Plan, network: nn.Module, target: Target) -> Plan:
    """The plan for a network and a target.

    Its patch is rounded up to what the network can divide, and it mirrors only where the target allows that.

    Raises:
        UsageError: the user set a patch that is smaller than the network's divisor.
    """
    if not target.mirrors:
        reason = f"target {target.name} {NEVER_MIRRORED}"
        plan = plan.override(mirror_axes=(), mirror_swaps={}, reasons={**plan.reasons, "mirror_axes": reason})
    return fit_patch(plan, network)


def fit_patch(plan: Plan, network: nn.Module) -> Plan:
    """The plan with its patch rounded up to what the network can divide; errors as `fit_plan`."""
    divisor: Sequence[int] = network.divisor  # type: ignore[assignment]
    if "set by the user" in plan.reasons.get("patch_size", "") and np.less(plan.patch_size, divisor).any():
        problem = f"plan.patch_size {list(plan.patch_size)} is smaller than the network's divisor {list(divisor)}"
        raise UsageError(problem, fix="set a larger patch, or a network that halves less often")
    size = tuple(-(-n // d) * d for n, d in zip(plan.patch_size, divisor, strict=True))
    if size == plan.patch_size:
        return plan
    reason = f"{plan.reasons.get('patch_size', '')}; rounded up to multiples of {list(divisor)} for the network"
    return plan.override(patch_size=size, reasons={**plan.reasons, "patch_size": reason})


def make_task(cfg: Config, network: nn.Module, target: Target, profile: DeviceProfile) -> SegmentationTask:
    """Network, target, optimiser and budget as one Lightning module."""
    budget, ema = make_budget(cfg["trainer"]), cfg["trainer"]["ema"]
    return SegmentationTask(network, target, optimizer=cfg["optimizer"], budget=budget, profile=profile, ema=ema)


def make_budget(settings: Config) -> Budget:
    """The steps and the time that ``trainer`` allows."""
    seconds, epochs = parse_max_time(settings["max_time"]), settings["max_epochs"]
    if not seconds and not epochs:
        epochs = DEFAULT_EPOCHS
    return Budget(epochs * settings["steps_per_epoch"] if epochs else None, seconds)


def make_data(
    cfg: Config, prepared: PreparedDataset, plan: Plan, ids: Sequence[str], target: Target, profile: DeviceProfile
) -> TrainingData:
    """Patches of the training cases, augmented, with what the target learns from."""
    seen, augmentation = plan.in_slice(), {k: value for k, value in cfg["augmentation"].items() if value is not None}
    dataset = PatchDataset(
        prepared,
        plan,
        ids,
        seed=cfg["seed"],
        foreground_fraction=cfg["data"]["foreground_fraction"],
        augment=make_augmentation(augmentation.pop("name"), seen.spatial_dims, seen, **augmentation),
        whole=not target.dense,
        points=target.supervision == "points",
    )
    workers = choose_loader_workers(cfg["data"]["loader_workers"], profile.device.type)
    settings = cfg["trainer"]
    return TrainingData(dataset, workers=workers, timeout=settings["worker_timeout"], accumulate=settings["accumulate"])


def make_trainer(
    settings: Config, part: RunPart, profile: DeviceProfile, callbacks: Sequence[pl.Callback]
) -> pl.Trainer:
    """Lightning's trainer: one endless epoch, ended by the budget."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="pytorch_lightning|lightning")
    several = settings["devices"] != 1
    return pl.Trainer(
        default_root_dir=part.folder.path,
        accelerator="gpu" if profile.device.type == "cuda" else profile.device.type,
        devices=settings["devices"],
        # Processes are spawned with the composed config in hand, so that all of them share one run folder.
        strategy=settings["strategy"] if settings["strategy"] != "auto" or not several else "ddp_spawn",
        precision=profile.lightning_precision,  # type: ignore[arg-type]
        max_epochs=-1,
        gradient_clip_val=settings["gradient_clip"],
        accumulate_grad_batches=settings["accumulate"],
        callbacks=list(callbacks),
        plugins=[AtomicCheckpointIO(part)],
        logger=make_loggers(part.folder.path, settings["tensorboard"]),
        log_every_n_steps=20,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def make_loggers(folder: Path, tensorboard: bool) -> list[Logger]:
    """CSV always (``logs/version_N``, one per start of the run), TensorBoard events beside it."""
    loggers: list[Logger] = [CSVLogger(folder, name="logs")]
    return [*loggers, TensorBoardLogger(folder, name="tensorboard", version="")] if tensorboard else loggers

"""Settings of ``medseg train``, ``pretrain`` and ``adapt``."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from annotated_types import Ge, Le
from pydantic import AfterValidator, Strict, model_validator

from medseg.errors import UsageError
from medseg.settings.augmentation_group import AugmentationChoice, ViewSettings
from medseg.settings.base import Said, Seed, Settings, Some, UserPath, Word
from medseg.settings.data_group import DataSettings
from medseg.settings.parts import ModelPart, TargetPart, check_skips
from medseg.settings.plan_group import BatchSize, ImagePlanSettings, PlanSettings
from medseg.settings.trainer_group import OptimizerSettings, TrainerSettings

Fold = Annotated[int, Ge(0), Le(10_000)]
Plugins = Annotated[tuple[Word, ...], Strict(False), Said("a list of modules")]


class RunSettings(Settings):
    """What every verb that trains has."""

    data: DataSettings
    optimizer: OptimizerSettings
    trainer: TrainerSettings
    run_dir: UserPath
    seed: Seed
    resume: bool
    cache_dir: UserPath | None
    plugins: Plugins
    debug: bool


class TrainSettings(RunSettings):
    """The keys of ``configs/train.yaml``."""

    model: ModelPart
    target: TargetPart
    augmentation: AugmentationChoice
    fold: Fold | Literal["all"]
    pretrained: UserPath | None
    plan: PlanSettings


class PretrainSettings(RunSettings):
    """The keys of ``configs/pretrain.yaml``."""

    model: ModelPart
    views: ViewSettings
    fold: Fold
    batch_size: Annotated[int, Ge(2), Le(2**16)]
    projector: Annotated[int, Ge(1), Le(2**16)]
    redundancy: Annotated[float, Ge(0), Le(1e6)]
    plan: ImagePlanSettings


class ScaleSearch(Settings):
    """The keys of ``skip_scale`` in ``configs/adapt.yaml``."""

    mode: Literal["linear", "coordinate"]
    grid: Some[Annotated[float, Ge(-100), Le(100)]]
    tolerance: Annotated[float, Ge(0), Le(1)]


def _checked_skips(skips: Any) -> Any:
    return check_skips(skips, "skips")


Skips = Annotated[Any, AfterValidator(_checked_skips), Said("the name of a part, or a mapping of pyramid and edit")]


class AdaptSettings(RunSettings):
    """The keys of ``configs/adapt.yaml``."""

    model: UserPath
    augmentation: AugmentationChoice
    method: Literal["skip_tuner", "skip_scale", "head", "decoder", "all"]
    skips: Skips | None
    train: Literal["skips", "head", "skips+head", "decoder", "all"] | None
    skip_scale: ScaleSearch
    batch_size: BatchSize | None
    fold: Fold

    @model_validator(mode="after")
    def _together(self) -> Self:
        for key in ("skips", "train"):
            if self.method == "skip_scale" and getattr(self, key):
                raise UsageError(f"method=skip_scale trains nothing and takes no {key}=", fix=f"leave out {key}=")
        return self

"""Settings of ``trainer`` and ``optimizer``: how long, on what, and how the weights move."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from annotated_types import Ge, Gt, Le
from pydantic import AfterValidator, model_validator

from medseg.errors import UsageError
from medseg.settings.base import Count, Pair, PartialShare, Said, Settings, Share, Sparse, Threads
from medseg.settings.devices import Device, Precision, check_devices, check_precision
from medseg.settings.durations import MAX_TIME, checked_duration, seconds_of

Duration = Annotated[str, AfterValidator(checked_duration), Said(MAX_TIME)]


class TrainerSettings(Settings):
    """The keys of ``configs/trainer``."""

    max_epochs: Count | None
    steps_per_epoch: Count
    max_time: Duration | None
    device: Device
    precision: Precision
    channels_last: bool
    compile: bool
    gradient_clip: Annotated[float, Ge(0), Le(1e12)] | None
    accumulate: Annotated[int, Ge(1), Le(10_000)]
    ema: PartialShare
    val_every: Count | None
    checkpoint_minutes: Annotated[float, Ge(0), Le(100_000)]
    devices: Annotated[int, Ge(1), Le(1024)]
    strategy: Literal["auto", "ddp", "ddp_spawn", "ddp_fork", "fsdp"]
    threads: Threads | None
    worker_timeout: Annotated[float, Ge(1), Le(1_000_000)]
    progress: bool
    tensorboard: bool
    tta: bool

    @model_validator(mode="after")
    def _together(self) -> Self:
        check_precision("trainer.", self.device, self.precision)
        check_devices(self.device, self.devices, self.strategy)
        return self

    @property
    def max_seconds(self) -> float | None:
        """`max_time` in seconds."""
        return None if self.max_time is None else seconds_of(self.max_time)


class OptimizerSettings(Sparse):
    """The keys of ``configs/optimizer``: those of every optimizer, then those of SGD and those of Adam."""

    name: Literal["adamw", "adam", "sgd"]
    lr: Annotated[float, Gt(0), Le(1e3)]
    weight_decay: Annotated[float, Ge(0), Le(1e3)] = 0.0
    schedule: Literal["cosine", "poly", "step", "constant"] = "constant"
    warmup: Share = 0.0
    momentum: PartialShare | None = None
    dampening: Share | None = None
    nesterov: bool | None = None
    betas: Annotated[Pair[PartialShare], Said("two numbers, each at least 0 and below 1")] | None = None
    eps: Annotated[float, Gt(0), Le(1)] | None = None
    amsgrad: bool | None = None

    @model_validator(mode="after")
    def _together(self) -> Self:
        others = ("betas", "eps", "amsgrad") if self.name == "sgd" else ("momentum", "dampening", "nesterov")
        for key in others:
            if getattr(self, key) is not None:
                fix = f"leave out optimizer.{key}="
                raise UsageError(f"there is no key 'optimizer.{key}' with optimizer.name={self.name}", fix=fix)
        if self.nesterov and (not self.momentum or self.dampening):
            fix = "set optimizer.momentum=0.9, or optimizer.nesterov=false"
            raise UsageError("optimizer.nesterov=true needs momentum and no dampening", fix=fix)
        return self

    @property
    def arguments(self) -> dict[str, Any]:
        """Of the optimizer's own class: all but its name, what is decayed, and how the rate changes."""
        known = ("lr", "momentum", "dampening", "nesterov", "betas", "eps", "amsgrad")
        return {key: value for key in known if (value := getattr(self, key)) is not None}

"""What scripts/gpu_check.py checks: each function takes a `Setting` and returns a `Row`, and raises where it fails."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader

from medseg.device import choose_profile
from medseg.models import create_model
from medseg.targets import ExclusiveClasses

LABELS = {"background": 0, "organ": 1, "lesion": 2}
STRIDES = [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]]
MODELS = ("unet", "unetpp_nnunet")
TOLERANCE = {"bf16": 0.05, "fp16": 0.02}  # largest difference from the loss in fp32, relative
AGREEMENT = 0.99  # smallest share of voxels with the same label


@dataclass(frozen=True)
class Setting:
    """What is checked on, and how large.

    Attributes:
        device: ``"cuda"``, or ``"cpu"`` to try the checks themselves.
        gpus: number of GPUs.
        patch: voxels per axis of a training patch.
        width: channels of the networks' first level.
        steps: training steps per row.
        known: losses and times of the rows in fp32, by model, for the others to be compared with.
    """

    device: str = "cuda"
    gpus: int = 1
    patch: int = 64
    width: int = 32
    steps: int = 12
    known: dict[str, Training] = field(default_factory=dict)


@dataclass(frozen=True)
class Training:
    """Loss of every step, least seconds of one, peak memory of the device in MiB, and the trained weights."""

    losses: list[float]
    seconds: float
    mebibytes: float
    state: dict[str, Tensor]


@dataclass
class Row:
    """A line of the report: ``outcome`` is ok, failed or not run."""

    check: str
    outcome: str = "ok"
    figures: dict[str, float | int | str] = field(default_factory=dict)
    note: str = ""


class NotRun(Exception):
    """This machine has not what a check needs."""


Check = Callable[[Setting], Row]


def checks() -> Iterator[tuple[str, Check]]:
    """All checks by name, what matters most first."""
    for model in MODELS:
        for precision in ("fp32", "bf16", "fp16"):
            yield f"{model} {precision}", lambda s, m=model, p=precision: check_training(s, m, p)  # type: ignore[misc]
    yield "predict", check_predict
    yield "out of memory", check_out_of_memory
    yield "two GPUs", check_two_gpus


def volumes(shape: tuple[int, ...], count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noisy balls, each with a smaller one inside: images (B, 1, *S) float32, labels (B, 1, *S) int64."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in shape), indexing="ij")
    labels = []
    for _ in range(count):
        centre, radius = torch.rand(3, generator=generator) - 0.5, 0.3 + 0.3 * torch.rand(1, generator=generator)
        distance = torch.stack([a - c for a, c in zip(axes, centre, strict=True)]).square().sum(0).sqrt()
        labels.append((distance < radius).long() + (distance < radius / 2).long())
    label = torch.stack(labels)[:, None]
    return label + 0.5 * torch.randn(label.shape, generator=generator), label


class Watch(pl.Callback):
    """Loss and time of every step; written to a file, since processes that are spawned share nothing else."""

    def __init__(self, path: Path) -> None:
        self.path, self.losses, self.times = path, [], []  # type: ignore[var-annotated]

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Lightning hook."""
        self.started = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, task: Any, outputs: Any, *_: Any) -> None:
        """Lightning hook: reading the loss waits for the device."""
        self.losses.append(float(outputs["loss"]))
        self.times.append(time.perf_counter() - self.started)

    def on_train_end(self, trainer: pl.Trainer, task: Any) -> None:
        """Lightning hook."""
        if trainer.is_global_zero:
            state = {f"state.{k}": v.cpu().contiguous() for k, v in task.network.state_dict().items()}
            facts = {"losses": torch.tensor(self.losses), "times": torch.tensor(self.times)}
            save_file({**facts, **state}, self.path)

    def read(self) -> tuple[list[float], list[float], dict[str, torch.Tensor]]:
        """Losses, seconds of the steps, and the weights at the end."""
        found = load_file(self.path)
        state = {k.removeprefix("state."): v for k, v in found.items() if k.startswith("state.")}
        return found["losses"].tolist(), found["times"].tolist(), state


def train(setting: Setting, model: str, precision: str, *, devices: int = 1, strategy: str = "auto") -> Training:
    """A few steps of medseg's own training task on two generated volumes, the same in every precision."""
    from medseg.training.schedule import Budget
    from medseg.training.task import SegmentationTask

    profile = choose_profile(setting.device, precision)
    torch.manual_seed(0)
    network = create_model(model, spatial_dims=3, out_channels=3, base_channels=setting.width, strides=STRIDES)
    task = SegmentationTask(
        network, ExclusiveClasses(labels=LABELS), budget=Budget(max_steps=setting.steps), profile=profile, ema=0.9,
        optimizer={"name": "adamw", "lr": 1e-3, "weight_decay": 0.01, "schedule": "constant", "warmup": 0.0},
    )  # fmt: skip
    image, label = volumes((setting.patch,) * 3, 2, 0)
    batches = [{"image": image, "label": label, "case": ["generated"] * 2}] * setting.steps
    cuda = setting.device != "cpu"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        watch = Watch(Path(folder) / "watched.safetensors")
        pl.Trainer(
            accelerator="gpu" if cuda else "cpu", devices=devices, strategy=strategy, callbacks=[watch],
            precision=profile.lightning_precision, max_epochs=1, gradient_clip_val=12.0, logger=False,  # type: ignore[arg-type]
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            use_distributed_sampler=False, default_root_dir=folder,
        ).fit(task, DataLoader(batches, batch_size=None))  # type: ignore[arg-type]  # fmt: skip
        losses, times, state = watch.read()
    peak = torch.cuda.max_memory_allocated() / 2**20 if cuda else 0.0
    return Training(losses, statistics.median(times[len(times) // 4 :]), peak, state)


def check_training(setting: Setting, model: str, precision: str) -> Row:
    """Steps in one precision beside those in fp32: the losses agree, and the ratio of the times is told."""
    if precision == "bf16" and setting.device != "cpu" and not torch.cuda.is_bf16_supported():
        raise NotRun("the GPU has no bf16")
    if precision == "fp16" and setting.device == "cpu":
        raise NotRun("fp16 needs a GPU")
    found = train(setting, model, precision)
    figures: dict[str, Any] = {"s per step": found.seconds, "MiB": found.mebibytes, "last loss": found.losses[-1]}
    row = Row(f"{model} {precision}", figures=figures)
    require(all(map(math.isfinite, found.losses)), "a loss is not finite")
    if precision == "fp32":
        setting.known[model] = found
        require(found.losses[-1] < found.losses[0], "the loss does not fall")
        return row
    if model not in setting.known:
        raise NotRun("fp32 did not run")
    exact = setting.known[model]
    off = max(abs(a - b) / abs(b) for a, b in zip(found.losses, exact.losses, strict=True))
    figures |= {"fp32 time / this": exact.seconds / found.seconds, "loss off by": off}
    require(off <= TOLERANCE[precision], f"the loss is off by {off:.3f} of fp32's (at most {TOLERANCE[precision]})")
    return row


def member(setting: Setting, device: str, precision: str) -> Any:
    """The U-Net of the row in fp32, or an untrained one, as a member of a predictor."""
    from medseg.data.plan import Plan
    from medseg.inference.member import Member

    profile = choose_profile(device, precision)
    torch.manual_seed(0)
    network = create_model("unet", spatial_dims=3, out_channels=3, base_channels=setting.width, strides=STRIDES)
    if "unet" in setting.known:
        network.load_state_dict(setting.known["unet"].state)
    plan = Plan.from_dict({
        "dataset": "generated", "spatial_dims": 3, "channel_names": ["MR"], "labels": LABELS, "ignore_label": None,
        "spacing": [1.0, 1.0, 1.0], "patch_size": [setting.patch] * 3, "batch_size": 1, "strides": STRIDES,
        "normalization": [{"scheme": "none"}], "crop_nonzero": False, "mirror_axes": [0], "mirror_swaps": {},
    })  # fmt: skip
    return Member(profile.place(network.eval()), plan, ExclusiveClasses(labels=LABELS), profile)


@dataclass(frozen=True)
class Prediction:
    """Labels (*S), seconds, and what was given up for want of memory."""

    labels: Tensor
    seconds: float
    given_up: list[str]
    window_batch: int


def predict(setting: Setting, device: str, precision: str, window_batch: int = 1) -> Prediction:
    """A generated volume, larger than a window, by the windows of ``medseg predict``; no file is read."""
    from medseg.inference.fallback import WindowRunner
    from medseg.inference.sliding_window import stream_planes

    image = volumes((setting.patch * 3 // 2,) * 3, 1, 99)[0][0]
    one, runner = member(setting, device, precision), WindowRunner(window_batch, None)
    start = time.perf_counter()
    planes = list(
        stream_planes(lambda batch: runner.logits(one, batch), image, one.plan.patch_size, window_batch=window_batch)
    )
    seconds = time.perf_counter() - start
    return Prediction(torch.cat(planes).argmax(1), seconds, runner.steps, runner.window_batch)


def same_labels(a: Prediction, b: Prediction) -> float:
    """Share of the voxels."""
    return (a.labels == b.labels).double().mean().item()


def check_predict(setting: Setting) -> Row:
    """One volume on the device, in its own precision, against the CPU in fp32."""
    found, exact = predict(setting, setting.device, "auto"), predict(setting, "cpu", "fp32")
    same = same_labels(found, exact)
    figures: dict[str, Any] = {"s": found.seconds, "s on the CPU": exact.seconds, "voxels with the same label": same}
    row = Row("predict", figures=figures)
    require(same >= AGREEMENT, f"{same:.4f} of the voxels have the same label as on the CPU (at least {AGREEMENT})")
    return row


def check_out_of_memory(setting: Setting) -> Row:
    """With room for some of eight windows only, the batch is halved and the labels stay what they are."""
    if setting.device == "cpu":
        raise NotRun("needs a GPU whose memory can be limited")
    peaks, results = [], []
    for window_batch in (1, 8):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        results.append(predict(setting, setting.device, "fp32", window_batch))
        peaks.append(torch.cuda.max_memory_reserved())
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((peaks[0] + 0.25 * (peaks[1] - peaks[0])) / total)
    try:
        found = predict(setting, setting.device, "fp32", 8)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    same = same_labels(found, results[0])
    figures: dict[str, Any] = {"windows in the end": found.window_batch, "voxels with the same label": same}
    require(bool(found.given_up), "nothing ran out of memory")
    require(same >= AGREEMENT, f"{same:.4f} of the voxels have the same label as with room (at least {AGREEMENT})")
    return Row("out of memory", figures=figures, note="; ".join(found.given_up))


def check_two_gpus(setting: Setting) -> Row:
    """Two processes that see the same batches follow the losses of one."""
    if setting.gpus < 2:
        raise NotRun("one GPU" if setting.gpus else "no GPU")
    alone = setting.known.get("unet") or train(setting, "unet", "fp32")
    found = train(setting, "unet", "fp32", devices=2, strategy="ddp_spawn")
    off = max(abs(a - b) / abs(b) for a, b in zip(found.losses, alone.losses, strict=True))
    require(off <= 0.01, f"the loss is off by {off:.4f} of one GPU's (at most 0.01)")
    return Row("two GPUs", figures={"s per step": found.seconds, "loss off by": off})


def require(holds: bool, problem: str) -> None:
    """Raise AssertionError, with the problem, unless it holds."""
    if not holds:
        raise AssertionError(problem)

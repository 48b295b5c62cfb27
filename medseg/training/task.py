"""One training step: forward, loss, optimiser, moving average. Lightning turns the crank."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from medseg.device import DeviceProfile
from medseg.errors import InputRefused
from medseg.targets import Target
from medseg.training.ema import WeightAverage
from medseg.training.optimizers import make_optimizer
from medseg.training.schedule import Budget, learning_rate_factor


class TrainingTask(pl.LightningModule):
    """A network in training under a budget; a subclass adds the ``training_step`` that gives the loss.

    Args:
        network: what is trained.
        optimizer: ``{"name", "lr", "weight_decay", "schedule", "warmup", ...}``.
        budget: how long training lasts; the learning rate follows its progress.
        profile: memory format and compilation (Lightning does device and autocast).
        ema: decay of the moving average of the weights; 0 switches it off.

    Attributes:
        progress: share of the budget that is spent, 0..1, the same in every process.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        optimizer: Mapping[str, Any],
        budget: Budget,
        profile: DeviceProfile,
        ema: float = 0.99,
    ) -> None:
        super().__init__()
        self.network = profile.place(network)
        self.average = WeightAverage(network, ema) if ema else None
        self.budget, self.profile, self.optimizer_settings = budget, profile, dict(optimizer)
        self.progress, self.step_ended, self.stepped = 0.0, 0.0, False
        self._random_state: Tensor | None = None
        if profile.compile:
            self.network.compile()

    @property
    def final_network(self) -> nn.Module:
        """The network to validate and export: the average if there is one."""
        return self.network if self.average is None else self.average.network

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Lightning hook."""
        return make_optimizer(self.network, self.optimizer_settings)

    def check_settings(self) -> None:
        """Refuse settings of the optimiser and its schedule that cannot be, before anything is written."""
        self.configure_optimizers()
        learning_rate_factor(0.0, self.optimizer_settings["schedule"], self.optimizer_settings["warmup"])

    def on_train_start(self) -> None:
        """Start the clock; restore the random state of a resumed run, after everything that sets up has drawn."""
        self.budget.start()
        if self._random_state is not None:
            torch.set_rng_state(self._random_state)
        self._follow_progress(self.global_step)
        self.trainer.should_stop = self.progress >= 1

    def finite(self, loss: Tensor, cases: Sequence[str]) -> Tensor:
        """The loss, logged. Raises InputRefused, naming the cases, where it is not finite."""
        if not torch.isfinite(loss):
            raise InputRefused(
                f"the loss is {loss.item()} at step {self.global_step}, batch of cases {', '.join(cases)}",
                fix="run medseg check on the data, lower optimizer.lr, or use trainer.precision=fp32",
                written="The last checkpoint is kept.",
            )
        self.log("train/loss", loss.detach(), prog_bar=True)
        return loss

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set the learning rate for the progress so far."""
        self.stepped = False
        settings = self.optimizer_settings
        factor = learning_rate_factor(self.progress, settings["schedule"], settings["warmup"])
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = settings["lr"] * factor

    def on_train_batch_end(self, *_: Any) -> None:
        """Lightning calls this after the callbacks: from here on, time passes waiting for the next batch."""
        self.step_ended = time.monotonic()

    def _follow_progress(self, step: int) -> None:
        """With a time limit every process follows the first one's clock, or they would stop at different steps."""
        self.progress = self.trainer.strategy.broadcast(self.budget.progress(step))

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Lightning hook: after the step, the average follows."""
        super().optimizer_step(*args, **kwargs)
        self.stepped = True
        self._follow_progress(self.global_step + 1)  # Lightning counts this step when the hook returns
        if self.average is not None:
            self.average.update(self.network)

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Lightning does not clip for fused optimisers, whose steps may unscale gradients; on a CPU none is scaled."""
        if self.device.type == "cpu" and gradient_clip_val:
            nn.utils.clip_grad_norm_(self.network.parameters(), gradient_clip_val)
        else:
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The time spent and the random numbers of dropout belong to the state."""
        checkpoint["elapsed"], checkpoint["random_state"] = self.budget.elapsed(), torch.get_rng_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue the clock, and the random numbers of dropout."""
        self.budget.spent, self._random_state = checkpoint["elapsed"], checkpoint["random_state"]


class SegmentationTask(TrainingTask):
    """A network and its target in training.

    Args:
        network: maps (B, C, *S) to what the target knows a loss for, e.g. logits (B, K, *S) or a list of them.
        target: turns labels and logits into a loss.
        optimizer, budget, profile, ema: as for `TrainingTask`.
    """

    def __init__(
        self,
        network: nn.Module,
        target: Target,
        *,
        optimizer: Mapping[str, Any],
        budget: Budget,
        profile: DeviceProfile,
        ema: float = 0.99,
    ) -> None:
        super().__init__(network, optimizer=optimizer, budget=budget, profile=profile, ema=ema)
        self.target = target

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """batch: ``image`` (B, C, *S), what the target learns from, ``case`` B ids -> scalar loss."""
        logits = self.network(self.profile.place_batch(batch["image"]))
        return self.finite(self.target.loss(logits, self.target.encode(batch[self.target.supervision])), batch["case"])

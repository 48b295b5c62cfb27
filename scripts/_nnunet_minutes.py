"""Train nnU-Net v2's own trainer for so many seconds: called by bench_hippocampus.py in its environment."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import torch
from nnunetv2.run.run_training import get_trainer_from_args


def main(dataset: str, fold: int, seconds: float) -> None:
    """nnU-Net's training loop, step by step as its run_training has it, ended by the clock."""
    trainer = get_trainer_from_args(
        dataset, "3d_fullres", fold, "nnUNetTrainer", "nnUNetPlans", device=torch.device("cpu")
    )
    trainer.on_train_start()
    start, steps = time.monotonic(), 0
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    while time.monotonic() - start < seconds:
        trainer.train_step(next(trainer.dataloader_train))
        steps += 1
        if steps % trainer.num_iterations_per_epoch == 0:  # the learning rate follows nnU-Net's own 1,000 epochs
            trainer.current_epoch += 1
            trainer.lr_scheduler.step(trainer.current_epoch)
    trainer.save_checkpoint(os.path.join(trainer.output_folder, "checkpoint_final.pth"))
    base = Path(os.environ["nnUNet_results"]).parent  # noqa: SIM112
    (base / "facts.json").write_text(json.dumps({"steps": steps, "seconds": time.monotonic() - start}))
    os._exit(0)  # its augmentation workers do not end by themselves when training is cut short


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))

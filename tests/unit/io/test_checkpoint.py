"""Checkpoints: tensors, plain data and random states come back."""

from __future__ import annotations

import random
from pathlib import Path

import torch

from medseg.io import load_checkpoint, save_checkpoint


def test_a_training_state_comes_back(tmp_path: Path) -> None:
    layer = torch.nn.Linear(2, 3)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.rand(4, 2)).sum().backward()
    optimizer.step()
    state = {
        "model": layer.state_dict(),
        "optimizer": optimizer.state_dict(),
        "rng": {"torch": torch.get_rng_state(), "python": random.getstate()},
        "epoch": 3,
        "best": 0.9,
        "ids": ["a", "b"],
        "nothing": None,
    }
    save_checkpoint(tmp_path / "last.ckpt", state)
    loaded = load_checkpoint(tmp_path / "last.ckpt")
    assert loaded.keys() == state.keys()
    assert torch.equal(loaded["model"]["weight"], layer.weight)
    assert torch.equal(loaded["rng"]["torch"], state["rng"]["torch"])
    assert loaded["rng"]["python"] == state["rng"]["python"]
    assert (loaded["epoch"], loaded["best"], loaded["ids"], loaded["nothing"]) == (3, 0.9, ["a", "b"], None)
    torch.optim.AdamW(layer.parameters()).load_state_dict(loaded["optimizer"])

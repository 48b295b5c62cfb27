"""Checkpoints: tensors, plain data and random states come back."""

from __future__ import annotations

import random
from pathlib import Path

import torch

from medseg.errors import UnreadableFile
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


def test_no_damage_of_the_archives_directory_lets_tensors_be_what_memory_held(tmp_path: Path) -> None:
    path, weight = tmp_path / "a.ckpt", torch.arange(40.0)
    save_checkpoint(path, {"weight": weight})
    whole = path.read_bytes()
    refused = set()
    for at in range(whole.index(b"PK\x01\x02"), len(whole)):
        for bits in (0x10, 0xFF):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ bits]) + whole[at + 1 :])
            try:
                assert torch.equal(load_checkpoint(path)["weight"], weight), (at, bits)
            except UnreadableFile as error:
                refused.add(error.problem)
    assert any("marked as a folder" in line for line in refused)

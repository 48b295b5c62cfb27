"""The U-Net with default skips computes exactly what a hand-written one with the same layers computes."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[3] / "scripts" / "bench_skips.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench_skips", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_outputs_and_gradients_are_those_of_a_hand_written_unet(bench, spatial_dims: int) -> None:
    ours, hand = bench.twins(spatial_dims, base_channels=4, depth=2)
    assert [p.shape for p in ours.parameters()] == [p.shape for p in hand.parameters()]
    image = torch.randn(2, 1, *[8, 12, 4][:spatial_dims])
    outputs = [model(image) for model in (ours, hand)]
    assert torch.equal(*outputs)
    for out in outputs:
        out.square().mean().backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(ours.parameters(), hand.parameters(), strict=True))


def test_families_are_matched_in_parameters(bench) -> None:
    sizes = {
        family: bench.parameters(bench.build(family, 2, width, 2)) for family, width in bench.matched(2, 2).items()
    }
    assert set(sizes) == set(bench.FAMILIES)
    assert max(sizes.values()) <= 1.1 * min(sizes.values())

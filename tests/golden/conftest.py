"""Networks with weights made by a rule, compared with a plain definition and with stored numbers, all in float64.

The definitions are written from the papers, by formulas and torch's primitives, not with medseg's blocks. The stored
numbers (outputs.json) are theirs: ``MEDSEG_RECORD=1 pytest tests/golden`` writes them anew.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

RECORD = Path(__file__).with_name("outputs.json")
PRIME = 10_007


class Weights:
    """Tensors of a state dict below a prefix: ``w.at("encoder")["weight"]``."""

    def __init__(self, state: Mapping[str, Tensor], prefix: str = "") -> None:
        self._state, self._prefix = state, prefix

    def at(self, *names: object) -> Weights:
        return Weights(self._state, self._prefix + "".join(f"{name}." for name in names))

    def __getitem__(self, name: str) -> Tensor:
        return self._state[self._prefix + name]

    def get(self, name: str) -> Tensor | None:
        return self._state.get(self._prefix + name)


def numbers(shape: tuple[int, ...], seed: int) -> Tensor:
    """Numbers of -1 to 1 that whole-number arithmetic gives: the same on every processor."""
    k = torch.arange(int(torch.Size(shape).numel()), dtype=torch.int64)
    return ((k * k * 31 + k * 7_919 + seed * 104_729) % PRIME).double().view(shape) * (2 / PRIME) - 1


def fill(model: nn.Module) -> nn.Module:
    """The model in float64 and evaluation, every weight and running statistic by the rule, none of them neutral."""
    model = model.double().eval()
    for seed, (name, tensor) in enumerate(model.state_dict().items()):
        if not tensor.is_floating_point():
            continue
        values = numbers(tuple(tensor.shape), seed + 1)
        if tensor.ndim > 1 and not name.endswith(("temperature", "position", "table")):
            values *= (6 / tensor[0].numel()) ** 0.5  # of He's deviation
        elif name.endswith(("weight", "running_var", "temperature")):
            values = 1 + 0.5 * values
        tensor.copy_(values)
    return model


def summary(out: Tensor) -> list[float]:
    """Mean, root mean square, and eight values from all over a tensor."""
    flat = out.detach().flatten()
    places = torch.linspace(0, len(flat) - 1, 8).long()
    return [flat.mean().item(), flat.square().mean().sqrt().item(), *flat[places].tolist()]


@pytest.fixture(scope="session")
def stored() -> Any:
    values = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    yield values
    if os.environ.get("MEDSEG_RECORD"):
        lines = [f'"{name}": {json.dumps([float(f"{v:.12g}") for v in values[name]])}' for name in sorted(values)]
        RECORD.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


@pytest.fixture
def assert_defined(stored: dict[str, list[float]]) -> Callable[..., None]:
    """``assert_defined(name, model, definition, *shape)``: outputs for an image of that shape are the definition's."""

    def check(name: str, model: nn.Module, definition: Callable[[Weights, Tensor], Tensor], *shape: int) -> None:
        model, image = fill(model), numbers(shape, 0)
        with torch.no_grad():
            expected = definition(Weights(model.state_dict()), image)
            found = model(image)
        assert expected.abs().max() > 1e-3, "the definition says nothing"
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)
        if os.environ.get("MEDSEG_RECORD"):
            stored[name] = summary(expected)
        assert summary(found) == pytest.approx(stored[name], rel=1e-7, abs=1e-8)

    return check

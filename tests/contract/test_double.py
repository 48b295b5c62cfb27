"""In float64 every registered network and skip part computes in float64 throughout: what gradient checks stand on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from medseg.blocks.norm import CHANNELS_LAST
from medseg.blocks.skip.path import skip_conditions
from medseg.models import create_model
from medseg.testing import PathAlone, image_of, model_cases, skip_cases, tiny_arguments


class OnlyDouble(TorchDispatchMode):
    """Collects the operations that make a narrower number of a float64."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        seen, made = ({leaf.dtype for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)} for tree in (args, out))
        if torch.float64 in seen and made & {torch.float32, torch.bfloat16, torch.float16}:
            self.narrow.append(str(function))
        return out


def check(module: nn.Module, image: Tensor) -> None:
    """Forward in training and evaluation, and the backward pass; gradients are finite."""
    with OnlyDouble() as mode:
        leaves = tree_leaves(module.train()(image))
        torch.stack([leaf.square().mean() for leaf in leaves]).sum().backward()
        module.eval()(image)
    assert not mode.narrow, mode.narrow[:3]
    assert all(leaf.dtype == torch.float64 for leaf in leaves)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize(("name", "spatial_dims"), model_cases())
def test_model(name: str, spatial_dims: int) -> None:
    torch.manual_seed(0)
    model = create_model(name, **tiny_arguments(name, spatial_dims)).double()
    image = image_of(model, 2).double()
    check(model, image.contiguous(memory_format=CHANNELS_LAST[image.ndim]))  # as trained, with the norms made for it


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize(("role", "part"), skip_cases())
def test_skip_part(role: str, part: str, spatial_dims: int) -> None:
    torch.manual_seed(0)
    alone = PathAlone({role: part}, spatial_dims).double()
    image = torch.randn(2, 1, *(9, 7, 5)[:spatial_dims], dtype=torch.float64)
    given = {name: torch.randn(2, n, *image.shape[2:]).double() for name, n in alone.skips.needs.items()}
    with skip_conditions(alone, **given):
        check(alone, image.requires_grad_())

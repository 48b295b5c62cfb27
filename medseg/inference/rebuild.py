"""A network built again from a model folder: drawn on torch's meta device and compared before any memory is taken."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from medseg.device import without_memory
from medseg.errors import InputRefused, UnreadableFile, some
from medseg.inference.description import naming

PER_TENSOR = 16  # modules and parameters that a constructor may make for each tensor of the weights


def rebuild(build: Callable[[], nn.Module], state: Mapping[str, Tensor], folder: Path, name: str) -> nn.Module:
    """The network of a model folder with its weights, on the CPU.

    Args:
        build: makes the network from what model.json says; called on the meta device first.
        state: name -> tensor, as `medseg.io.load_model` gives it.
        folder: to name in errors.
        name: of the model.

    Raises:
        UnreadableFile: the network that the arguments promise is not the one that the weights are of.
        InputRefused: a weight is NaN or infinite.
    """
    with naming(folder):
        drawn = _drawn(build, len(state))
    problems = _differences(drawn.state_dict(), state)
    if problems:
        problem = f"the weights are not those of model '{name}' in model.json: {some(problems, 3)}"
        raise UnreadableFile(problem, path=folder, fix="use a folder that medseg train wrote")
    check_finite(state, folder)
    network = build()
    network.load_state_dict(dict(state))
    return network


def check_finite(state: Mapping[str, Tensor], folder: Path) -> None:
    """Refuse weights that would make every prediction nonsense.

    Raises:
        InputRefused: naming the first tensor with NaN or infinite numbers.
    """
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            count = int((~tensor.isfinite()).sum())
            problem = f"{count} of the {tensor.numel()} weights of '{name}' are NaN or infinite"
            raise InputRefused(problem, path=folder, fix="train the model again; best/ may hold an earlier state")


def _drawn(build: Callable[[], nn.Module], tensors: int) -> nn.Module:
    """The network without numbers; on the CPU where a part of it, of another package, cannot do without."""
    with _at_most(PER_TENSOR * tensors + 1000):
        try:
            with without_memory():
                return build()
        except (NotImplementedError, RuntimeError, TypeError) as error:
            if "meta" not in str(error):
                raise
        return build()


@contextlib.contextmanager
def _at_most(parts: int) -> Iterator[None]:
    """Stop a constructor that makes far more modules and parameters than the weights have."""
    made = 0

    def count(module: nn.Module, name: str, part: object) -> None:
        nonlocal made
        made += 1
        if made > parts:
            raise UnreadableFile("model.json: model has far more layers than the weights", fix="copy the folder again")

    hooks = [register_module_module_registration_hook(count), register_module_parameter_registration_hook(count)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _differences(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """What the folder's weights lack, have too much, or have in another shape or type."""
    problems = [f"{name} is missing" for name in wanted if name not in state]
    problems += [f"{name} is unknown" for name in state if name not in wanted]
    for name, tensor in wanted.items():
        if name in state and (state[name].shape, state[name].dtype) != (tensor.shape, tensor.dtype):
            found, expected = (f"{str(t.dtype)[6:]} {tuple(t.shape)}" for t in (state[name], tensor))
            problems.append(f"{name} is {found}, not {expected}")
    return problems

"""An adapter put on top of its base model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from medseg.blocks.skip.attach import add_settings
from medseg.errors import UnreadableFile, UsageError
from medseg.inference.description import model_arguments, naming
from medseg.io import load_adapter, model_fingerprint


def base_of(adapter: Path) -> Path:
    """The folder of the model that an adapter was made of. Raises UnreadableFile where it is gone."""
    path = Path(load_adapter(adapter)[1]["base"]["path"])
    if not path.is_dir():
        raise UnreadableFile(f"its base model {path} is not there", path=adapter, fix="give model=BASE adapter=FOLDER")
    return path


def adapted(
    base: Path, state: Mapping[str, Tensor], description: Mapping[str, Any], adapter: str | Path
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State and description of a model with its adapter, in the form that the base itself has.

    Args:
        base: folder of the base model.
        state: its state.
        description: its description.
        adapter: folder of the adapter.

    Raises:
        UsageError: the adapter was made of another model.
    """
    changed, facts = load_adapter(adapter)
    own, wanted = model_fingerprint(base), str(facts["base"]["fingerprint"])
    if own != wanted:
        problem = f"is of another model: weights {wanted[:12]}..., those of {base} are {own[:12]}..."
        raise UsageError(problem, path=adapter, fix=f"use model={facts['base']['path']}, or adapt this model")
    with naming(Path(adapter)):
        model = with_skips(model_arguments(description.get("model")), facts.get("skips"))
    return {**state, **changed}, {**description, "model": model}


def with_skips(model: Mapping[str, Any], more: Mapping[str, Any] | None) -> dict[str, Any]:
    """Name and arguments of a model with further parts on its skip path."""
    arguments = dict(model)
    if more:
        arguments["skips"] = add_settings(arguments.pop("skips", arguments.pop("skip", None)), more)
    return arguments

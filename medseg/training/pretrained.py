"""A pretrained encoder on disk, and how a training starts from it: every tensor or none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medseg.data.unlabelled import source_ids
from medseg.device import without_memory
from medseg.errors import UnreadableFile, UsageError, some
from medseg.inference.description import model_arguments, naming
from medseg.inference.rebuild import check_finite
from medseg.io import load_model, save_model
from medseg.training.setup import lasting_arguments

ENCODER = "encoder"  # folder within a pretraining's run, and the attribute of a model
SHOWN = 8  # of the names that do not match


@dataclass(frozen=True)
class PretrainedEncoder:
    """Weights of an encoder and what is known of them.

    Attributes:
        folder: where they lie.
        state: name -> tensor, as of ``model.encoder``.
        model: name and arguments of the model that the encoder was part of.
        cases: the images that it has seen.
    """

    folder: Path
    state: dict[str, Tensor]
    model: dict[str, Any]
    cases: tuple[str, ...]

    def adopt(self, arguments: Mapping[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
        """Model arguments with the pretrained strides and table of positions, unless the user chose others."""
        rivals: dict[str, tuple[str, ...]] = {"strides": ("strides", "depth")}
        if "structures" not in arguments:  # networks of landmarks see images of their own size only
            rivals["image_size"] = ("image_size",)
        free = [key for key, keys in rivals.items() if not any(chosen.get(one) for one in keys)]
        return {**arguments, **{key: self.model[key] for key in free if key in arguments and key in self.model}}

    @torch.no_grad()
    def load_into(self, network: nn.Module) -> dict[str, Any]:
        """Give a freshly initialised network these encoder weights; returns the facts, and prints them.

        Raises:
            UsageError: a tensor that only one side has, or of another shape: nothing is loaded then.
        """
        encoder = encoder_of(network, str(self.model.get("name")))
        fresh = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
        wrong = list(mismatches(self.state, fresh))
        if wrong:
            problem = f"the encoder of {self.model.get('name')} does not fit: {some(wrong, SHOWN)}"
            fix = f"train the model that was pretrained, with its arguments ({self.folder / 'model.json'})"
            raise UsageError(problem, path=self.folder, fix=fix)
        encoder.load_state_dict(self.state)
        changed = sum(not torch.equal(fresh[name], tensor) for name, tensor in encoder.state_dict().items())
        facts = {"from": str(self.folder), "tensors": len(fresh), "changed": changed}
        print(f"medseg: encoder from {self.folder}: {len(fresh)} tensors, {changed} differ from the fresh ones")
        return facts

    def warn_of_overlap(self, validation: Sequence[str]) -> None:
        """Say so when pretraining has seen images that will validate."""
        seen = set[str]().union(*map(source_ids, self.cases)) & set(validation)
        if seen:
            print(
                f"medseg: warning: pretraining has seen {len(seen)} of the {len(validation)} validation images, e.g. "
                f"{min(seen)} (pretrain with the same data.split_file and fold to leave them out)"
            )


def load_pretrained(path: str | Path) -> PretrainedEncoder:
    """Read the encoder of a pretraining's run folder, or that folder's ``encoder``.

    Raises:
        UnreadableFile: there is none, or it is damaged.
        UnsafeArtefact: as `medseg.io.load_model`.
    """
    path = Path(path)
    folder = path / ENCODER if (path / ENCODER).is_dir() else path
    state, description = load_model(folder)
    facts = description.get("pretraining")
    if not isinstance(facts, dict) or not isinstance(description.get("model"), dict):
        fix = "give the run folder of medseg pretrain"
        raise UnreadableFile("is a model, not a pretrained encoder", path=folder, fix=fix)
    cases = facts.get("cases", [])
    if not isinstance(cases, list) or not all(isinstance(case, str) for case in cases):
        raise UnreadableFile("model.json: pretraining.cases are no names", path=folder, fix="pretrain again")
    with naming(folder):
        arguments = model_arguments(lasting_arguments(description["model"]))
    check_finite(state, folder)
    return PretrainedEncoder(folder, state, arguments, tuple(cases))


def save_pretrained(run: Path, encoder: nn.Module, description: Mapping[str, Any]) -> Path:
    """Write an encoder as a model folder (safetensors and JSON with its SHA-256) into a run; returns that folder."""
    save_model(run / ENCODER, encoder.state_dict(), description)
    return run / ENCODER


def encoder_of(network: nn.Module, name: str) -> nn.Module:
    """``network.encoder``. Raises UsageError for a model without one, naming models that have one."""
    encoder = getattr(network, ENCODER, None)
    if isinstance(encoder, nn.Module):
        return encoder
    raise UsageError(f"model '{name}' has no encoder of its own", fix=f"choose e.g. {', '.join(with_encoder())}")


def with_encoder() -> list[str]:
    """Names of the models that have an encoder of their own; built on the meta device, without memory."""
    from medseg.models import MODELS

    with without_memory():
        return [name for name in MODELS.names() if isinstance(getattr(MODELS.build(name), ENCODER, None), nn.Module)]


def mismatches(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """What keeps a state from being loaded: missing and superfluous names, and shapes, file against network."""
    out = [f"{name} is missing" for name in wanted if name not in given]
    out += [f"{name} is unknown" for name in given if name not in wanted]
    for name in wanted:
        if name in given and given[name].shape != wanted[name].shape:
            out.append(f"{name} is {list(given[name].shape)} (network {list(wanted[name].shape)})")
    return out

"""What a model folder's model.json must say before a network is built of it: types, ranges, and one story throughout.

The file came from somewhere: whatever stands in it is refused in one line that names the field, as `UnreadableFile`.
Types are those that the constructors themselves declare: the arguments of the model and of the target are checked
against the annotations of their factories, the plan against its dataclass, all by pydantic in strict mode. Further keys
at the top (``training``, ``metrics`` and what later versions or users add) are left alone; within ``model``,
``target`` and ``plan`` an unknown key is refused by what is built of it.
"""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_type_hints

from annotated_types import Ge, Gt, Le, Len, Lt
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from medseg.data.plan import Plan
from medseg.errors import MedsegError, UnreadableFile, UnsafeArtefact
from medseg.inference.plan_ranges import Ranges, Scheme, check_ranges
from medseg.inference.postprocess import check_operation
from medseg.io.volume import SPACING_LIMITS
from medseg.models import MODELS
from medseg.targets import TARGETS, Target, build_target

LARGEST = 2**20  # of any number among a model's arguments: no layer is as wide, no network as deep
FILES = ("pretrained",)  # arguments of models that name a file to read
FIX = "copy or train the model again"

Count = Annotated[int, Gt(0), Le(2**50)]
OWN_TYPES: dict[str, Any] = {  # of a plan in JSON, where they are narrower or wider than the dataclass's
    "spatial_dims": Literal[2, 3],
    "labels": Annotated[dict[str, Annotated[int, Ge(0), Lt(2**31)]], Len(1)],
    "channel_names": Annotated[list[str], Len(1)],
    "spacing": list[Annotated[float, Ge(SPACING_LIMITS[0]), Le(SPACING_LIMITS[1])]],
    "patch_size": list[Annotated[int, Gt(0), Le(LARGEST)]],
    "size": list[Annotated[int, Gt(0), Le(LARGEST)]] | None,
    "batch_size": Annotated[int, Gt(0), Le(LARGEST)],
    "strides": list[int | list[int]],  # a number stands for every axis
    "normalization": list[Scheme],
    "slice_axis": Literal[0, 1, 2] | None,
    "color": Literal["keep", "rgb", "grey"],
    "ranges": Ranges,
}


class Operation(BaseModel):
    """One step of post-processing, see `medseg.inference.postprocess`; what else it says, as its gain, is a remark."""

    model_config = ConfigDict(frozen=True, strict=True, extra="allow", allow_inf_nan=False)

    operation: str
    label: int
    ml: Annotated[float, Gt(0), Le(1e9)] | None = None
    size: Annotated[int, Gt(0), Le(1024)] | None = None
    gain: float | None = None


class Described(NamedTuple):
    """The checked parts of a model.json.

    Attributes:
        arguments: name and arguments of the model.
        window_bytes: of activations for one window in float32; None where it does not say.
    """

    arguments: dict[str, Any]
    plan: Plan
    target: Target
    operations: tuple[dict[str, Any], ...]
    window_bytes: int | None


def described(description: Mapping[str, Any], folder: Path, *more: str) -> Described:
    """The parts of a description that a prediction needs.

    Args:
        description: as `medseg.io.load_model` gives it.
        folder: to name in errors.
        more: keys that must be there too.

    Raises:
        UnreadableFile: a part is missing, of another type, out of its range, or contradicts another.
        UnsafeArtefact: the model's arguments name a file.
    """
    missing = [key for key in ("model", "plan", "target", *more) if key not in description]
    if missing:
        raise UnreadableFile(f"model.json lacks {', '.join(missing)}", path=folder, fix=FIX)
    with naming(folder):
        arguments = model_arguments(description["model"])
        plan = read_plan(description["plan"])
        target = read_target(description["target"])
        _check_together(arguments, plan, target)
        operations = _operations(description.get("postprocessing", []), plan)
        window_bytes = description.get("window_bytes")
        if window_bytes is not None:
            _check("window_bytes", Count, window_bytes, "expected a number of bytes: ")
    return Described(arguments, plan, target, operations, window_bytes)


@contextlib.contextmanager
def naming(folder: Path) -> Iterator[None]:
    """Whatever goes wrong with what a model.json says is told as a fault of that file."""
    try:
        yield
    except (UnreadableFile, UnsafeArtefact) as error:
        error.path = error.path or folder
        error.args = (str(error),)
        raise
    except MedsegError as error:
        raise UnreadableFile(f"model.json: {error.problem}", path=folder, fix=error.fix or FIX) from None
    except Exception as error:  # constructors may fail in any way on settings that nobody would write
        reason = (str(error).splitlines() or [""])[0][:200]
        problem = f"model.json: what it says cannot be built ({type(error).__name__}: {reason})"
        raise UnreadableFile(problem, path=folder, fix=FIX) from error


def model_arguments(model: Any) -> dict[str, Any]:
    """Name and arguments of a model, each of the type that its constructor declares.

    Raises:
        UnreadableFile: another type, or a number that no network has.
        UnsafeArtefact: an argument that names a file: a folder's weights are those beside it.
        UsageError: an unknown model.
    """
    name = _name("model", model)
    for key in FILES:
        if model.get(key):
            problem = f"model.json: model.{key} names a file to read (expected none: the weights are in the folder)"
            raise UnsafeArtefact(problem, fix="remove it, or train the model again")
    _check_sizes("model", model)
    arguments = {key: value for key, value in model.items() if key not in FILES}
    for key, value in arguments.items():
        if isinstance(value, int | float) and value < 0:
            raise UnreadableFile(f"model.json: model.{key} is {value} (expected at least 0)", fix=FIX)
    _check_arguments("model", MODELS.get(name), arguments)
    return arguments


def read_plan(settings: Any) -> Plan:
    """A plan whose every setting has its type and is within what images of bodies have."""
    if not isinstance(settings, Mapping):
        raise UnreadableFile(f"model.json: plan is {_shown(settings)} (expected an object)", fix=FIX)
    for key, kind in {**_hints(Plan), **OWN_TYPES}.items():
        if key in settings:
            _check(f"plan.{key}", kind, settings[key])
    plan = Plan.from_dict(settings)
    check_ranges(plan)
    return plan


def read_target(settings: Any) -> Target:
    """A target whose settings are taken as they stand: none is read as something else."""
    name = _name("target", settings)
    _check_arguments("target", TARGETS.get(name), settings)
    target = build_target(settings)
    told = json.loads(json.dumps(target.to_dict()))
    for key, value in settings.items():
        if key in told and value is not None and told[key] != value:
            problem = f"model.json: target.{key} is {_shown(value)}, which would be read as {_shown(told[key])}"
            raise UnreadableFile(problem, fix=FIX)
    return target


def _check_together(arguments: Mapping[str, Any], plan: Plan, target: Target) -> None:
    """Model, plan and target speak of the same channels, dimensions and labels."""
    declared = inspect.signature(MODELS.get(arguments["name"])).parameters
    wanted = {"spatial_dims": plan.in_slice().spatial_dims, "in_channels": len(plan.channel_names)}
    if target.dense:
        wanted["out_channels"] = target.out_channels
    for key, value in wanted.items():
        if key in declared and arguments.get(key, declared[key].default) != value:
            problem = f"model.json: model.{key} is {arguments.get(key)} (plan and target say {value})"
            raise UnreadableFile(problem, fix=FIX)
    told = target.to_dict()
    for key in ("labels", "ignore_label") if target.dense else ("labels",):
        if told[key] != getattr(plan, key):
            problem = f"model.json: target.{key} is {_shown(told[key])}, plan.{key} {_shown(getattr(plan, key))}"
            raise UnreadableFile(problem, fix=FIX)


def _operations(steps: Any, plan: Plan) -> tuple[dict[str, Any], ...]:
    _check("postprocessing", list[Operation], steps)
    for step in steps:
        check_operation(step)
        if step["label"] not in set(plan.labels.values()) - {0}:
            problem = f"model.json: postprocessing is of label {step['label']}, which plan.labels lack"
            raise UnreadableFile(problem, fix=FIX)
    return tuple(steps)


def _name(part: str, settings: Any) -> str:
    if not isinstance(settings, Mapping) or not isinstance(settings.get("name"), str):
        raise UnreadableFile(f"model.json: {part} is {_shown(settings)} (expected an object with a name)", fix=FIX)
    return str(settings["name"])


def _check_sizes(field: str, value: Any) -> None:
    """No number beyond `LARGEST`, none that is not finite; at any depth."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check_sizes(f"{field}.{key}", item)
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            _check_sizes(f"{field}[{number}]", item)
    elif isinstance(value, int | float) and not abs(value) <= LARGEST:
        problem = f"model.json: {field} is {_shown(value)} (expected numbers within {LARGEST})"
        raise UnreadableFile(problem, fix=FIX)


def _check_arguments(part: str, factory: Any, settings: Mapping[str, Any]) -> None:
    hints = _hints(factory)
    for key, value in settings.items():
        if key in hints and key != "name":
            _check(f"{part}.{key}", hints[key], value)


@cache
def _hints(factory: Any) -> dict[str, Any]:
    """What the parameters of a class or function are annotated with; nothing where that cannot be told."""
    with contextlib.suppress(NameError, TypeError):
        return get_type_hints(factory.__init__ if inspect.isclass(factory) else factory)
    return {}


def _check(field: str, kind: Any, value: Any, expected: str = "") -> None:
    """Refuse a value, as JSON holds it, that is not strictly of a type."""
    try:
        _adapter(kind).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = field + "".join(f".{part}" if isinstance(part, str) else f"[{part}]" for part in _within(value, first))
        problem = f"model.json: {where} is {_shown(first['input'])} ({expected}{first['msg']})"
        raise UnreadableFile(problem, fix=FIX) from None


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _within(value: Any, error: Any) -> list[str | int]:
    """The path to a value, without the names of a union's members that pydantic puts into it."""
    path: list[str | int] = []
    for part in error["loc"]:
        with contextlib.suppress(KeyError, IndexError, TypeError):
            value = value[part]
            path.append(part)
    return path


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:80]}..."

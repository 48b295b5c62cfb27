"""Settings of registered parts, models and targets, whose keys are the arguments of what their name stands for.

A part's constructor says which arguments it has and of which type; the ranges stand here, by the name of the argument.
"""

from __future__ import annotations

import inspect
import json
import math
import types
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Len, Lt
from pydantic import ConfigDict, Strict, ValidationInfo, create_model, model_validator

from medseg.errors import UsageError, nearest
from medseg.registry import Registry
from medseg.settings.base import AT_ONCE, Settings, UserPath, Word
from medseg.settings.refusal import shown

WHOLE = (Ge(1), Le(2**16))  # a count, where nothing else is said
NUMBER = (Ge(0), Le(1e9))  # a strength or weight
SMALL = (Ge(1), Le(64))  # of blocks, stages and the like, each of which is a module
RANGES: dict[str, Sequence[Any]] = {
    **dict.fromkeys(("dropout", "drop_path"), (Ge(0), Lt(1))),
    **dict.fromkeys(("threshold",), (Gt(0), Lt(1))),
    **dict.fromkeys(("k", "h"), (Gt(0), Le(1e6))),
    **dict.fromkeys(("blocks_per_stage", "decoder_blocks_per_stage", "depths", "terms"), SMALL),
    **dict.fromkeys(("strides", "reductions"), SMALL),
    "depth": (Ge(1), Le(12)),
    "spatial_dims": (Ge(2), Le(3)),
    "supervised_levels": (Ge(1), Le(12)),
    "shift": (Ge(0), Le(2**16)),
    "skip_count": (Ge(0), Le(12)),
    "skip_layers": (Ge(2), Le(6)),
    "slope": (Ge(0), Le(1)),
    **dict.fromkeys(("regions", "class_order", "values", "labels", "ignore_label", "edges"), (Ge(0), Le(2**31 - 1))),
}
TYPES: dict[str, Any] = {"pretrained": bool | UserPath | None}  # whatever a constructor calls it


class EveryPart(Settings):
    """What a skip path takes from the settings of any of its parts."""

    levels: Annotated[tuple[Annotated[int, Ge(-12), Le(12)], ...], Strict(False)] | None = None
    include_bottleneck: bool = False


OF_EVERY_PART = tuple(EveryPart.model_fields)


class Part(Settings):
    """A registered part: ``name``, and arguments of its own.

    Attributes:
        arguments: all keys but the name; null is an argument that is left to the plan, the dataset or the part itself.
    """

    model_config = ConfigDict(extra="allow")
    key: ClassVar[str]
    name: Word

    @classmethod
    def registry(cls) -> Registry[Any]:
        """Where the name is looked up."""
        raise NotImplementedError

    @classmethod
    def checked(cls, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """The arguments, or UsageError."""
        return check_arguments(cls.registry(), name, arguments, cls.key)

    @model_validator(mode="before")
    @classmethod
    def _known(cls, given: Any, info: ValidationInfo) -> Any:
        if info.context == AT_ONCE or not isinstance(given, dict) or not isinstance(given.get("name"), str):
            return given
        name, arguments = given["name"], {key: value for key, value in given.items() if key != "name"}
        return {"name": name, **cls.checked(name, arguments)}

    @property
    def arguments(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class ModelPart(Part):
    """The keys of ``configs/model``."""

    key = "model"

    @classmethod
    def registry(cls) -> Registry[Any]:
        from medseg.models import MODELS

        return MODELS

    @classmethod
    def checked(cls, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        found = super().checked(name, arguments)
        check_skips(arguments.get("skips"), "model.skips")
        probe(name, found)
        return found


class TargetPart(Part):
    """The keys of ``configs/target``."""

    key = "target"

    @classmethod
    def registry(cls) -> Registry[Any]:
        from medseg.targets import TARGETS

        return TARGETS

    @classmethod
    def checked(cls, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        found = super().checked(name, arguments)
        loss = arguments.get("loss")
        if name == "exclusive" and loss is not None:
            from medseg.losses import LOSSES

            found["loss"] = checked_entry(LOSSES, loss, "target.loss")
        return found


def check_arguments(registry: Registry[Any], name: str, arguments: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The arguments of a registered part, each of the type and in the range of its name.

    Raises:
        UsageError: an unknown name or argument, with the nearest; a value that is none.
    """
    factory = registry.get(name)
    known, anything = _parameters(factory)
    given = {argument: value for argument, value in arguments.items() if value is not None}
    for argument in arguments:
        if argument not in known and not anything:
            raise UsageError(f"{registry.kind} '{name}' has no argument '{argument}': {nearest(argument, known)}")
        if not _finite(arguments[argument]):
            raise UsageError(f"{key}.{argument} is {shown(arguments[argument])} (expected finite numbers)")
    typed = {argument: value for argument, value in given.items() if argument in known}
    found = arguments_of(factory).of(typed, key).model_dump(exclude_unset=True)
    return {**arguments, **{argument: _listed(value) for argument, value in found.items()}}


def checked_entry(registry: Registry[Any], entry: Any, key: str) -> Any:
    """A part by its name alone, or by ``{"name": ..., **arguments}``, as it was given."""
    if isinstance(entry, str):
        registry.get(entry)
        return entry
    if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
        raise UsageError(f"{key} is {shown(entry)} (expected a name, or a mapping with name and arguments)")
    arguments = {argument: value for argument, value in entry.items() if argument != "name"}
    return {"name": entry["name"], **check_arguments(registry, entry["name"], arguments, key)}


def check_skips(skips: Any, key: str) -> Any:
    """Refuse skip paths whose parts, or their arguments, are none. Raises UsageError."""
    from medseg.blocks.skip import EDITS, MERGES, PYRAMID
    from medseg.blocks.skip.path import skip_settings

    parts = skip_settings(skips)
    for role, entries in (skips if isinstance(skips, Mapping) else {"merge": skips}).items():
        if any(
            isinstance(one, str) and not one.strip() for one in (entries if isinstance(entries, list) else [entries])
        ):
            raise UsageError(f"{key}.{role} is {shown(entries)} (expected the name of a part)")
    for role, registry in (("pyramid", PYRAMID), ("edit", EDITS), ("merge", MERGES)):
        for part in [parts[role]] if role == "merge" and parts[role] else parts[role] or ():
            own = {name: value for name, value in part.items() if name not in OF_EVERY_PART}
            checked_entry(registry, own, f"{key}.{role}")
            EveryPart.of({name: part[name] for name in OF_EVERY_PART if name in part}, f"{key}.{role}")
    return skips


def probe(name: str, arguments: Mapping[str, Any]) -> None:
    """Build a network without memory, in 2D or 3D: settings that contradict each other are refused before data is read.

    Raises:
        UsageError: it can be built in neither.
    """
    given = {key: value for key, value in arguments.items() if value is not None and key != "pretrained"}
    if (fault := _probed(name, json.dumps(given, sort_keys=True, default=str))) is not None:
        raise fault


@lru_cache(maxsize=64)
def _probed(name: str, arguments: str) -> UsageError | None:
    from medseg.device import without_memory
    from medseg.models import MODELS, create_model

    given = json.loads(arguments)
    dims = [2, 3] if "spatial_dims" in MODELS.arguments(name) and "spatial_dims" not in given else [None]
    first: UsageError | None = None
    for count in dims:
        try:
            with without_memory():
                create_model(name, **given, **({} if count is None else {"spatial_dims": count}))
            return None
        except UsageError as error:
            first = first or error
        except (RuntimeError, NotImplementedError):  # a part that cannot be built without memory
            return None
    return first


@cache
def arguments_of(factory: Callable[..., Any]) -> type[Settings]:
    """A class of settings with a field for every argument, none of which need be given."""
    hints = _hints(factory)
    fields: dict[str, Any] = {
        name: (TYPES.get(name, ranged(hints.get(name, Any), name)) | None, None) for name in _parameters(factory)[0]
    }
    return create_model(f"{getattr(factory, '__name__', 'Part')}Arguments", __base__=Settings, **fields)


def ranged(annotation: Any, name: str) -> Any:
    """The annotation of an argument with the range that its name has."""
    origin: Any = get_origin(annotation)
    parts: tuple[Any, ...] = get_args(annotation)
    if annotation is int:
        return Annotated[int, *RANGES.get(name, WHOLE)]
    if annotation is float:
        return Annotated[float, *RANGES.get(name, NUMBER)]
    if annotation is str:
        return Word
    if annotation in (bool, type(None)):
        return annotation
    if origin in (Union, types.UnionType):
        return Union[tuple(ranged(part, name) for part in parts)]  # noqa: UP007  # of parts known at run time only
    if origin is Literal:
        return annotation
    if origin is tuple and Ellipsis not in parts:
        return Annotated[tuple[tuple(ranged(part, name) for part in parts)], Strict(False)]  # type: ignore[misc]
    if origin in (Sequence, list, tuple):
        return Annotated[tuple[ranged(parts[0], name), ...], Strict(False), Len(0, 1000)]  # type: ignore[misc]
    if origin in (Mapping, dict):
        return dict[parts[0], ranged(parts[1], name)]  # type: ignore[valid-type, misc]
    return Any


def _parameters(factory: Callable[..., Any]) -> tuple[list[str], bool]:
    """Names of the arguments, and whether any other is taken too."""
    parameters = inspect.signature(factory).parameters.values()
    anything = any(one.kind is one.VAR_KEYWORD for one in parameters)
    return [one.name for one in parameters if one.kind in (one.KEYWORD_ONLY, one.POSITIONAL_OR_KEYWORD)], anything


def _hints(factory: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(factory.__init__ if inspect.isclass(factory) else factory)
    except NameError:  # a user's part whose types are known to type checkers only
        return {}


def _finite(value: Any) -> bool:
    """Whether no number at any depth is NaN or infinite."""
    if isinstance(value, Mapping):
        return all(map(_finite, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def _listed(value: Any) -> Any:
    return [_listed(item) for item in value] if isinstance(value, tuple) else value

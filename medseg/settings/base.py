"""What all settings share: frozen, typed to the letter, every number finite and within a range."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from annotated_types import Ge, Gt, Le, Len, Lt
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    SerializerFunctionWrapHandler,
    Strict,
    ValidationError,
    model_serializer,
)

from medseg.settings.refusal import refusal

Chosen = TypeVar("Chosen", bound="Settings")
Item = TypeVar("Item")
AT_ONCE = "at once"  # context of a validation that looks up no registered part
MOST_PROCESSES = max(16, 4 * (os.cpu_count() or 1))
MOST_VOXELS = 2**28  # of one patch or image: a channel of 1 GiB
MOST_IN_BATCH = 2**30
LARGEST_SEED = 2**31 - 1  # what every generator takes, with the number of a fold added


class Settings(BaseModel):
    """Settings of a verb or of a group of its keys: what they are is checked when they are made, and never changes.

    A number is no text and no truth value, ``"3"`` and ``true`` are no 3; NaN and infinity are no numbers; a key that
    is not known is refused. Lists of the config become tuples.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())

    @classmethod
    def of(cls: type[Chosen], config: Mapping[str, Any] | Settings, key: str = "") -> Chosen:
        """Settings of a composed config; settings of this class stay as they are.

        Args:
            config: nested dicts and lists of plain values.
            key: where they stand in the config of a verb, for messages; "" is the top.

        Raises:
            UsageError: one line with the key, its value and what is expected.
        """
        if isinstance(config, cls):
            return config
        try:
            cls.model_validate(dict(config), context=AT_ONCE)  # what needs no slow import is told at once
            return cls.model_validate(dict(config))
        except ValidationError as error:
            raise refusal(error, cls, config, key) from error

    def to_config(self) -> dict[str, Any]:
        """The config again, as plain data: paths are text, with ``~`` resolved."""
        return _plain(self.model_dump(by_alias=True))


class Sparse(Settings):
    """Settings most of which stay unset; as plain data they hold what was given, and what has another default."""

    @model_serializer(mode="wrap")
    def _without_null(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in dump(self).items() if value is not None or key in self.model_fields_set}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


@dataclass(frozen=True)
class Said:
    """What a type is, in words for messages and help, where its parts do not say it."""

    text: str


@dataclass(frozen=True)
class Verbatim:
    """A value that is taken as it stands on the command line, whatever Hydra's grammar reserves."""


def _path(value: Any) -> Path:
    if not isinstance(value, str | Path) or not str(value).strip() or "\0" in str(value):
        raise ValueError
    try:
        return Path(value).expanduser()
    except RuntimeError as error:  # there is no such user
        raise ValueError from error


def _text(value: Any) -> Any:
    if isinstance(value, str) and not value.strip():
        raise ValueError
    return value


UserPath = Annotated[Path, BeforeValidator(_path), Verbatim(), Said("a path")]
Text = Annotated[str, BeforeValidator(_text), Verbatim(), Said("text")]
Word = Annotated[str, BeforeValidator(_text), Said("a name")]
Count = Annotated[int, Ge(1), Le(1_000_000)]
Share = Annotated[float, Ge(0), Le(1)]
PartialShare = Annotated[float, Ge(0), Lt(1)]
OpenShare = Annotated[float, Gt(0), Lt(1)]
Processes = Annotated[int, Ge(0), Le(MOST_PROCESSES)]
Threads = Annotated[int, Ge(1), Le(MOST_PROCESSES)]
Seed = Annotated[int, Ge(0), Le(LARGEST_SEED)]
LabelValue = Annotated[int, Ge(0), Le(2**31 - 1)]
Axis = Annotated[int, Ge(0), Le(2)]
Pixels = Annotated[int, Ge(1), Le(2**17)]
Sizes = Annotated[tuple[Pixels, ...], Strict(False), Len(2, 3)]
Spacing = Annotated[tuple[Annotated[float, Gt(0), Le(1e6)], ...], Strict(False), Len(2, 3)]
Many = Annotated[tuple[Item, ...], Strict(False)]
Some = Annotated[tuple[Item, ...], Strict(False), Len(1, 1000)]
Pair = Annotated[tuple[Item, Item], Strict(False)]

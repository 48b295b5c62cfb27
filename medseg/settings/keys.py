"""The keys of settings: their dotted names, and what is said of each."""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from medseg.settings.base import Verbatim
from medseg.settings.refusal import keyed


def fields_of(settings: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Dotted key and field of every setting, those of groups after the group itself."""
    for key, field in keyed(settings).items():
        yield f"{prefix}{key}", field
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from fields_of(field.annotation, f"{prefix}{key}.")


@cache
def verbatim_keys(settings: type[BaseModel]) -> frozenset[str]:
    """Keys whose value is a path or a text, and is taken as it stands on the command line."""
    return frozenset(key for key, field in fields_of(settings) if _verbatim(field.annotation, field.metadata))


def _verbatim(annotation: Any, metadata: Iterable[Any] = ()) -> bool:
    if any(isinstance(mark, Verbatim) for mark in metadata):
        return True
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _verbatim(parts[0], parts[1:])
    return origin in (Union, types.UnionType) and any(map(_verbatim, parts))

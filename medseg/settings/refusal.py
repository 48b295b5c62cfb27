"""What pydantic found wrong, as the one line that every mistake of a user gets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from medseg.errors import UsageError, nearest
from medseg.settings.wording import choices, expected


def refusal(error: ValidationError, settings: type[BaseModel], config: Any, key: str = "") -> UsageError:
    """The first fault: dotted key, value, what is expected, and the nearest right word.

    Args:
        error: of ``settings.model_validate(config)``.
        settings: the class.
        config: what was given.
        key: where it stands in the config of a verb.
    """
    faults: list[Any] = list(error.errors(include_url=False))
    # Of the forms that a value may have, the one that it comes closest to says most.
    fault = dict(
        max((one for one in faults if one["loc"][:1] == faults[0]["loc"][:1]), key=lambda one: len(one["loc"]))
    )
    names, field, owner = _place(fault, settings)
    where = ".".join(str(part) for part in (key, *names) if part != "")
    value = _value(config, names)
    if fault["type"] == "extra_forbidden":
        return UsageError(f"there is no key '{where}': {nearest(str(names[-1]), keyed(owner))}")
    if fault["type"] == "missing":
        return UsageError(f"'{where}' is not set", fix=f"give {where}=")
    if field is None:
        return UsageError(f"{where or 'the config'} is {shown(value)}: {fault['msg']}")
    if isinstance(value, str) and (words := choices(field.annotation)):
        return UsageError(f"{where} is {shown(value)}: {nearest(value, words)}")
    return UsageError(f"{where} is {shown(value)} (expected {expected(field)})")


def shown(value: Any, most: int = 80) -> str:
    """A value as a user would write it, cut where it is long."""
    plain = {None: "null", True: "true", False: "false"}
    text = plain[value] if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _place(fault: Mapping[str, Any], settings: type[BaseModel]) -> tuple[list[Any], FieldInfo | None, type[BaseModel]]:
    """Names of the deepest field that a fault lies in, the field, and the class that has it or lacks it."""
    names: list[Any] = []
    owner, field, inside = settings, None, [settings]
    for step, part in enumerate(fault["loc"]):
        known = next((one for one in inside if part in keyed(one)), None)
        if known is not None:
            owner, field = known, keyed(known)[part]
            names, inside = [*names, part], list(_settings_in(field.annotation))
        elif fault["type"] == "extra_forbidden" and step == len(fault["loc"]) - 1:
            return [*names, part], None, inside[0]
        elif isinstance(part, int) and inside:
            names.append(part)
    return names, field, owner


def keyed(settings: type[BaseModel]) -> dict[Any, FieldInfo]:
    """The fields by the keys of the config."""
    return {field.alias or name: field for name, field in settings.model_fields.items()}


def _settings_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _settings_in(part)


def _value(config: Any, names: list[Any]) -> Any:
    for name in names:
        if isinstance(config, Mapping):
            config = config.get(name)
        elif isinstance(config, list | tuple) and isinstance(name, int):
            config = config[name]
        else:
            return config
    return config

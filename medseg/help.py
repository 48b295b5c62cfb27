"""``medseg VERB --help``: every key of the verb and of the chosen groups, with its value, meaning and range."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from medseg.compose import compose, default_options, options, own_options, used_groups

_KEY = re.compile(r"^(?P<indent> *)(?P<key>[\w.]+):(?P<value>[^#]*)(#\s*(?P<comment>.*))?$")
WIDTH = 79


def verb_help(verb: str, words: Sequence[str] = (), config_dir: str | None = None) -> str:
    """Text of ``medseg VERB [model=unetpp ...] --help``.

    Args:
        verb: one of `medseg.compose.VERBS`.
        words: overrides; those that choose groups decide which keys there are.
        config_dir: as for `compose`.

    Raises:
        UsageError: a word that is wrong.
    """
    config = compose(verb, words, config_dir, whole=False)
    title, comments = _comments(_read(f"{verb}.yaml"))
    groups = [
        line
        for group in used_groups(verb)
        for line in _wrapped(f"{group}: {', '.join(options(group) + own_options(group, config_dir))}", "  ", "    ")
    ]
    titles = {}
    for group in used_groups(verb):
        chosen = _chosen(verb, group, words)
        path = Path(config_dir or "") / group / f"{chosen}.yaml"
        text = path.read_text(encoding="utf-8") if config_dir and path.is_file() else _read(f"{group}/{chosen}.yaml")
        heading, found = _comments(text, f"{group}.")
        titles[group] = " ".join([f"{group}={chosen}.", *heading])
        comments = {**comments, **found}
    lines = list(_lines(config, comments, titles, _expectations(verb, config)))
    shown = [f"usage: medseg {verb} [key=value ...]", "", *_wrapped(" ".join(title), "", ""), "", *lines]
    return "\n".join([*shown, *(["", "options:", *groups] if groups else [])])


def _read(name: str) -> str:
    found = files("medseg.configs") / name
    return found.read_text(encoding="utf-8") if found.is_file() else ""


def _chosen(verb: str, group: str, words: Sequence[str]) -> str:
    """The option of a group: of the last word that names one, else the verb's default."""
    named = [word.partition("=")[2] for word in words if word.startswith(f"{group}=")]
    known = named[-1] if named else default_options(verb).get(group) or ""
    return "folder" if group == "data" and known not in options("data") else known


def _comments(text: str, prefix: str = "") -> tuple[list[str], dict[str, str]]:
    """The lines at the top of a config file, and what it says of each dotted key."""
    head: list[str] = []
    said: dict[str, str] = {}
    parents: list[tuple[int, str]] = []
    for line in text.splitlines():
        if line.startswith("#"):
            head += [] if said or "@package" in line else [line[1:].strip()]
        elif match := _KEY.match(line):
            depth = len(match["indent"])
            parents = [(indent, key) for indent, key in parents if indent < depth]
            said[prefix + ".".join([*(key for _, key in parents), match["key"]])] = match["comment"] or ""
            parents.append((depth, match["key"]))
    return head, said


def _expectations(verb: str, config: dict[str, Any]) -> dict[str, str]:
    """Dotted key -> type and range, in words.

    Those of a registered part are told by the type of the value in its config: to ask the part itself takes the import
    of torch, seconds that nobody waits for when asking for help.
    """
    from medseg.settings import settings_class
    from medseg.settings.keys import fields_of
    from medseg.settings.parts import Part, ranged
    from medseg.settings.wording import expected, in_words

    said: dict[str, str] = {}
    for key, field in fields_of(settings_class(verb)):
        part = field.annotation
        if isinstance(part, type) and issubclass(part, Part):
            plain = {name: type(value) for name, value in config[key].items() if type(value) in (bool, int, float)}
            said |= {f"{key}.{name}": in_words(ranged(kind, name)) for name, kind in plain.items()}
        else:
            said[key] = expected(field)
    return said


def _lines(
    config: dict[str, Any], comments: dict[str, str], titles: dict[str, str], expectations: dict[str, str]
) -> Iterator[str]:
    for key, value in config.items():
        yield from _entry(key, value, key, comments, {**expectations, **titles}, set(titles))


def _wrapped(text: str, first: str, further: str) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=first, subsequent_indent=further, break_long_words=False, break_on_hyphens=False
    )


def _entry(
    key: str, value: Any, dotted: str, comments: dict[str, str], expectations: dict[str, str], groups: set[str]
) -> Iterator[str]:
    """A key with its value, and below it what is said of it."""
    indent = "  " * dotted.count(".")
    inner = isinstance(value, dict) and bool(value)
    yield f"{indent}{key}:" + ("" if inner else f" {value if isinstance(value, str) else json.dumps(value)}")
    said, kind = comments.get(dotted, ""), expectations.get(dotted, "")
    if dotted in groups:
        said, kind = kind, ""
    text = " ".join([*([said] if said else []), *([f"[{kind}]"] if kind and not inner else [])])
    yield from _wrapped(text, f"{indent}    # ", f"{indent}    # ")
    if isinstance(value, dict):
        for name, one in value.items():
            yield from _entry(str(name), one, f"{dotted}.{name}", comments, expectations, groups)

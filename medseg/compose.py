"""From words on a command line to a config: a plain nested dict, or one line that names the nearest right word."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from medseg.errors import BadDataset, MedsegError, UsageError, nearest
from medseg.settings import CLASSES, settings_class

VERBS = tuple(CLASSES)


def compose(
    verb: str, overrides: Sequence[str] = (), config_dir: str | None = None, *, whole: bool = True
) -> dict[str, Any]:
    """Compose the config of a verb, e.g. ``compose("train", ["data=phantom", "trainer.max_epochs=5"])``.

    Args:
        verb: one of `VERBS`.
        overrides: in Hydra's syntax; ``data=DIR`` names a dataset folder, ``data=LIST.csv`` a table of cases.
        config_dir: a folder with configs of your own, searched beside medseg's.
        whole: False leaves interpolations as they are, and what must be set as ``"???"``.

    Raises:
        UsageError: an unknown key, group or option, with the nearest known one; a value that is missing.
        BadDataset: ``data=`` names a folder that is not there.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_module
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException, OverrideParseException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    logging.getLogger("hydra").setLevel(logging.ERROR)
    given = expand_all(verb, overrides)
    # Hydra takes a key that is named like a config group for that group, also in a verb that has no such group.
    foreign = set(_groups()) - set(used_groups(verb))
    plain = [word for word in given if _name(word) in foreign]
    words = [word for word in given if _name(word) not in foreign]
    search = [f"hydra.searchpath=[file://{Path(config_dir).resolve()}]"] if config_dir else []
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module("medseg.configs", version_base="1.3", job_name="medseg"):
            composed = hydra_compose(verb, [*words, *search], return_hydra_config=False)
            for override in OverridesParser.create().parse_overrides(plain):
                OmegaConf.update(composed, override.key_or_group, override.value())
            config = OmegaConf.to_container(composed, resolve=whole, throw_on_missing=whole)
    except OverrideParseException as error:
        raise syntax_error(error) from error
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError) as error:
        raise UsageError(explain(error, verb, given, config_dir)) from error
    assert isinstance(config, dict)
    if any(key == "_target_" for key in keys_of(config)):
        raise UsageError("a config names a '_target_' (configs name parts, they never import code)")
    return config  # type: ignore[return-value]


def compose_launcher(words: Sequence[str]) -> dict[str, Any]:
    """Settings of a launcher, from ``["hydra/launcher=slurm", "hydra.launcher.mem_gb=8"]``.

    Raises:
        UsageError: no launcher is named, it is not known, or a setting is not.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import OverrideParseException

    known = options("hydra/launcher")
    named = [word.partition("=")[2] for word in words if _name(word) == "hydra/launcher"]
    if not named:
        raise UsageError("hydra.launcher has settings but no name", fix="add hydra/launcher=slurm")
    if named[-1] not in known:
        raise UsageError(f"hydra/launcher={named[-1]}: {nearest(named[-1], known)}")
    settings = load_config(f"hydra/launcher/{named[-1]}.yaml")
    try:
        given = OverridesParser.create().parse_overrides([word for word in words if _name(word) != "hydra/launcher"])
    except OverrideParseException as error:
        raise syntax_error(error) from error
    for override in given:
        key = override.key_or_group.removeprefix("hydra.launcher.")
        if key not in settings:
            raise UsageError(f"there is no key 'hydra.launcher.{key}': {nearest(key, settings)}")
        settings[key] = override.value()
    from medseg.settings.launcher_group import LauncherSettings

    return LauncherSettings.of(settings, "hydra.launcher").to_config()


def expand_all(verb: str, words: Sequence[str]) -> list[str]:
    """What Hydra is told: ``data=DIR`` in full and before what changes parts of it, paths and texts as they stand.

    Raises:
        BadDataset: ``data=`` names a path that is not there.
    """
    verbatim = _verbatim(verb) if any("=" in word for word in words) else frozenset()
    data = [part for word in words if _name(word) == "data" for part in expand(word)]
    return [*data, *(_as_it_stands(word, verbatim) for word in words if _name(word) != "data")]


def _verbatim(verb: str) -> frozenset[str]:
    from medseg.settings.keys import verbatim_keys

    return verbatim_keys(settings_class(verb))


def expand(word: str) -> list[str]:
    """``data=DIR`` or ``data=LIST.csv`` -> ``data=folder data.path=... data.name=...``; other words stay as they are.

    Raises:
        BadDataset: a path that is not there.
    """
    name, _, value = word.partition("=")
    if name != "data" or not value or value in options("data"):
        return [word]
    path = Path(value).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix.lower() in (".csv", ".tsv")):
        path = path.resolve()
        return [
            "data=folder",
            f"data.path={quoted(str(path))}",
            f"data.name={quoted(path.stem if path.is_file() else path.name)}",
        ]
    if "/" in value or value in (".", ".."):
        raise BadDataset("there is no such folder or list", path=path, fix="check the path given as data=")
    return [word]


def check_repeated(words: Sequence[str]) -> None:
    """Refuse a key with two values, of which one would be lost: most often the shell has divided ``{a:1,b:2}``.

    Raises:
        UsageError: naming the key and the values.
    """
    given: dict[str, list[str]] = {}
    for word in dict.fromkeys(words):
        given.setdefault(_name(word), []).append(word.partition("=")[2])
    for name, values in given.items():
        if len(values) > 1:
            whole = f"'{name}={{{','.join(values)}}}'"
            fix = f"put {whole} into quotes, which the shell has divided" if ":" in values[0] else "give it once"
            raise UsageError(f"{name} is given {len(values)} times: {' and '.join(values)}", fix=fix)


def quoted(text: str) -> str:
    """A value that Hydra takes as it is."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _as_it_stands(word: str, verbatim: frozenset[str]) -> str:
    """A path or text may hold what Hydra reserves; lists, quotes, interpolations and null keep their meaning there.

    A value that is the name of something on disk is that name, whatever it looks like.
    """
    name, _, value = word.partition("=")
    if value and (name in verbatim or "/" in value) and _exists(value):
        return f"{name}={quoted(value)}"
    special = not value or value == "null" or value[0] in "['\"" or "${" in value
    return word if special or name not in verbatim else f"{name}={quoted(value)}"


def _exists(value: str) -> bool:
    try:
        return Path(value).expanduser().exists()
    except (OSError, RuntimeError, ValueError):  # too long a name, no such user, a null character
        return False


def syntax_error(error: Exception) -> UsageError:
    """What Hydra's parser says, without its address, and what to do."""
    word, message = getattr(error, "override", ""), str(error).partition("See https")[0]
    return UsageError(
        f"'{word}' cannot be read: {message.strip()}", fix="put the value into quotes of its own: key='\"value\"'"
    )


def _name(word: str) -> str:
    return word.lstrip("+~").partition("=")[0]


def _groups() -> list[str]:
    return [item.name for item in files("medseg.configs").iterdir() if item.is_dir()]


def options(group: str) -> list[str]:
    """Names of medseg's own options in a config group."""
    folder = files("medseg.configs") / group
    names = [item.name for item in folder.iterdir()] if folder.is_dir() else []
    return sorted(name[:-5] for name in names if name.endswith(".yaml"))


def used_groups(verb: str) -> list[str]:
    """Names of the config groups of a verb."""
    return list(default_options(verb))


def default_options(verb: str) -> dict[str, str | None]:
    """Group -> the option that a verb takes where none is chosen."""
    defaults = load_config(f"{verb}.yaml").get("defaults", [])
    return {group: option for default in defaults if isinstance(default, dict) for group, option in default.items()}


def explain(error: Exception, verb: str, overrides: Sequence[str], config_dir: str | None) -> str:
    """One line about the word that was wrong; `overrides` are those that Hydra was given."""
    known = list(known_keys(verb))
    for word in overrides:
        name = _name(word)
        value = word.partition("=")[2]
        choices = options(name) + own_options(name, config_dir)
        if name in used_groups(verb) and value and value not in choices and "/" not in value:
            several = " (several values need --multirun)" if "," in value else ""
            other = ", or a folder or list of yours, and there is none of that name" if name == "data" else ""
            return f"{name}={value}{several}: {nearest(value, choices)}{other}"
        if name not in known and not word.startswith("+") and not name.startswith("hydra"):
            return f"there is no key '{name}': {short(nearest(name, known), verb)}"
    if refused := re.search(r"Could not override '([\w.]+)'", str(error)):
        return key_of_another_option(refused[1], verb, overrides, config_dir)
    key = getattr(error, "full_key", None)
    return f"'{key}' is not set" if "Missing mandatory value" in str(error) else " ".join(str(error).split())


def key_of_another_option(name: str, verb: str, overrides: Sequence[str], config_dir: str | None) -> str:
    """What to say of ``model.skips=add`` beside ``model=hybridgnet``."""
    group, _, key = name.partition(".")
    try:
        chosen = compose(verb, [word for word in overrides if _name(word) != name], config_dir).get(group)
    except MedsegError:  # another word is wrong too
        chosen = None
    if not isinstance(chosen, Mapping):
        return f"there is no key '{name}' with the {group} that is chosen"
    option = chosen.get("name", "what is chosen")
    return f"there is no key '{name}' with {group}={option}: {nearest(key, list(dotted(chosen)))}"


def own_options(group: str, config_dir: str | None) -> list[str]:
    """Names of the user's options in a config group."""
    return [path.stem for path in (Path(config_dir) / group).glob("*.yaml")] if config_dir else []


def short(text: str, verb: str) -> str:
    """The guess without the list of all keys, which would fill the screen."""
    return text.partition(" (known")[0] if text.startswith("did") else f"medseg {verb} --help lists them"


def known_keys(verb: str) -> Iterator[str]:
    """Dotted keys of a verb's config with its default groups."""
    for group in used_groups(verb):
        yield group
        for option in options(group) if group != "experiment" else ():
            yield from dotted(load_config(f"{group}/{option}.yaml"), group)
    yield from (key for key in dotted(load_config(f"{verb}.yaml")) if key != "defaults")


def load_config(name: str) -> dict[str, Any]:
    """One of medseg's own config files, as it is."""
    from omegaconf import OmegaConf

    loaded = OmegaConf.to_container(OmegaConf.load(str(files("medseg.configs") / name)))
    assert isinstance(loaded, dict)
    return loaded  # type: ignore[return-value]


def dotted(config: Any, prefix: str = "") -> Iterator[str]:
    """``{"a": {"b": 1}}`` -> ``"a"``, ``"a.b"``."""
    for key, value in config.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        yield name
        if isinstance(value, Mapping):
            yield from dotted(value, name)


def keys_of(config: Any) -> Iterable[str]:
    """Every key at any depth."""
    if isinstance(config, Mapping):
        for key, value in config.items():
            yield str(key)
            yield from keys_of(value)
    elif isinstance(config, list):
        for value in config:
            yield from keys_of(value)

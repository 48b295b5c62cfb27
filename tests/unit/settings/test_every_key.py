"""Every key of every verb, and of every option of its groups, with values that cannot be: one line, no traceback."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator
from typing import Any

import pytest

from medseg.compose import compose, load_config, options, used_groups
from medseg.errors import UsageError
from medseg.settings import CLASSES, settings_of
from medseg.settings.launcher_group import LauncherSettings

REQUIRED = {
    "predict": ["model=m", "input=i", "output=o"],
    "evaluate": ["predictions=p", "references=r"],
    "adapt": ["model=m"],
    "export": ["model=m", "output=o"],
}
NAN, HUGE = math.nan, 10**20
WRONG: dict[str, Any] = {
    "text": "banana",
    "number": 3.7,
    "truth": True,
    "negative": -1,
    "zero": 0,
    "huge": HUGE,
    "huge float": 1e300,
    "infinite": math.inf,
    "null": None,
    "nan": NAN,
    "empty": "",
    "blank": " ",
    "list": [1, "a", None],
    "nested": [[NAN]],
    "mapping": {"a": NAN},
    "odd keys": {1: {2: 3}},
}
NULL_GROUPS = {"model", "target", "augmentation"}  # null leaves an argument to the part itself
NULL = {"trainer.gradient_clip", "optimizer.nesterov", "optimizer.momentum"}  # none is meant
ZERO = {  # where nothing, none or the first is meant
    *("seed", "fold", "data.split_seed", "data.foreground_fraction", "trainer.gradient_clip", "trainer.ema"),
    *("trainer.checkpoint_minutes", "optimizer.weight_decay", "optimizer.warmup", "optimizer.momentum", "redundancy"),
    *("skip_scale.tolerance", "mc_dropout", "overlap", "tolerance", "target.kl_weight", "model.dropout"),
    *("model.drop_path", "model.slope", "model.shift", "data.loader_workers"),
    *(f"views.{name}" for name in load_config("views/strong.yaml")),
}
FIRST = {"data": "check", "target": "check", "views": "pretrain"}  # of the verbs that share a group; else train


def configs(verb: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """A verb's config as it is shipped, then with each option of each group that no other verb sweeps."""
    base = compose(verb, REQUIRED.get(verb, []))
    yield "", base
    for group in used_groups(verb):
        for option in options(group) if FIRST.get(group, "train") == verb and group != "experiment" else ():
            yield group, {**base, group: {**load_config(f"{group}/{option}.yaml")}}


def keys(config: dict[str, Any], only: str) -> Iterator[tuple[str, ...]]:
    """Paths of all keys, groups included, within one group if one is named."""
    for key, value in config.items():
        if only in ("", key):
            yield (key,)
            if isinstance(value, dict):
                yield from ((key, *rest) for rest in keys(value, ""))


def with_value(config: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(config)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return changed


def refused(verb: str, config: dict[str, Any]) -> str | None:
    """What a user is told, or None."""
    try:
        settings_of(verb, config)
    except UsageError as error:
        return str(error)
    return None


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def must_be_refused(path: tuple[str, ...], default: Any, kind: str) -> bool:
    """What follows from the shipped value alone: a number stays one, and is in a range that a run can live with."""
    name = ".".join(path)
    if kind in ("nan", "infinite", "blank", "empty") or (kind == "nested" and path[0] != "plugins"):
        return True
    if kind == "null":
        return default not in (None, "???") and path[0] not in NULL_GROUPS and name not in NULL
    if is_number(default):
        refused = kind in ("text", "truth", "negative", "huge", "huge float", "list", "mapping", "odd keys")
        return refused or (kind == "zero" and name not in ZERO)
    if isinstance(default, bool):
        return kind not in ("truth", "null") and name != "postprocess"
    if isinstance(default, str):
        return kind in ("number", "truth", "negative", "huge", "list", "mapping", "odd keys") and name != "fold"
    return kind in ("odd keys", "huge float") and name not in ("labels", "tolerance")


@pytest.mark.parametrize("verb", list(CLASSES))
def test_no_value_of_any_key_ends_in_a_traceback(verb: str) -> None:
    tried, wrongly = 0, []
    for group, config in configs(verb):
        for path in keys(config, group):
            if not group and path[0] in used_groups(verb) and len(path) > 1:
                continue
            default = config
            for key in path:
                default = default[key]
            for kind, value in WRONG.items():
                if kind in ("null", "truth") and path[0] == "model":  # a network would be built each time
                    continue
                tried += 1
                told = refused(verb, with_value(config, path, value))
                if told is not None:
                    named = any(word in told for word in (*path, str(value)))
                    assert named, f"{path} {kind}: {told}"
                    assert "\n" not in told
                elif must_be_refused(path, default, kind):
                    wrongly.append(f"{'.'.join(path)}={value!r} ({config.get(group, {})})"[:150])
    assert tried > 40
    assert not wrongly, "\n".join(wrongly)


@pytest.mark.parametrize("verb", list(CLASSES))
def test_shipped_values_are_accepted_and_stay_what_they_are(verb: str) -> None:
    for group, config in configs(verb):
        if group == "data" and config["data"]["path"] == "???":
            config["data"].update(name="mine", path="folder")
        assert settings_of(verb, config).to_config() == config, (verb, group)


@pytest.mark.parametrize("option", options("hydra/launcher"))
def test_no_value_of_a_launcher_ends_in_a_traceback(option: str) -> None:
    shipped = load_config(f"hydra/launcher/{option}.yaml")
    assert LauncherSettings.of(shipped).to_config() == shipped
    for key, kind in itertools.product(shipped, ("text", "truth", "negative", "huge", "nan", "empty", "nested")):
        try:
            LauncherSettings.of({**shipped, key: WRONG[kind]}, "hydra.launcher")
        except UsageError as error:
            assert str(error).startswith(f"hydra.launcher.{key} is ")  # noqa: PT017
        else:
            assert kind == "text" and (shipped[key] is None or isinstance(shipped[key], str))  # noqa: PT018

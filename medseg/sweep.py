"""The jobs of ``--multirun``: Hydra's basic sweeper, a run folder for each, all composed before the first one runs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from medseg.compose import compose, expand, quoted, syntax_error


def sweep(verb: str, overrides: Sequence[str], config_dir: str | None = None) -> list[tuple[list[str], dict[str, Any]]]:
    """Every job's words and composed config. A wrong word in the last job must not show after the hours of the others.

    Args:
        verb: as for `compose`.
        overrides: in Hydra's syntax, several values of a key divided by commas; training runs go to ``run_dir/0``,
            ``run_dir/1`` and so on.
        config_dir: as for `compose`.

    Raises:
        UsageError: as `compose`, for any of the jobs.
    """
    base = f"runs/multirun/{datetime.now():%Y-%m-%d_%H-%M-%S}"
    swept = []
    for word in overrides:
        if word.startswith("run_dir="):
            base = word.partition("=")[2]
        else:
            swept.extend(_whole_path(word))
    jobs = _split(swept)
    if verb in ("train", "adapt"):
        jobs = [[*job, f"run_dir={base}/{number}"] for number, job in enumerate(jobs)]
    return [(job, compose(verb, job, config_dir)) for job in jobs]


def _split(words: list[str]) -> list[list[str]]:
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_overrides(words)
    except HydraException as error:
        raise syntax_error(error) from error
    return [list(job) for job in BasicSweeper.split_arguments(parsed, max_batch_size=None)[0]]


def _whole_path(word: str) -> list[str]:
    """A value that is one existing path is one value, whatever Hydra's grammar makes of its commas and brackets."""
    name, _, value = word.partition("=")
    if "/" not in value or not Path(value).expanduser().exists():
        return [word]
    return expand(word) if name == "data" else [f"{name}={quoted(value)}"]

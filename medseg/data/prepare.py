"""Preprocess a dataset once: cached, in parallel, resumable, and never stale."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from medseg.data.dataset import Case, SegmentationDataset
from medseg.data.fingerprint import make_fingerprint
from medseg.data.keys import case_key, content_key, digest, require_cache, user_cache
from medseg.data.landmark_files import LandmarkLayout, read_case_landmarks
from medseg.data.parallel import choose_workers, map_cases
from medseg.data.plan import Plan, make_plan
from medseg.data.prepared import PreparedDataset, sample_foreground
from medseg.data.preprocess import (
    Preprocessed,
    preprocess,
    preprocess_labels,
    preprocess_points,
    restore_channels,
    restore_labels,
    restore_probabilities,
)
from medseg.data.read_case import read_case_labels
from medseg.errors import InputRefused, MedsegError, some
from medseg.io import read_channels
from medseg.text import for_terminal

__all__ = [
    "PreparedDataset",
    "Preprocessed",
    "default_cache_dir",
    "prepare",
    "prepare_command",
    "preprocess",
    "preprocess_labels",
    "restore_channels",
    "restore_labels",
    "restore_probabilities",
]

PREPARE_VERSION = 2  # part of every key: raise it when the code changes what is written
FOREGROUND_SAMPLES = 2000


def default_cache_dir() -> Path:
    """``$XDG_CACHE_HOME/medseg/prepared``, by default under ``~/.cache``."""
    return user_cache() / "prepared"


def prepare(
    dataset: SegmentationDataset,
    plan: Plan,
    case_ids: Sequence[str],
    *,
    cache_dir: str | Path | None = None,
    workers: int | str | None = None,
    progress: bool = True,
    points: int = 0,
) -> PreparedDataset:
    """Preprocess cases into ``cache_dir/<dataset>/<key>``; cases already there are kept.

    The folder's key covers the dataset's place and what the plan does to voxels, a case's key the place, size and times
    of its files: neither a changed setting, nor a changed file, nor another dataset of the same name reads a stale
    array, and none is ever written over. After an interruption only the missing cases are made.

    Args:
        dataset: where the files are.
        plan: spacing, normalisation and crop are used.
        case_ids: which training cases.
        cache_dir: default `default_cache_dir`.
        workers: processes; 0 is this one; default chosen from data, cores and memory.
        progress: show a progress bar.
        points: landmarks that every case must have; they are prepared too. 0: landmark files are not read.

    Raises:
        InputRefused: cases that cannot be used; the others are prepared, the first bad one is told in full.
        ResourceError: a worker died (its case is named), the disk is full, or the cache cannot be written.
    """
    base = Path(cache_dir or default_cache_dir()).expanduser()
    cases = [dataset.case(id_) for id_ in sorted(case_ids)]
    folder = base / dataset.name / dataset_key(dataset, plan, points)
    prepared = PreparedDataset(folder, {case.id: case_key(case) for case in cases})
    missing = [case for case in cases if not prepared.complete(case.id)]
    if missing:
        require_cache(folder)
    layout = dataset.landmarks
    function = partial(_prepare_case, plan=plan, prepared=prepared, points=points, layout=layout)
    count = choose_workers(workers, missing) if missing else 0
    shown = progress and bool(missing)
    outcomes = list(map_cases(function, missing, workers=count, title="prepare", progress=shown))
    failed = {case.id: error for case, error in outcomes if isinstance(error, MedsegError)}
    if failed:
        raise _first(failed, len(case_ids))
    return prepared


def prepare_command(cfg: Mapping[str, Any]) -> int:
    """``medseg prepare``: fingerprint, plan and cache the training cases, and say where they are."""
    from rich.console import Console

    from medseg.data.catalogue import resolve_dataset

    dataset, workers = resolve_dataset(cfg["data"]), cfg["data"].get("workers")
    cache_dir = cfg.get("cache_dir") or default_cache_dir()
    plan = plan_dataset(dataset, {**cfg, "cache_dir": cache_dir})
    ids = [case.id for case in dataset.training]
    prepared = prepare(dataset, plan, ids, cache_dir=cache_dir, workers=workers)
    plan.save(prepared.folder / "plan.json")
    console = Console()
    for choice, reason in plan.reasons.items():
        console.print(
            for_terminal(choice, "bold"), for_terminal(f"{plan.to_dict()[choice]}: {reason}"), highlight=False
        )
    done = for_terminal(f"{len(ids)} cases of {dataset.name} are prepared in {prepared.folder}")
    console.print(done, soft_wrap=True)  # a path stays one word
    return 0


def plan_dataset(dataset: SegmentationDataset, cfg: Mapping[str, Any], device: str = "cpu") -> Plan:
    """The plan of a dataset: from ``plan.file`` if given, else made from its fingerprint, with the user's overrides.

    Args:
        dataset: its training cases are looked at.
        cfg: ``plan``, ``data`` and ``cache_dir`` of a composed config.
        device: "cpu" or the name of an accelerator, which sees larger patches.

    Raises:
        UsageError: settings that cannot be.
        InputRefused: cases that cannot be used, or a file that holds no plan.
    """
    overrides = dict(cfg.get("plan") or {})
    if file := overrides.pop("file", None):
        return Plan.load(file).override(**overrides)
    data = cfg["data"]
    fingerprint = make_fingerprint(dataset, workers=data.get("workers"), cache_dir=cfg.get("cache_dir"))
    return make_plan(fingerprint, device=device, slices=data.get("slices"), **overrides)


def dataset_key(dataset: SegmentationDataset, plan: Plan, points: int = 0) -> str:
    """Names the folder of a dataset's prepared cases: 16 hex digits of where it lies and of `settings_key`."""
    return digest([str(dataset.root.resolve()), settings_key(plan, points)])[:16]


def settings_key(plan: Plan, points: int = 0) -> str:
    """First 16 hex digits of the SHA-256 over every setting that changes a prepared array."""
    names: tuple[str, ...] = ("spatial_dims", "labels", "ignore_label", "spacing", "normalization", "crop_nonzero")
    names = (*names, "size", "slice_axis", "color")
    settings = {name: plan.to_dict()[name] for name in names}
    landmarks = {"points": points} if points else {}
    return digest({"version": PREPARE_VERSION, **settings, **landmarks})[:16]


def _prepare_case(
    case: Case, *, plan: Plan, prepared: PreparedDataset, points: int, layout: LandmarkLayout | None
) -> None:
    if prepared.complete(case.id):  # another run was faster
        return
    content = content_key(case)
    volume = read_channels(case.images, case=case.id)
    known = {0, *plan.labels.values()} | ({plan.ignore_label} if plan.ignore_label is not None else set())
    raw = read_case_labels(case, volume.geometry, known)
    image, done = preprocess(volume, plan)
    labels = preprocess_labels(raw, done)
    classes = sorted(set(plan.labels.values()) - {0, plan.ignore_label})
    rng = np.random.default_rng(zlib.crc32(case.id.encode()))
    found = None
    if points:
        raw_points = read_case_landmarks(case.landmarks, case.id, volume.geometry.shape, points, layout)
        found = preprocess_points(raw_points, done)
    if case_key(case) != prepared.keys[case.id]:
        problem = "a file of the case changed while it was read"
        raise InputRefused(problem, case=case.id, path=case.images[0], fix="start again when it is complete")
    prepared.write(case.id, content, image, labels, sample_foreground(labels, classes, FOREGROUND_SAMPLES, rng), found)


def _first(failed: Mapping[str, MedsegError], total: int) -> MedsegError:
    """The first case's error, with the state of all others."""
    first, *others = sorted(failed)
    error = failed[first]
    also = f"; also refused: {some(others, 20)}" if others else ""
    error.written = f"{total - len(failed)} of {total} cases are prepared{also}."
    return error

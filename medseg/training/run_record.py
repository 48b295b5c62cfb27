"""The record of a run, bound to it: settings, plan, split and the content of its cases; what resumes must agree."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from medseg import __version__
from medseg.data.keys import digest
from medseg.errors import BadDataset, UnreadableFile, UsageError, some
from medseg.io import read_json, write_json
from medseg.io.atomic import to_json
from medseg.training.run_folder import OTHER_FOLDER, RunFolder

# What may differ from one start of a run to the next: where things lie, how long it lasts, what computes it, and how
# it tells of itself. Every other setting is part of what the run is.
MAY_CHANGE = frozenset(
    {
        "run_dir", "resume", "debug", "cache_dir", "data.path", "data.workers", "data.loader_workers",
        "trainer.max_epochs", "trainer.max_time", "trainer.device", "trainer.threads", "trainer.worker_timeout",
        "trainer.checkpoint_minutes", "trainer.progress", "trainer.tensorboard",
    }
)  # fmt: skip
SHOWN = 4  # differences


@dataclass(frozen=True)
class RunRecord:
    """What a run is. All of it is plain data, as JSON holds it.

    Attributes:
        verb: ``train``, ``pretrain`` or ``adapt``.
        config: as it was first given.
        plan: of the dataset.
        splits: all folds, as they are used.
        cases: id -> content key of every case that is trained or validated on.
        facts: of the dataset and of what else is read, which no key of the config names.
        known: all training cases that the dataset had.
    """

    verb: str
    config: dict[str, Any]
    plan: dict[str, Any]
    splits: list[dict[str, list[str]]]
    cases: dict[str, str]
    facts: dict[str, Any] = field(default_factory=dict)
    known: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, verb: str, config: Mapping[str, Any], plan: Mapping[str, Any], **more: Any) -> RunRecord:
        """A record of anything that can be written as JSON."""
        return cls(**json.loads(to_json({"verb": verb, "config": config, "plan": plan, **more})))

    def identity(self, part: str = "") -> str:
        """Binds checkpoints to this record, and to one part of the run, e.g. ``fold_1``."""
        return digest([asdict(self), part])

    def require_cases(self, ids: Sequence[str]) -> None:
        """Refuse a dataset that lacks cases of this run, and say which came later and are left out.

        Args:
            ids: of all training cases that are there today.

        Raises:
            BadDataset: some are not.
        """
        gone, added = sorted(set(self.cases) - set(ids)), sorted(set(ids) - set(self.known))
        if gone:
            problem = f"resume=true: the dataset no longer has {some(gone)}, on which this run trains or validates"
            raise BadDataset(problem, case=gone[0], fix=f"restore them, or {OTHER_FOLDER}")
        if added:
            print(f"medseg: {len(added)} cases came after this run began and are left out: {some(added)}", flush=True)

    def agree(self, now: RunRecord) -> None:
        """Refuse data that are not those of this run.

        Args:
            now: the record as the data are today, of the same plan and splits.

        Raises:
            BadDataset: cases with another content, or other facts.
        """
        changed = [case for case, content in self.cases.items() if now.cases.get(case) != content]
        if changed:
            problem = f"resume=true: the files of {some(changed)} are not those that this run began with"
            raise BadDataset(problem, case=changed[0], fix=f"restore them, or {OTHER_FOLDER}")
        refuse_differences(self.facts, now.facts, BadDataset)


def open_record(run: RunFolder, verb: str, cfg: Mapping[str, Any]) -> RunRecord | None:
    """The record of the run that goes on; None for a new run, or one that ended before its first checkpoint.

    Nothing is written.

    Raises:
        UsageError: the folder holds a run and ``resume`` is not set; other settings than its own; or files that a run
            would write over and no record.
        UnreadableFile: the record is damaged, or was changed.
    """
    there = run.occupied()
    if there is None:
        return None
    if not run.record.is_file():
        problem = f"the folder holds {there.name} but no record of a run ({run.record.name})"
        raise UsageError(problem, path=run.path, fix=OTHER_FOLDER)
    if not cfg["resume"]:
        what = "checkpoint" if run.checkpoint.exists() else "run"
        fix = f"add resume=true to go on with it, or {OTHER_FOLDER}"
        raise UsageError(f"the run folder holds a {what} already", path=run.path, fix=fix)
    if not _any_begun(run):
        print("medseg: the run in this folder ended before its first step: it begins anew", flush=True)
        return None
    stored = _read(run)
    refuse_differences({"verb": stored.verb, **stored.config}, {"verb": verb, **json.loads(to_json(cfg))}, UsageError)
    return stored


def refuse_differences(
    stored: Mapping[str, Any], given: Mapping[str, Any], kind: type[UsageError] | type[BadDataset]
) -> None:
    """Name every setting that differs, with the stored and the given value; those of `MAY_CHANGE` may."""
    free = MAY_CHANGE | ({"model"} if stored.get("verb") == "adapt" else set())  # the base is told by its weights
    found = [difference for difference in differences(stored, given) if difference[0] not in free]
    if found:
        told = [f"{key} is {value}, the run in this folder has {has}" for key, has, value in found[:SHOWN]]
        more = [f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
        fix = f"give the settings of its config.json, or {OTHER_FOLDER}"
        raise kind(f"resume=true: {'; '.join(told + more)}", fix=fix if kind is UsageError else OTHER_FOLDER)


def differences(
    stored: Mapping[str, Any], given: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Dotted key, stored and given value of every leaf in which two configs differ; one that is absent is None."""
    for key in dict.fromkeys((*given, *stored)):
        own, other, name = stored.get(key), given.get(key), f"{prefix}{key}"
        if isinstance(own, Mapping) and isinstance(other, Mapping):
            yield from differences(own, other, f"{name}.")
        elif own != other:
            yield name, own, other


def begin(run: RunFolder, record: RunRecord, cfg: Mapping[str, Any], *, resumed: bool) -> None:
    """Write the record of a new run, or add to that of an old one that it goes on and what changed for that.

    This is the first write of a run, after everything that may refuse it.
    """
    changed = {key: given for key, _, given in differences(record.config, json.loads(to_json(cfg)))}
    session = {"started": datetime.now(UTC).isoformat(timespec="seconds"), "medseg": __version__, "changed": changed}
    if resumed:
        kept = read_json(run.record)
        write_json(run.record, {**kept, "sessions": [*kept["sessions"], session]})
        return
    own = {"verb": record.verb, "cases": record.cases, "facts": record.facts, "known": record.known}
    write_json(run.record, {**own, "identity": record.identity(), "begun": [], "sessions": [session]})
    write_json(run.config, record.config)
    write_json(run.plan, record.plan)
    if record.splits:
        write_json(run.splits, record.splits)


def note_begun(run: RunFolder, part: str) -> None:
    """Take down that the first checkpoint of a part of the run is on the disk."""
    kept = read_json(run.record)
    if part not in kept["begun"]:
        write_json(run.record, {**kept, "begun": [*kept["begun"], part]})


def has_begun(run: RunFolder, part: str) -> bool:
    """Whether there was a checkpoint of a part of the run."""
    return run.record.is_file() and part in read_json(run.record)["begun"]


def _any_begun(run: RunFolder) -> bool:
    """Whether there is, or was, any checkpoint."""
    try:
        begun = bool(read_json(run.record)["begun"])
    except (KeyError, TypeError):
        begun = True  # of what is told apart later
    return begun or any(os.path.lexists(path) for path in (run.checkpoint, *run.path.glob("fold_*/checkpoints/*.ckpt")))


def _read(run: RunFolder) -> RunRecord:
    kept = read_json(run.record)
    fix = f"bring the files of its record back from a copy, or {OTHER_FOLDER}"
    try:
        splits = read_json(run.splits) if run.splits.exists() else []
        own = {key: kept[key] for key in ("verb", "cases", "facts", "known")}
        record = RunRecord(config=read_json(run.config), plan=read_json(run.plan), splits=splits, **own)
        sound = kept["identity"] == record.identity() and {"begun", "sessions"} <= kept.keys()
    except (KeyError, TypeError, AttributeError):
        raise UnreadableFile("is no record of a run", path=run.record, fix=fix) from None
    if not sound:
        names = ", ".join(path.name for path in (run.config, run.plan, run.splits, run.record) if path.exists())
        raise UnreadableFile(f"the record of the run ({names}) was changed", path=run.path, fix=fix)
    return record

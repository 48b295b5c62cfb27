"""`medseg check`: look at every file of a dataset, list all faults at once, and write a repaired copy on request."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from medseg.data.catalogue import resolve_dataset
from medseg.data.check_across import check_across
from medseg.data.check_landmarks import check_outlines, check_points
from medseg.data.dataset import Case, SegmentationDataset
from medseg.data.findings import Finding, Findings, ordered
from medseg.data.inspect_case import CaseInspector, CaseReport
from medseg.data.landmark_files import LAYOUT
from medseg.data.outputs import plain_path
from medseg.data.parallel import choose_workers, map_cases
from medseg.data.repair import check_output, repair_dataset
from medseg.errors import MedsegError, UsageError
from medseg.io import to_json

SPLIT_KEYS = {
    "folds": "folds",
    "seed": "split_seed",
    "file": "split_file",
    "group_by": "group_by",
    "leave_out": "leave_out",
    "own": "own_split",
}


def check_dataset(
    dataset: SegmentationDataset,
    *,
    fix: str | Path | None = None,
    split: Mapping[str, Any] | None = None,
    target: Mapping[str, Any] | None = None,
    slices: str | int | None = None,
    workers: int | str | None = None,
    progress: bool = True,
) -> Findings:
    """Check all cases and what lies between them; faults are collected, never raised.

    Args:
        dataset: opened with ``strict=False``, so that missing files can be listed.
        fix: folder for a repaired copy of the whole dataset; must not exist, or be empty.
        split: arguments of `make_splits`, to know which duplicates a fold would train on and validate on.
        target: a target's name and arguments, to know whether it can be made of this dataset's labels.
        slices: how volumes are cut into slices for a 2D network.
        workers: processes; None or "auto" chooses.
        progress: show a bar on stderr.

    Returns:
        The findings, errors first.

    Raises:
        UsageError, ResourceError: the copy cannot be written; a worker process died.
    """
    if fix is not None:
        check_output(dataset, plain_path(fix))
    cases = (*dataset.training, *dataset.test)
    there = [case for case in cases if all(path.is_file() for path in case.images)]
    outcomes = map_cases(
        CaseInspector.of(dataset), cases, workers=choose_workers(workers, there), title="check", progress=progress
    )
    reports = {
        case.id: report if isinstance(report, CaseReport) else _refused(case, report) for case, report in outcomes
    }
    findings = [finding for report in reports.values() for finding in report.findings]
    findings += [*check_across(dataset, reports, split or {}, slices), *_target(dataset, target, reports)]
    result = Findings(dataset.name, dataset.root, len(cases), ordered(findings))
    if fix is None:
        return result
    left_out = repair_dataset(dataset, result.findings, fix)
    return replace(result, repaired=plain_path(fix), left_out=tuple(left_out))


def check_command(cfg: Mapping[str, Any]) -> int:
    """``medseg check``: print all findings in one table, or as JSON.

    Args:
        cfg: ``data`` and ``target`` as for training; ``fix=true`` writes a repaired copy to ``output`` (default:
            beside the dataset, its name with ``_repaired``); ``json=true`` prints JSON; ``workers``.

    Returns:
        3 if there are errors, else 0.

    Raises:
        MedsegError: the dataset cannot be opened at all, or the copy cannot be written.
    """
    data = cfg["data"]
    dataset = resolve_dataset(data, strict=False)
    if cfg.get("output") and not cfg.get("fix"):
        raise UsageError("output= is the folder of the repaired copy", fix="set fix=true too")
    beside = dataset.root.resolve().with_name(f"{dataset.root.resolve().name}_repaired")
    findings = check_dataset(
        dataset,
        fix=(cfg.get("output") or beside) if cfg.get("fix") else None,
        split={name: data[key] for name, key in SPLIT_KEYS.items() if data.get(key) is not None},
        target=cfg.get("target"),
        slices=data.get("slices"),
        workers=cfg.get("workers") or data.get("workers"),
        progress=not cfg.get("json"),
    )
    if cfg.get("json"):
        print(to_json(findings.to_dict()), end="")
    else:
        findings.print()
    return 3 if findings.count("error") else 0


def _target(
    dataset: SegmentationDataset, target: Mapping[str, Any] | None, reports: Mapping[str, CaseReport]
) -> Iterator[Finding]:
    """What a target, or the dataset itself, declares and that cannot be: regions, levels, structures of landmarks."""
    declared = {"regions": dataset.regions, "landmarks": dataset.landmarks}
    for settings in [target] if target else [{"name": name} for name, said in declared.items() if said is not None]:
        from medseg.targets import Landmarks  # torch: seconds that most checks do without
        from medseg.targets.base import configure_target

        try:
            made = configure_target(settings, dataset.label_facts)
        except MedsegError as error:
            file = dataset.root / (LAYOUT if settings["name"] == "landmarks" else "dataset.json")
            yield Finding("error", error.problem, file=file, fix=error.fix or "")
        else:
            counts = {case.id: reports[case.id].landmarks for case in dataset.training}
            yield from check_points(counts, dataset.landmarks, made.points, chosen=target is not None)
            if isinstance(made, Landmarks) and made.from_masks:
                yield from check_outlines(dataset.training, made.structures)


def _refused(case: Case, error: MedsegError) -> CaseReport:
    """A fault that no single check expected."""
    file = Path(error.path) if error.path else case.images[0]
    return CaseReport(findings=[Finding("error", error.problem, case.id, file, error.fix or "")])

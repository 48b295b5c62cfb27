"""The 2D zoo on real data: models trained for equal minutes on equal splits, a few seeds each; one table.

    python scripts/bench_zoo2d.py DATASET --output runs/zoo2d [--models unet ...] [--minutes 15] [--seeds 0 1 2]
        [--set model.base_channels=24]

DATASET is isic (skin lesions; the 200 cases of val.txt validate), wbc (white blood cells, fold 0 of nnU-Net's rule) or
chaos (abdominal MR, axial slices, re-stacked; fold 0). Every run is ``medseg train``; its validation cases, predicted
from their files, are scored: per case and pooled over all pixels, or, for chaos, Dice and HD95 of every organ in whole
volumes. Runs that the output folder holds are kept, so that a second call goes on; the table shows all of them.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from medseg.compose import compose
from medseg.data.catalogue import data_folders, resolve_dataset
from medseg.data.keys import digest
from medseg.errors import BadDataset, UsageError, nearest
from medseg.evaluation import CaseFiles, Evaluator
from medseg.models import MODELS

MODELS_OF_THE_ZOO = ("unet", "unetpp_nnunet", "att_swin_unet", "transdae", "barlow_swin")
FOLDERS = {"isic": "isic2017_256", "wbc": "wbc", "chaos": "Dataset038_CHAOS_MR"}
WORDS = {
    "isic": ["target.binary=true", "augmentation=dermoscopy"],
    "wbc": ["augmentation=microscopy"],
    "chaos": ["data.slices=axial", "augmentation=light"],
}
RECIPES = {  # the toolkit's own: configs/experiment/*_default.yaml and transdae.yaml, without their sizes
    "att_swin_unet": ["optimizer.lr=3e-4"],
    "transdae": ["optimizer.lr=5e-4", "optimizer.weight_decay=0.05"],
    "dae_former": ["optimizer.lr=5e-4", "optimizer.weight_decay=0.05"],
    "barlow_swin": ["optimizer.lr=1e-3", "model.head_norm=false"],
}
METRICS = {
    **{name: {"Dice": "dice", "SE": "recall", "SP": "specificity", "ACC": "accuracy"} for name in ("isic", "wbc")},
    "chaos": {"Dice": "dice", "HD95": "hausdorff_distance_95"},
}


def words_of(dataset: str, model: str, minutes: float, seed: int, run: Path, extra: Sequence[str]) -> list[str]:
    """What is typed after ``medseg train``."""
    seconds = round(minutes * 60)
    limit = f"00:{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    own = [
        f"data={find(FOLDERS[dataset])}",
        f"model={model}",
        f"seed={seed}",
        f"run_dir={run}",
        *WORDS[dataset],
        *RECIPES.get(model, []),
    ]
    return [*own, f"trainer.max_time={limit}", "trainer.progress=false", *extra]


def find(folder: str) -> Path:
    """The dataset's folder in one of medseg's data folders."""
    there = next((base / folder for base in data_folders() if (base / folder).is_dir()), None)
    if there is None:
        raise BadDataset(f"there is no {folder}", fix="set MEDSEG_DATA to the folder that holds it")
    return there


def train(dataset: str, model: str, minutes: float, seed: int, output: Path, extra: Sequence[str]) -> dict[str, Any]:
    """Train and score, or read what an earlier call found; returns the row of the table."""
    from medseg.training import fit

    name = "_".join([dataset, model, f"{minutes:g}min", f"seed{seed}", *([digest(list(extra))[:8]] if extra else [])])
    run = output / name
    if (run / "row.json").is_file():
        return dict(json.loads((run / "row.json").read_text()))
    shutil.rmtree(run, ignore_errors=True)  # a run that was broken off: its clock would not be that of the others
    config = compose("train", words_of(dataset, model, minutes, seed, run, extra))
    fit(config)
    description = json.loads((run / "model.json").read_text())
    facts = {"dataset": dataset, "model": model, "settings": list(extra), "minutes": minutes, "seed": seed}
    row = {**facts, "steps": description["training"]["steps"], "scores": score(dataset, config, run)}
    (run / "row.json").write_text(json.dumps(row, indent=1))
    return row


def score(dataset: str, config: Mapping[str, Any], run: Path) -> dict[str, dict[str, float | None]]:
    """By class, then by column: means over the validation cases and, for pictures, figures of all pixels together."""
    data = resolve_dataset(config["data"])
    ids = json.loads((run / "splits_final.json").read_text())[config["fold"]]["val"]
    files = [_files(data.case(case), run / "validation") for case in ids]
    columns = METRICS[dataset]
    report = Evaluator(data.labels, list(columns.values()), progress=False).evaluate(files)
    scores: dict[str, dict[str, float | None]] = {}
    for name, entry in report.aggregates.items():
        scores[name] = {key: entry["metrics"][metric]["mean"] for key, metric in columns.items()}
        if dataset != "chaos":
            scores[name] |= {f"pooled {key}": report.pooled[name][metric] for key, metric in columns.items()}
    return scores


def _files(case: Any, validation: Path) -> CaseFiles:
    prediction = next(path for path in validation.iterdir() if path.name.partition(".")[0] == case.id)
    return CaseFiles(case.id, case.label, prediction, case.images[0], coding=case.coding)


def table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Markdown: a line for each dataset, class, model and budget; mean over the seeds ± their standard deviation.

    Settings beside the model's name are those that not all rows share; the shared ones stand below.
    """
    rows = list(rows)
    shared = [word for word in rows[0]["settings"] if all(word in row["settings"] for row in rows)] if rows else []
    groups: dict[tuple[str, str, str, float], list[Mapping[str, Any]]] = {}
    for row in rows:
        model = " ".join([row["model"], *(word for word in row["settings"] if word not in shared)])
        for name in row["scores"]:
            groups.setdefault((row["dataset"], name, model, row["minutes"]), []).append(row)
    lines: list[str] = []
    heads: list[str] = []
    for (dataset, name, model, minutes), group in sorted(groups.items()):
        columns = list(group[0]["scores"][name])
        if columns != heads:
            heads = columns
            titles = ["dataset", "class", "model", "minutes", "seeds", "steps", *columns]
            lines += ["", f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
        cells = [spread([row["scores"][name][column] for row in group], column) for column in columns]
        steps = f"{fmean(row['steps'] for row in group):.0f}"
        lines.append(f"| {' | '.join([dataset, name, model, f'{minutes:g}', str(len(group)), steps, *cells])} |")
    return "\n".join([*lines, "", f"settings: {' '.join(shared)}"] if shared else lines).strip()


def spread(values: Sequence[float | None], column: str) -> str:
    """``0.853 ± 0.004``; without a spread for one seed, a dash where nothing could be measured."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    digits = 1 if column == "HD95" else 3
    return f"{fmean(known):.{digits}f}" + (f" ± {stdev(known):.{digits}f}" if len(known) > 1 else "")


def check_models(models: Sequence[str]) -> None:
    """Raises UsageError for a name that no model has, before anything is trained."""
    from medseg.compose import options

    known = options("model")
    for name in models:
        if name not in known:
            raise UsageError(f"there is no model '{name}': {nearest(name, [*known, *MODELS.names()])}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("dataset", choices=list(FOLDERS))
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--models", nargs="*", default=list(MODELS_OF_THE_ZOO))
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--set", nargs="*", default=[], help="further key=value words for medseg train")
    options = parser.parse_args()
    try:
        check_models(options.models)
        for seed, model in product(options.seeds, options.models):  # a broken-off table has all models of a seed
            train(options.dataset, model, options.minutes, seed, options.output, options.set)
    except (BadDataset, UsageError) as error:
        parser.exit(error.exit_code, f"{error}\n")
    rows = [json.loads(path.read_text()) for path in sorted(options.output.glob("*/row.json"))]
    text = table(rows)
    (options.output / "table.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()

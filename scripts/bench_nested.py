"""Softmax, sigmoid regions and the multi-level activation on the same network and budget: Dice and containment.

    python scripts/bench_nested.py --output runs/nested [--data wbc hippocampus brats] [--minutes 3] [--seeds 3]
        [--methods exclusive regions nested] [--model unet] [--set model.base_channels=16]

The three methods differ in the last convolution (a channel per class, a channel per region, one channel) and in what
follows it; each trains with its own default loss of Dice and cross-entropy. wbc and hippocampus: fold 0 of five; brats:
leave-one-out over four subjects, which proves the path and no figure of the paper. Labels that share a level are one
class for softmax too. A violation is a voxel where an inner region is predicted (p >= 0.5) outside of the region around
it, before regions are painted into a label map. Softmax cannot have any: its regions are sums of exclusive classes.
Runs of one output folder add up, and what is there is not trained again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise, product
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

import numpy as np

from medseg import Predictor
from medseg.data.catalogue import data_folders, find_dataset
from medseg.data.dataset import open_dataset
from medseg.io import read_json, read_labels, write_json, write_labels

METHODS = {"exclusive": "softmax", "regions": "sigmoid regions", "nested": "multi-level activation"}


class Task(NamedTuple):
    """A dataset whose label values are levels, and what its nested regions are called, the outermost first."""

    folder: Path
    regions: dict[str, list[int]]
    folds: int
    validated: tuple[int, ...]


def make_task(name: str, output: Path) -> Task:
    """The dataset of that name; BraTS labels become levels first (whole 1, core 2, enhancing 3)."""
    if name == "hippocampus":
        return Task(find_dataset(name), {"whole": [1, 2], "posterior": [2]}, 5, (0,))
    if name == "wbc":
        return Task(_found("wbc"), {"cell": [1, 2], "nucleus": [2]}, 5, (0,))
    regions = {"whole": [1, 2, 3], "core": [2, 3], "enhancing": [3]}
    return Task(as_levels(_found("Dataset043_BraTS_sample"), output / "brats"), regions, 4, (0, 1, 2, 3))


def _found(name: str) -> Path:
    found = [folder / name for folder in data_folders() if (folder / name).is_dir()]
    if not found:
        raise SystemExit(f"{name} is in none of {', '.join(map(str, data_folders()))}: set MEDSEG_DATA")
    return found[0]


def as_levels(source: Path, folder: Path) -> Path:
    """A copy of the BraTS sample: oedema 1, necrosis and non-enhancing 2, enhancing 3."""
    if (folder / "dataset.json").exists():
        return folder
    shutil.copytree(source / "imagesTr", folder / "imagesTr", dirs_exist_ok=True)
    (folder / "labelsTr").mkdir(parents=True, exist_ok=True)
    for path in sorted((source / "labelsTr").iterdir()):
        volume = read_labels(path)
        write_labels(
            folder / "labelsTr" / path.name, np.array([0, 2, 1, 2, 3], np.uint8)[volume.array[0]], volume.geometry
        )
    description = read_json(source / "dataset.json")
    labels = {"background": 0, "oedema": 1, "necrosis_and_non_enhancing": 2, "enhancing": 3}
    write_json(folder / "dataset.json", {**description, "labels": labels})
    return folder


def budget_words(budget: str) -> list[str]:
    """``"90s"`` -> a limit of time, ``"200 steps"`` -> of steps, as words for medseg train."""
    if budget.endswith("steps"):
        return ["trainer.max_epochs=1", f"trainer.steps_per_epoch={budget.split()[0]}"]
    seconds = int(budget[:-1])
    return [f"trainer.max_time=00:{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"]


def train(task: Task, method: str, seed: int, fold: int, run: Path, more: Sequence[str]) -> dict[str, Any]:
    """Train; returns Dice of the regions, violations and steps."""
    shutil.rmtree(run, ignore_errors=True)
    regions = "{" + ",".join(f"{name}:{values}" for name, values in task.regions.items()) + "}"
    words = [f"data={task.folder}", f"data.folds={task.folds}", f"target={method}", f"target.regions={regions}"]
    words += [f"fold={fold}", f"seed={seed}", f"run_dir={run}", "trainer.progress=false"]
    subprocess.run([sys.executable, "-m", "medseg.cli", "train", *words, *more], check=True)
    mean = read_json(run / "validation" / "summary.json")["mean"]
    keys = {name: str(values[0] if len(values) == 1 else tuple(values)) for name, values in task.regions.items()}
    dice = {name: mean[key]["Dice"] for name, key in keys.items()}
    return {"dice": dice, **violations(task, run, fold), "steps": read_json(run / "model.json")["training"]["steps"]}


def violations(task: Task, run: Path, fold: int) -> dict[str, int]:
    """Voxels, and cases, of the validation cases of a run with an inner region outside of the one around it."""
    predictor, dataset = Predictor.from_pretrained(run), open_dataset(task.folder)
    ids = read_json(run / "splits_final.json")[fold]["val"]
    voxels = []
    for case in ids:
        shares = predictor.predict(dataset.case(case), probabilities=True).probabilities
        assert shares is not None
        inside = region_shares(shares, predictor, task) >= 0.5
        voxels.append(sum(int((inner & ~outer).sum()) for outer, inner in pairwise(inside)))
    return {"violations": sum(voxels), "violating_cases": sum(map(bool, voxels)), "cases": len(ids)}


def region_shares(shares: np.ndarray, predictor: Predictor, task: Task) -> np.ndarray:
    """Probabilities (R, *S) of the regions; softmax's are those of its classes, from the innermost outwards."""
    if predictor.target.name != "exclusive":
        return shares
    return np.flip(np.cumsum(np.flip(shares[1:], 0), 0), 0)  # label values are levels 1..L here


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: one row for each dataset, budget and method; mean and spread over seeds of the mean over folds."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["data"], row["budget"], row["method"]), []).append(row)
    lines = ["| data | budget | method | seeds | steps | Dice (mean ± sd over seeds) | violations, voxels | in cases |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for (data, budget, method), group in sorted(groups.items()):
        seeds = sorted({row["seed"] for row in group})
        steps = fmean(row["steps"] for row in group)
        told = ", ".join(f"{name} {_spread(group, name, seeds)}" for name in group[0]["dice"])
        count, cases = sum(row["violations"] for row in group), sum(row["violating_cases"] for row in group)
        of = sum(row["cases"] for row in group)
        cells = [data, budget, METHODS[method], len(seeds), f"{steps:.0f}", told, count, f"{cases} of {of}"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def _spread(group: Sequence[dict[str, Any]], region: str, seeds: Sequence[int]) -> str:
    found = [[row["dice"][region] for row in group if row["seed"] == seed] for seed in seeds]
    means = [fmean(dice for dice in seed if dice is not None) for seed in found]
    return f"{fmean(means):.4f}" + (f" ± {stdev(means):.4f}" if len(seeds) > 1 else "")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--data", nargs="*", default=["wbc", "hippocampus", "brats"])
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--steps", type=int, help="instead of minutes: for a machine that others use too")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--model", default="unet")
    parser.add_argument("--set", nargs="*", default=[], help="further key=value words for medseg train")
    options = parser.parse_args()
    os.makedirs(options.output, exist_ok=True)
    store = options.output / "rows.json"
    rows: list[dict[str, Any]] = json.loads(store.read_text()) if store.exists() else []
    budget = f"{options.steps} steps" if options.steps else f"{round(60 * options.minutes)}s"
    more = [f"model={options.model}", *budget_words(budget), *options.set]
    for name in options.data:
        task = make_task(name, options.output)
        for seed, method, fold in product(range(options.seeds), options.methods, task.validated):
            facts = {"data": name, "method": method, "seed": seed, "fold": fold, "budget": budget, "set": more}
            if any(all(row[key] == value for key, value in facts.items()) for row in rows):
                continue
            run = options.output / "_".join(
                [name, method, options.model, budget.replace(" ", ""), f"{seed}", f"{fold}"]
            )
            rows.append({**facts, **train(task, method, seed, fold, run, more)})
            store.write_text(json.dumps(rows, indent=1))
    text = table([row for row in rows if row["set"] == more])
    (options.output / "table.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()

"""Dice against minutes on MSD hippocampus, folds of nnU-Net's rule, on this machine: a table and a curve.

    python scripts/bench_hippocampus.py --output runs/bench [--budgets 1.5 6 30] [--models unet unetpp_nnunet]
        [--folds 0 1 2 3 4] [--nnunet 30] [--set augmentation=default]

Each budget is a training of its own, since the learning rate follows the budget. Dice is the mean over both classes of
the 40 validation cases of a fold, predicted from their files by ``medseg predict``'s code. ``--nnunet MINUTES`` trains
nnU-Net v2 (``pip install -e .[bench]``) on the same cores and the first fold, stops it after that time and evaluates
its predictions with medseg. Runs of one output folder add up: its table and curve show all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from medseg.data.catalogue import find_dataset
from medseg.data.dataset import open_dataset
from medseg.data.splits import nnunet_splits
from medseg.evaluation import CaseFiles, Evaluator

DATASET, TRAINER = 4, "nnUNetTrainer"


def train(model: str, minutes: float, fold: int, output: Path, extra: Sequence[str]) -> dict[str, Any]:
    """Train within a budget; returns the row of the table."""
    name = " ".join([model, *extra])
    run = output / f"{name.replace(' ', '_').replace('=', '-')}_{minutes:g}min_fold{fold}"
    shutil.rmtree(run, ignore_errors=True)
    seconds = round(minutes * 60)
    limit = f"00:{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    words = [f"model={model}", f"fold={fold}", f"trainer.max_time={limit}", f"run_dir={run}", *extra]
    subprocess.run([sys.executable, "-m", "medseg.cli", "train", "data=hippocampus", *words], check=True)
    facts = json.loads((run / "model.json").read_text())["training"]
    mean = json.loads((run / "validation" / "summary.json").read_text())["mean"]
    return {"what": f"medseg {name}", "minutes": minutes, "fold": fold, "steps": facts["steps"], **_dice(mean)}


def _dice(mean: dict[str, Any]) -> dict[str, float]:
    anterior, posterior = mean["1"]["Dice"], mean["2"]["Dice"]
    return {"dice": (anterior + posterior) / 2, "anterior": anterior, "posterior": posterior}


def train_nnunet(minutes: float, fold: int, output: Path) -> dict[str, Any]:
    """nnU-Net v2's own commands on a fold, stopped after `minutes` of training; its last state is evaluated."""
    data, base = find_dataset("hippocampus"), output / "nnunet"
    folders = {name: base / name for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    environment = {**os.environ, **{name: str(path) for name, path in folders.items()}, "nnUNet_compile": "f"}
    raw = folders["nnUNet_raw"] / "Dataset004_Hippocampus"
    shutil.copytree(data, raw, dirs_exist_ok=True)
    tools = Path(sys.executable).parent
    run = lambda *words: subprocess.run(words, check=True, env=environment)  # noqa: E731
    run(str(tools / "nnUNetv2_plan_and_preprocess"), "-d", str(DATASET), "-c", "3d_fullres", "-np", "2", "--clean")
    driver = Path(__file__).with_name("_nnunet_minutes.py")
    run(sys.executable, str(driver), str(DATASET), str(fold), str(minutes * 60))
    dataset = open_dataset(data)
    cases = [dataset.case(name) for name in nnunet_splits([c.id for c in dataset.training])[fold]["val"]]
    images, predictions = base / "images", base / "predictions"
    images.mkdir(exist_ok=True)
    for case in cases:
        shutil.copy(case.images[0], images)
    where = ["-d", str(DATASET), "-c", "3d_fullres", "-f", str(fold), "-tr", TRAINER, "-chk", "checkpoint_final.pth"]
    run(str(tools / "nnUNetv2_predict"), "-i", str(images), "-o", str(predictions), *where, "-device", "cpu")
    files = [CaseFiles(c.id, c.label, predictions / f"{c.id}.nii.gz") for c in cases if c.label]
    report = Evaluator(dataset.labels).evaluate(files)
    facts = json.loads((base / "facts.json").read_text())
    row = {"what": "nnU-Net v2", "minutes": minutes, "fold": fold, "steps": facts["steps"]}
    return {**row, **_dice(report.summary()["mean"])}


def summarise(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each method and budget: means over the folds."""
    groups: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["what"], row["minutes"]), []).append(row)
    return [
        {
            "what": what,
            "minutes": minutes,
            "folds": sorted(row["fold"] for row in group),
            **{key: fmean(row[key] for row in group) for key in ("steps", "dice", "anterior", "posterior")},
        }
        for (what, minutes), group in sorted(groups.items())
    ]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["| | minutes | folds | steps | Dice | anterior | posterior |", "|---|---|---|---|---|---|---|"]
    form = "| {what} | {minutes:g} | {places} | {steps:.0f} | {dice:.4f} | {anterior:.4f} | {posterior:.4f} |"
    return "\n".join([*lines, *(form.format(**row, places=" ".join(map(str, row["folds"]))) for row in rows)])


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Final Dice against minutes: a line for each method on the first fold, stars for means over several folds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.subplots()
    first = min(row["fold"] for row in rows)
    for number, what in enumerate(dict.fromkeys(row["what"] for row in rows)):
        own = [row for row in rows if row["what"] == what]
        points = sorted((row["minutes"], row["dice"]) for row in own if row["fold"] == first)
        means = [row for row in summarise(own) if len(row["folds"]) > 1]
        label = f"{what} (fold {first}" + ("; stars: several folds)" if means else ")")
        axes.plot(*np.array(points).T.reshape(2, -1), "o-", color=f"C{number}", label=label)
        axes.plot([row["minutes"] for row in means], [row["dice"] for row in means], "*", ms=12, color=f"C{number}")
    axes.axhline(0.8904, color="grey", ls=":", label="nnU-Net, 1,000 epochs on an H100 (published, five folds of 260)")
    axes.set(xscale="log", xlabel="minutes of training on two CPU cores", ylabel="mean Dice on validation cases")
    axes.set_xticks(ticks := sorted({row["minutes"] for row in rows}), [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--budgets", type=float, nargs="*", default=[1.5, 6, 30])
    parser.add_argument("--models", nargs="*", default=["unet", "unetpp_nnunet"])
    parser.add_argument("--folds", type=int, nargs="*", default=[0])
    parser.add_argument("--nnunet", type=float, help="minutes")
    parser.add_argument("--set", nargs="*", default=[], help="further key=value words for medseg train")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    store, started = options.output / "rows.json", time.time()
    rows: list[dict[str, Any]] = json.loads(store.read_text()) if store.exists() else []
    for minutes, model, fold in product(options.budgets, options.models, options.folds):
        rows.append(train(model, minutes, fold, options.output, options.set))
        store.write_text(json.dumps(rows, indent=1))
    if options.nnunet:
        rows.append(train_nnunet(options.nnunet, options.folds[0], options.output))
        store.write_text(json.dumps(rows, indent=1))
    summary = summarise(rows)
    draw(rows, options.output / "dice_against_minutes.png")
    print(table(summary), f"\nall in {(time.time() - started) / 60:.0f} minutes; curve: {options.output}")


if __name__ == "__main__":
    main()

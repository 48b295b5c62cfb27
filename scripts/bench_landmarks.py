"""HybridGNet against a U-Net on lungs in chest X-rays: at home, at another hospital, and with a part of a lung hidden.

    python scripts/bench_landmarks.py --output runs/landmarks [--minutes 25] [--models 2-IGSC 1-IGSC plain unet]
        [--data ../shared/data/cxr_lungs] [--cases 0] [--set trainer.threads=2]

Each model trains for the same time on the Shenzhen images (CHNCXR) that val.txt does not list, with the same
augmentation. Scored are the 60 images of val.txt, the 70 of Montgomery (MCUCXR) without retraining, and the 60 with a
black box over one lung. Dice and HD95 are of both lungs together; distances are in pixels of a 1024x1024 image. An
output is implausible if it has a hole or more than two pieces. No output is post-processed. A second run with the same
output folder goes on where the first stopped.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from medseg.data.dataset import Case, open_dataset
from medseg.data.landmark_files import read_landmarks
from medseg.evaluation import evaluate_arrays, evaluate_landmarks
from medseg.evaluation.topology import betti_numbers
from medseg.inference import Predictor
from medseg.io import Volume, read_labels, read_volume

MODELS = {
    "2-IGSC": ["experiment=hybridgnet_lungs"],
    "1-IGSC": ["experiment=hybridgnet_lungs", "model.skip_layers=[6]"],
    "plain": ["experiment=hybridgnet_lungs", "model.skip_layers=[]"],
    "unet": ["model=unet", "augmentation=landmarks", "plan.patch_size=[256,256]", "plan.batch_size=4"],
}
RIGHT, LEFT = slice(0, 44), slice(44, 94)
SCALE = 1024
HIDDEN = 0.6  # of a lung's width and height


def split(data: Path, output: Path) -> tuple[Path, list[str], list[str]]:
    """Split file for the training, ids to validate on, ids of the other hospital."""
    validation = (data / "val.txt").read_text().split()
    ids = [case.id for case in open_dataset(data).training]
    home = [name for name in ids if name.startswith("CHNCXR") and name not in validation]
    file = output / "split.json"
    file.write_text(json.dumps([{"train": home, "val": validation}]))
    return file, validation, [name for name in ids if name.startswith("MCUCXR")]


def train(name: str, minutes: float, data: Path, splits: Path, run: Path, extra: Sequence[str]) -> None:
    """Train a model in its run folder, or go on with it; nothing if it is done."""
    if (run / "validation" / "summary.json").exists():
        return
    seconds = round(minutes * 60)
    limit = f"00:{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    words = [f"data={data}", f"data.split_file={splits}", f"run_dir={run}", f"trainer.max_time={limit}", "resume=true"]
    subprocess.run([sys.executable, "-m", "medseg.cli", "train", *words, *MODELS[name], *extra], check=True)


def hide(image: Volume, points: np.ndarray, case: str) -> Volume:
    """The image with a black box over the middle of one lung; the case's name decides which."""
    lung = points[RIGHT if sum(case.encode()) % 2 else LEFT]
    centre, half = (lung.min(0) + lung.max(0)) / 2, (lung.max(0) - lung.min(0)) * HIDDEN / 2
    (left, top), (right, bottom) = np.maximum(np.stack([centre - half, centre + half]).round().astype(int), 0)
    array = image.array.copy()
    array[:, top:bottom, left:right] = array.min()
    return Volume(array, image.geometry)


def score(predictor: Predictor, case: Case, hidden: bool) -> dict[str, float | None]:
    """Of one image; distances in pixels of a 1024x1024 image."""
    assert case.landmarks is not None
    assert case.label is not None
    points, image = read_landmarks(case.landmarks, case.id), read_volume(case.images[0])
    found = predictor.predict(hide(image, points, case.id) if hidden else image)
    to_scale = SCALE / image.spatial_shape[0]
    masks = found.labels, read_labels(case.label).array[0]
    spacing = (to_scale, to_scale)
    dice, distance = "dice", "hausdorff_distance_95"
    (scores,) = evaluate_arrays(*masks, spacing=spacing, labels=[1], metrics=[dice, distance]).values()
    pieces, holes, _ = betti_numbers(found.labels == 1)
    error = None
    if found.landmarks is not None:
        error = evaluate_landmarks(found.landmarks, points, spacing=spacing)["all"]["mean_radial_error"]
    return {
        "dice": scores[dice],
        "hd95": scores[distance],
        "error": error,
        "implausible": float(pieces > 2 or holes > 0),
    }


def evaluate(run: Path, cases: Sequence[Case], hidden: bool) -> dict[str, float | int | None]:
    """Means over the cases, and the number of implausible outputs."""
    predictor = Predictor.from_pretrained(run, postprocess=False)
    scores = [score(predictor, case, hidden) for case in cases]
    means = {
        key: None if scores[0][key] is None else fmean(float(one[key] or 0.0) for one in scores)
        for key in ("dice", "hd95", "error")
    }
    return {**means, "implausible": int(sum(one["implausible"] or 0 for one in scores)), "n": len(scores)}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| model | minutes | steps | images | Dice | HD95 (px at 1024) | landmarks (px) | (% of width) | implausible |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        error = "–" if row["error"] is None else f"{row['error']:.1f}"
        share = "–" if row["error"] is None else f"{100 * row['error'] / SCALE:.2f}"
        lines.append(
            f"| {row['model']} | {row['minutes']:g} | {row['steps']} | {row['images']} | {row['dice']:.3f} | "
            f"{row['hd95']:.1f} | {error} | {share} | {row['implausible']}/{row['n']} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    beside = Path(__file__).resolve().parents[2] / "shared" / "data" / "cxr_lungs"
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=beside)
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--cases", type=int, default=0, help="score so many images of each kind only; 0: all")
    parser.add_argument("--set", nargs="*", default=[], help="further key=value words for medseg train")
    options = parser.parse_args()
    output: Path = options.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    store = output / "rows.json"
    rows: list[dict[str, Any]] = json.loads(store.read_text()) if store.exists() else []
    splits, validation, other = split(options.data, output)
    dataset = open_dataset(options.data)
    kinds = {"validation": (validation, False), "other hospital": (other, False), "occluded": (validation, True)}
    for name in options.models:
        run = output / f"{name}_{options.minutes:g}min"
        train(name, options.minutes, options.data, splits, run, options.set)
        steps = json.loads((run / "model.json").read_text())["training"]["steps"]
        for images, (ids, hidden) in kinds.items():
            known = {"model": name, "minutes": options.minutes, "images": images}
            if any(known.items() <= row.items() for row in rows):
                continue
            cases = [dataset.case(case) for case in (ids[: options.cases] if options.cases else ids)]
            rows.append({**known, "steps": steps, **evaluate(run, cases, hidden)})
            store.write_text(json.dumps(rows, indent=1))
    (output / "table.md").write_text(table(rows) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()

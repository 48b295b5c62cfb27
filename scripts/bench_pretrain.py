"""Does pretraining help where labels are few? Fine-tuning on a part of the ISIC 2017 labels, against from scratch.

    python scripts/bench_pretrain.py --output runs/ssl [--data ../shared/data/isic2017_256] [--models unet]
        [--pretrain-minutes 15] [--minutes 5] [--fractions 0.05 0.1] [--seeds 0 1 2] [--set model.base_channels=16]
        [--pretrain-set batch_size=64] [--train-set plan.size=[64,64]]

One Barlow Twins pretraining for each model and seed on all training images (never those of ``val.txt``), then for
each share of labels two trainings of ``--minutes``: from that encoder and from scratch, on the same cases. Dice is the
mean over the validation images. The time of pretraining is not taken from the fine-tuning's: the table says so. What is
done already in the output folder is not done again; an interrupted run is resumed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from medseg.data.case_files import image_files, stem

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "isic2017_256"


def write_split(data: Path, output: Path) -> Path:
    """One fold: ``val.txt`` validates (a name or a path in a line, with ending or without), all others train."""
    listed = {Path(line.strip()).name for line in (data / "val.txt").read_text().split("\n") if line.strip()}
    names = [(stem(file), file.name) for file in image_files(data / "images")]
    fold = {"train": [], "val": []}
    for name, file in names:
        fold["val" if {name, file} & listed else "train"].append(name)
    path = output / "split.json"
    path.write_text(json.dumps([fold]))
    return path


def limit(minutes: float) -> str:
    """Minutes as trainer.max_time wants them."""
    seconds = max(1, round(minutes * 60))
    return f"00:{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def medseg(verb: str, run: Path, words: Sequence[str], done: str) -> None:
    """Run a verb of medseg into a folder, unless it is finished there; go on where it was interrupted."""
    if (run / done).exists():
        return
    resume = [f"resume={str((run / 'checkpoints' / 'last.ckpt').exists()).lower()}"]
    subprocess.run([sys.executable, "-m", "medseg.cli", verb, f"run_dir={run}", *words, *resume], check=True)


def measure(options: argparse.Namespace, model: str, seed: int) -> list[dict[str, Any]]:
    """Rows of one model and seed."""
    split = write_split(options.data, options.output)
    shared = [f"data={options.data}", f"data.split_file={split}", "fold=0", f"model={model}", f"seed={seed}"]
    shared += options.set
    encoder = options.output / f"{model}_seed{seed}_pretrain"
    pretraining = [*shared, *options.pretrain_set, f"trainer.max_time={limit(options.pretrain_minutes)}"]
    medseg("pretrain", encoder, pretraining, "encoder/model.json")
    rows = []
    for fraction, start in product(options.fractions, ("scratch", "pretrained")):
        run = options.output / f"{model}_seed{seed}_{fraction:g}_{start}"
        words = [*shared, f"data.limit_train={float(fraction)}", f"trainer.max_time={limit(options.minutes)}"]
        words += [*options.train_set, *([f"pretrained={encoder}"] if start == "pretrained" else [])]
        medseg("train", run, words, "validation/summary.json")
        summary = json.loads((run / "validation" / "summary.json").read_text())
        facts = json.loads((run / "model.json").read_text())["training"]
        score = {"dice": summary["foreground_mean"]["Dice"], "cases": facts["cases"], "steps": facts["steps"]}
        rows.append({"model": model, "seed": seed, "fraction": fraction, "start": start, **score})
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: mean and standard deviation over the seeds, and the paired difference to scratch."""
    lines = [
        "| model | labels | cases | from scratch | pretrained | difference | seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    for model, fraction in sorted({(row["model"], row["fraction"]) for row in rows}):
        own = [row for row in rows if (row["model"], row["fraction"]) == (model, fraction)]
        dice = {(row["start"], row["seed"]): row["dice"] for row in own}
        seeds = sorted({row["seed"] for row in own})
        scratch, tuned = ([dice[start, seed] for seed in seeds] for start in ("scratch", "pretrained"))
        gains = [after - before for before, after in zip(scratch, tuned, strict=True)]
        cells = [model, f"{fraction:.0%}", str(own[0]["cases"]), spread(scratch), spread(tuned), spread(gains, "+")]
        lines.append("| " + " | ".join([*cells, str(len(seeds))]) + " |")
    return "\n".join(lines)


def spread(values: Sequence[float], sign: str = "") -> str:
    """Mean and standard deviation."""
    return f"{fmean(values):{sign}.4f}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else "")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=DATA, help="folder with images, masks and val.txt")
    parser.add_argument("--models", nargs="*", default=["unet"])
    parser.add_argument("--pretrain-minutes", type=float, default=15)
    parser.add_argument("--minutes", type=float, default=5, help="of each fine-tuning")
    parser.add_argument("--fractions", type=float, nargs="*", default=[0.05, 0.1])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--set", nargs="*", default=[], help="further key=value words for pretraining and training")
    parser.add_argument("--train-set", nargs="*", default=[], help="further key=value words for training alone")
    parser.add_argument("--pretrain-set", nargs="*", default=[], help="further key=value words for pretraining alone")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    options.output, options.data = options.output.resolve(), options.data.resolve()
    rows: list[dict[str, Any]] = []
    for model, seed in product(options.models, options.seeds):
        rows += measure(options, model, seed)
        (options.output / "rows.json").write_text(json.dumps(rows, indent=1))
        print(table(rows), flush=True)
    print(
        f"pretraining: {options.pretrain_minutes:g} minutes, not counted; each fine-tuning: {options.minutes:g} minutes"
    )


if __name__ == "__main__":
    main()

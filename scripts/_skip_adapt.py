"""The table of ``bench_skips.py --adapt``."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from itertools import product
from statistics import fmean
from typing import Any

import pandas as pd
import torch
from _skip_bench import WIDTH, Rows, build, fit, parameters, score
from _skip_data import Example, Task, load
from torch import nn

from medseg.blocks.skip.attach import attach_skips
from medseg.blocks.skip.scale import calibrate_skips
from medseg.device import DeviceProfile
from medseg.io import load_checkpoint, save_checkpoint
from medseg.targets import ExclusiveClasses, Target

METHODS = {
    "frozen": None,
    "skip_scale": None,
    "head": (None, "head"),
    "skip_tuner": ({"edit": "sc_tuner"}, "skips"),
    "decoder": (None, "decoder"),
    "all": (None, "all"),
}
SHOTS = 8


def adaptation(options: argparse.Namespace, profile: DeviceProfile) -> str:
    """Every method on every shift and seed; Dice of the remaining cases of the new domain."""
    store = Rows(options.output / "adapt.json")
    for name in options.tasks:
        if name == "isic":
            continue
        task = load(name, options.limit)
        target = ExclusiveClasses(labels=task.labels)
        for seed, domain in product(options.seeds, list(task.test)[1:]):
            cases = task.test[domain]
            order = torch.randperm(len(cases), generator=torch.Generator().manual_seed(seed)).tolist()
            few, rest = [cases[i] for i in order[:SHOTS]], [cases[i] for i in order[SHOTS:]] or cases
            for method in METHODS:
                if store.find(task=name, domain=domain, method=method, seed=seed):
                    continue
                model = base_model(task, target, profile, options, seed)
                row = adapt_once(model, method, few, rest, target, profile, options, seed)
                store.add({"task": name, "domain": domain, "method": method, "seed": seed, **row})
                print({key: value for key, value in store.rows[-1].items() if key != "cases"}, flush=True)
    return adapt_table(store.rows)


def base_model(task: Task, target: Target, profile: DeviceProfile, options: argparse.Namespace, seed: int) -> nn.Module:
    """The network of the training domain; trained once per seed, then read."""
    torch.manual_seed(seed)
    model = build("concat", task.spatial_dims, WIDTH[task.spatial_dims], len(task.labels), task.channels)
    file = options.output / f"{task.name}_{options.base}_{seed}.ckpt"
    if not file.exists():
        steps = fit(model, task.train, target, profile, budget=options.base, seed=seed)
        save_checkpoint(file, {"state": model.state_dict(), "steps": steps})
    model.load_state_dict(load_checkpoint(file)["state"])
    return profile.place(model)


def adapt_once(
    model: nn.Module, method: str, few: Sequence[Example], rest: Sequence[Example], target: Target,
    profile: DeviceProfile, options: argparse.Namespace, seed: int,
) -> dict[str, Any]:  # fmt: skip
    """Adapt with the labelled cases, score on the rest."""
    total, count, steps = parameters(model), 0, 0
    plan = METHODS[method]
    if plan is not None:
        names = set(attach_skips(model, plan[0], train=plan[1]))
        count = sum(p.numel() for name, p in model.named_parameters() if name in names)
        steps = fit(model, few, target, profile, budget=options.budget, seed=seed, lr=options.lr)
    elif method == "skip_scale":
        loader = [(image[None], label[None]) for _, image, label in few]
        calibrate_skips(
            model, loader, lambda logits, label: -target.loss(logits, target.encode(label)), mode="coordinate"
        )
    dice = score(model, rest, target, profile)
    return {"parameters": total, "trained": count, "steps": steps, "dice": fmean(dice.values()), "cases": dice}


def adapt_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown, means over the seeds."""
    lines = ["| task | domain | method | seeds | trained parameters | share | Dice |", "|---|---|---|---|---|---|---|"]
    frame = pd.DataFrame(rows).groupby(["task", "domain", "method"], sort=False)
    for (task, domain, method), group in frame:
        trained, share = int(group.trained.iloc[0]), group.trained.iloc[0] / group.parameters.iloc[0]
        dice = " ".join(f"{value:.3f}" for value in group.dice)
        line = f"| {task} | {domain} | {method} | {len(group)} | {trained:,} | {share:.1%} "
        lines.append(f"{line}| {group.dice.mean():.3f} ({dice}) |")
    return "\n".join(lines)

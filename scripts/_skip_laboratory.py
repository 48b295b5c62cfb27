"""The table of ``bench_skips.py --laboratory``."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from itertools import product
from statistics import fmean, median
from typing import Any

import numpy as np
import pandas as pd
import torch
from _skip_bench import BATCH, FAMILIES, WIDTH, Rows, build, fit, parameters, score, step
from _skip_data import SIZE, Task, load
from torch import nn

from medseg.device import DeviceProfile, without_memory
from medseg.evaluation.comparison import compare, holm
from medseg.targets import ExclusiveClasses, Target

PAIRS, TIMED_WIDTHS = 9, 6


def matched(
    spatial_dims: int, classes: int, channels: int = 1, *, profile: DeviceProfile | None = None
) -> dict[str, int]:
    """Family -> the width whose parameters, or with a profile time per step, are nearest to concat's."""
    own = WIDTH[spatial_dims]
    widths = range(own // 3, 2 * own + 1)

    def costs(family: str) -> np.ndarray:
        """Of each width, as a multiple of concat's; times are measured of a few widths, and lie on a smooth curve."""
        if profile is None:
            return np.array([size(family, width) for width in widths]) / size("concat", own)
        few = np.linspace(widths[0], widths[-1], TIMED_WIDTHS).round().astype(int).tolist()
        times = [pace(family, width, spatial_dims, classes, channels, profile) for width in few]
        return np.exp(np.polyval(np.polyfit(np.log(few), np.log(times), 2), np.log(widths)))

    def size(family: str, width: int) -> int:
        with without_memory():
            return parameters(build(family, spatial_dims, width, classes, channels))

    nearest = {family: widths[int(np.abs(costs(family) - 1).argmin())] for family in FAMILIES if family != "concat"}
    return {"concat": own, **nearest}


def pace(family: str, width: int, spatial_dims: int, classes: int, channels: int, profile: DeviceProfile) -> float:
    """Time of a training step as a multiple of concat's: median over pairs, so that other work slows both of them."""
    image = profile.place_batch(torch.randn(BATCH[spatial_dims], channels, *SIZE[spatial_dims]))
    keys = ((family, width), ("concat", WIDTH[spatial_dims]))
    models = [profile.place(build(name, spatial_dims, n, classes, channels)).train() for name, n in keys]
    with profile.autocast():
        times = [[step(model, image) for model in models] for _ in range(PAIRS + 1)]
    return median(one / plain for one, plain in times[1:])


def macs(model: nn.Module, shape: Sequence[int]) -> int:
    """Multiply-adds of one image."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(shape))
    return counter.get_total_flops() // 2


def laboratory(options: argparse.Namespace, profile: DeviceProfile) -> str:
    """Every family, matched in parameters and in time, on every task and seed."""
    store = Rows(options.output / "laboratory.json")
    for name in options.tasks:
        task = load(name, options.limit)
        target = ExclusiveClasses(labels=task.labels)
        for by in ("parameters", "latency"):
            kept = store.find(widths_of=name, by=by)
            if kept is None:
                shape = task.spatial_dims, len(task.labels), task.channels
                widths = matched(*shape, profile=profile if by == "latency" else None)
                paces = {family: pace(family, width, *shape, profile) for family, width in widths.items()}
                kept = {"widths_of": name, "by": by, "widths": widths, "paces": paces}
                store.add(kept)
            for seed, family in product(options.seeds, FAMILIES):
                width = kept["widths"][family]
                key = {"task": name, "family": family, "seed": seed, "width": width}
                if not store.find(by=by, **key):  # a width that fits both ways is trained once
                    row = store.find(**key) or laboratory_once(task, target, profile, options, family, width, seed)
                    store.add({**row, **key, "by": by})
                    print({key: value for key, value in store.rows[-1].items() if key != "cases"}, flush=True)
    return laboratory_table(store.rows)


def laboratory_once(
    task: Task, target: Target, profile: DeviceProfile, options: argparse.Namespace, family: str, width: int, seed: int
) -> dict[str, Any]:
    """Train one network, score it on every domain."""
    torch.manual_seed(seed)
    model = build(family, task.spatial_dims, width, len(task.labels), task.channels)
    shape = (1, task.channels, *SIZE[task.spatial_dims])
    facts: dict[str, Any] = {"parameters": parameters(model), "macs": macs(model, shape)}
    facts["steps"] = fit(model, task.train, target, profile, budget=options.budget, seed=seed)
    found = {domain: score(model, cases, target, profile) for domain, cases in task.test.items()}
    return {**facts, "dice": {domain: fmean(dice.values()) for domain, dice in found.items()}, "cases": found}


def laboratory_table(kept: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: means over the seeds; time over concat's; p against concat, Holm-corrected over families."""
    rows = [row for row in kept if "family" in row]
    paces = {(one["widths_of"], one["by"]): one["paces"] for one in kept if "paces" in one}
    lines = [
        "| task | matched by | family | width | parameters | GMAC | time of a step | steps | Dice (p against concat) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["task"], row["by"]), []).append(row)
    for (task, by), group in groups.items():
        domains = list(group[0]["cases"])
        tested = {domain: p_values(group, domain) for domain in domains}
        for family in dict.fromkeys(row["family"] for row in group):
            own = [row for row in group if row["family"] == family]
            shown = []
            for domain in domains:
                p = tested[domain].get(family)
                mark = "" if p is None else f" ({p:.3f})"
                shown.append(f"{domain} {fmean(row['dice'][domain] for row in own):.3f}{mark}")
            first, relative, steps = own[0], paces[task, by][family], fmean(r["steps"] for r in own)
            line = f"| {task} | {by} | {family} | {first['width']} | {first['parameters']:,} "
            lines.append(f"{line}| {first['macs'] / 1e9:.2f} | {relative:.2f} | {steps:.0f} | {', '.join(shown)} |")
    return "\n".join(lines)


def p_values(rows: Sequence[Mapping[str, Any]], domain: str) -> dict[str, float]:
    """Family -> p of the sign-flip test against concat over cases (mean of the seeds), corrected over the families."""
    frames = {}
    for family in dict.fromkeys(row["family"] for row in rows):
        seeds = [row["cases"][domain] for row in rows if row["family"] == family]
        cases = sorted(set.intersection(*map(set, seeds)))
        means = [fmean(seed[case] for seed in seeds) for case in cases]
        frames[family] = pd.DataFrame({"case": cases, "class": "foreground", "dice": means})
    if "concat" not in frames or len(frames) < 2:
        return {}
    others = [family for family in frames if family != "concat"]
    raw = [compare({"concat": frames["concat"], family: frames[family]}).results[0].permutation for family in others]
    return dict(zip(others, holm(raw), strict=True))

"""Time and memory of inference against MONAI and nnU-Net v2: same weights, same windows, both sides in one run.

    python scripts/bench_inference.py --time [--size 96] [--patch 48] [--minutes 4]
    python scripts/bench_inference.py --time --model RUN --image CASE.nii.gz ...
    python scripts/bench_inference.py --memory [--classes 2 10 60 120] [--depths 100 200 400 800] [--peer 60]

``--time``: a U-Net with 4 stages and 32 base channels learns phantoms and segments others of the same kind and size, or
a trained model segments the cases that are named. The tools take turns, and the least time of each counts, so that
other work on the machine hits all alike; with OMP_NUM_THREADS=1 the processor's time says more than the clock's then.
Before the clock runs, a case is cut to a multiple of half a window, where the windows of all tools lie on the same
places. All run in one process, whose settings (memory allocation) are medseg's.
``--memory``: peak resident memory above that of the idle process, each case in a process of its own: 320 x 320 x depth
voxels, predicted at 1.25 times the file's spacing and restored to it, by a network of one convolution, so that nothing
but the predictor's own arrays counts. ``--peer`` adds nnU-Net's predictor and its export for so many classes; whoever
holds more than ``--guard`` GiB is stopped.
nnU-Net comes with ``pip install -e .[bench]`` and is left out where it is not installed.
"""

from __future__ import annotations

import argparse
import copy
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from _peers import OVERLAP, monai_logits, nnunet_labels, nnunet_logits
from torch import Tensor, nn

from medseg.compose import compose
from medseg.data.phantom import write_phantoms
from medseg.data.plan import Plan
from medseg.data.preprocess import preprocess
from medseg.device import choose_profile
from medseg.inference import Predictor
from medseg.inference.member import Member, load_member
from medseg.inference.sliding_window import sliding_window
from medseg.io import Geometry, Volume, read_volume
from medseg.targets import ExclusiveClasses

REFERENCE = "MONAI, fp32"
Way = tuple[Callable[[Member, Tensor], Tensor], Member]


def train_network(size: int, patch: int, minutes: float, folder: Path, base_channels: int = 32) -> tuple[Path, Path]:
    """A U-Net that has learnt phantoms, and a phantom of the same size that it has not seen."""
    from medseg.training import fit

    write_phantoms(folder / "data", cases=8, test_cases=1, shape=(size, size, size))
    words = [f"data={folder / 'data'}", f"run_dir={folder / 'run'}", f"cache_dir={folder / 'cache'}"]
    words += [f"model.base_channels={base_channels}", f"plan.patch_size=[{patch},{patch},{patch}]"]
    words += ["plan.batch_size=2", "plan.strides=[[1,1,1],[2,2,2],[2,2,2],[2,2,2]]", "data.folds=4"]
    clock = "{:02d}:{:02d}".format(*divmod(round(60 * minutes), 60))
    words += [f"trainer.max_time=00:00:{clock}"]
    return fit(compose("train", words)), folder / "data" / "imagesTs" / "phantom_test_000_0000.nii.gz"


def medseg_logits(member: Member, image: Tensor) -> Tensor:
    """(K, *P) as `Predictor` computes them."""
    return sliding_window(member.logits, image, member.plan.patch_size, overlap=OVERLAP)


def contestants(run: Path) -> dict[str, Way]:
    """Who takes part: medseg as it chooses, in fp32, and the others with contiguous weights in fp32, as they run."""
    fast, exact = (load_member(run, choose_profile(precision=p)) for p in ("auto", "fp32"))
    profile = replace(exact.profile, channels_last=False)
    plain = replace(exact, network=contiguous(exact.network), profile=profile)
    ways: dict[str, Way] = {}
    for member, told in ((fast, "channels-last"), (exact, "channels-last"), (plain, "contiguous")):
        ways[f"medseg, {member.profile.precision}, {told}"] = (medseg_logits, member)
    ways[REFERENCE] = (monai_logits, plain)
    if find_spec("nnunetv2"):
        ways["nnU-Net v2, fp32"] = (nnunet_logits, plain)
    return ways


def contiguous(network: nn.Module) -> nn.Module:
    """A copy with contiguous weights."""
    network = copy.deepcopy(network)
    for parameter in network.parameters():
        parameter.data = parameter.data.contiguous()
    return network


def prepare(image: Path, plan: Plan) -> Tensor:
    """(C, *P) float32, each axis cut to a multiple of half a window."""
    array, _ = preprocess(read_volume(image), plan)
    steps = [p // 2 for p in plan.patch_size]
    kept = [max(n // step * step, min(n, 2 * step)) for n, step in zip(array.shape[1:], steps, strict=True)]
    return torch.from_numpy(np.ascontiguousarray(array[(slice(None), *(slice(n) for n in kept))]))


def compare_times(ways: dict[str, Way], images: Sequence[Path], repeats: int) -> str:
    """Markdown table: seconds for all images, as a ratio to the first way, and how well each agrees with MONAI."""
    plan = next(iter(ways.values()))[1].plan
    arrays = [prepare(image, plan) for image in images]
    window = (slice(None), *(slice(n) for n in plan.patch_size))
    for way, member in ways.values():
        way(member, arrays[0][window])
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    logits: dict[str, list[Tensor]] = {}
    for _ in range(repeats):
        for name, (way, member) in ways.items():
            start, before = time.perf_counter(), time.process_time()
            logits[name] = [way(member, array) for array in arrays]
            seconds[name].append((time.perf_counter() - start, time.process_time() - before))
    voxels = ", ".join("x".join(map(str, array.shape[1:])) for array in arrays[:3]) + (", ..." if arrays[3:] else "")
    head = f"{len(arrays)} image(s), {voxels} voxels, windows of {list(plan.patch_size)}"
    least = {name: tuple(map(min, zip(*spent, strict=True))) for name, spent in seconds.items()}
    return f"{head}, {torch.get_num_threads()} thread(s)\n{time_table(least, logits)}"


def time_table(seconds: dict[str, tuple[float, ...]], logits: dict[str, list[Tensor]]) -> str:
    """Markdown; seconds by the clock and of the processor."""
    clock, processor = next(iter(seconds.values()))
    head = "| | seconds | times the first row's | of the processor | times "
    lines = [head + "| Dice with MONAI | voxels that differ | logits | probabilities |"]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for name, (spent, used) in seconds.items():
        found = [agreement(a.float(), b) for a, b in zip(logits[name], logits[REFERENCE], strict=True)]
        dice, share, logit, probability = np.array(found).T
        cells = f"{np.nanmean(dice):.4f} | {share.mean():.1e} | {logit.max():.1e} | {probability.max():.1e}"
        times = f"{spent:.2f} | {spent / clock:.2f} | {used:.2f} | {used / processor:.2f}"
        lines.append(f"| {name} | {times} | {cells} |")
    largest = max(float(one.abs().max()) for one in logits[REFERENCE])
    return "\n".join([*lines, f"The last two columns are largest differences; the largest logit is {largest:.1f}."])


def agreement(a: Tensor, b: Tensor) -> tuple[float, float, float, float]:
    """Mean Dice over the classes of b, share of voxels that differ, largest difference of logits and of softmax."""
    labels, expected = a.argmax(0), b.argmax(0)
    values = [int(v) for v in expected.unique() if v]
    hits = [(((labels == v) & (expected == v)).sum(), (labels == v).sum() + (expected == v).sum()) for v in values]
    dice = float(np.mean([2 * int(both) / int(either) for both, either in hits])) if hits else float("nan")
    probability = float((a.softmax(0) - b.softmax(0)).abs().max())
    return dice, float((labels != expected).float().mean()), float((a - b).abs().max()), probability


def one_convolution(classes: int) -> Member:
    """A network of one convolution, and a plan at 1.25 mm."""
    torch.manual_seed(0)
    labels = {f"class {value}": value for value in range(classes)}
    settings = {"dataset": "memory", "spatial_dims": 3, "channel_names": ["CT"], "labels": labels, "ignore_label": None}
    settings |= {"spacing": (1.25, 1.25, 1.25), "patch_size": [96, 96, 96], "batch_size": 1, "strides": [[1, 1, 1]]}
    settings |= {"normalization": [{"scheme": "zscore"}], "crop_nonzero": False, "mirror_axes": [], "mirror_swaps": {}}
    network, target = nn.Conv3d(1, classes, 1), ExclusiveClasses(labels=labels)
    return Member(network, Plan.from_dict(settings), target, choose_profile("cpu", "fp32"))


def measure(who: str, classes: int, size: int, depth: int) -> dict[str, Any]:
    """Peak memory of one case in this process, in GiB above that before it, and the prediction for it."""
    member = one_convolution(classes)
    array = np.random.default_rng(0).random((1, size, size, depth), np.float32)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, predicted = time.perf_counter(), None
    if who == "medseg":
        predictor = Predictor([member])
        volume = Volume(array, Geometry(array.shape[1:], np.eye(4)))
        predicted = predictor.memory_need(volume.geometry).total / 2**30
        predictor.predict(volume)
    else:
        nnunet_labels(member, array)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"gib": (after - before) / 2**20, "predicted": predicted, "seconds": time.perf_counter() - start}


def guarded(words: Sequence[str], most: float) -> tuple[int | None, str]:
    """Exit code and output of a process; it is stopped (None) above so many GiB, or when the machine has 1.5 left."""
    with tempfile.TemporaryFile("w+") as out, subprocess.Popen(words, stdout=out) as process:
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            held, left = watched.memory_info().rss / 2**30, psutil.virtual_memory().available / 2**30
            if held > most or left < 1.5:
                process.kill()
                process.wait()
                return None, f"more than {held:.1f}, stopped" + (" as the machine had no more" if held <= most else "")
            time.sleep(0.2)
        out.seek(0)
        return process.returncode, out.read()


def compare_memory(cases: Sequence[tuple[str, int, int]], size: int, most: float) -> str:
    """Markdown table of (who, classes, depth); every row is a process of its own."""
    lines = ["| | classes | depth | peak GiB | predicted GiB | seconds |", "|---|---|---|---|---|---|"]
    for who, count, depth in cases:
        words = [sys.executable, __file__, "--measure", who, *map(str, (count, size, depth))]
        code, out = guarded(words, most)
        row = f"| {who} | {count} | {depth} |"
        if code != 0:
            lines.append(f"{row} {out if code is None else f'died: {code}'} | | |")
            continue
        found = json.loads(out.splitlines()[-1])
        told = f"{found['predicted']:.2f}" if found["predicted"] else ""
        lines.append(f"{row} {found['gib']:.2f} | {told} | {found['seconds']:.1f} |")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--model", type=Path, help="trained run or model folder; without it one is trained on phantoms")
    parser.add_argument("--image", type=Path, nargs="*", default=[], help="cases for --model, one file each")
    parser.add_argument("--size", type=int, default=96, help="of the phantoms, in voxels")
    parser.add_argument("--patch", type=int, default=48)
    parser.add_argument("--minutes", type=float, default=4, help="of training")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--classes", type=int, nargs="*", default=[2, 10, 60, 120], help="at the depth of --depth")
    parser.add_argument("--depths", type=int, nargs="*", default=[100, 200, 400, 800], help="with 10 classes")
    parser.add_argument("--depth", type=int, default=300)
    parser.add_argument("--plane", type=int, default=320, help="voxels of the other two axes")
    parser.add_argument("--peer", type=int, nargs="*", default=[], help="classes for which nnU-Net is measured too")
    parser.add_argument("--guard", type=float, default=14, help="GiB")
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure[0], *map(int, options.measure[1:]))))
    if options.time and options.model:
        print(compare_times(contestants(options.model), options.image, options.repeats))
    elif options.time:
        with tempfile.TemporaryDirectory() as scratch:
            run, image = train_network(options.size, options.patch, options.minutes, Path(scratch))
            print(compare_times(contestants(run), [image], options.repeats))
    if options.memory:
        cases = [("medseg", count, options.depth) for count in options.classes]
        cases += [("medseg", 10, depth) for depth in options.depths]
        cases += [("nnU-Net v2", count, options.depth) for count in options.peer]
        print(compare_memory(cases, options.plane, options.guard))


if __name__ == "__main__":
    main()

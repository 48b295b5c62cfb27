"""Time and memory of inference against MONAI and nnU-Net v2: same weights, same windows, both sides in one run.

    python scripts/bench_inference.py --time [--size 144] [--patch 64]
    python scripts/bench_inference.py --memory [--classes 2 10 60 120] [--depths 100 200 400 800] [--peer]

``--time``: a U-Net with 4 stages and 32 base channels is trained for a minute on phantoms, then segments a larger one:
medseg with what the machine offers and in fp32, MONAI's `sliding_window_inference` and nnU-Net's predictor in fp32.
``--memory``: peak resident memory above that of the idle process, each case in a process of its own: 320 x 320 x depth
voxels, predicted at 1.25 times the file's spacing and restored to it, by a network of one convolution, so that nothing
but the predictor's own arrays counts. ``--peer`` adds nnU-Net's predictor and its export on the same arrays.
nnU-Net comes with ``pip install -e .[bench]`` and is left out where it is not installed.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medseg.compose import compose
from medseg.data.phantom import generate_phantom, write_phantoms
from medseg.data.plan import Plan
from medseg.device import DeviceProfile, choose_profile
from medseg.inference import Predictor
from medseg.inference.member import Member, load_member
from medseg.inference.sliding_window import sliding_window
from medseg.io import Geometry, Volume
from medseg.targets import ExclusiveClasses

OVERLAP = 0.5


def train_network(patch: int, folder: Path) -> Path:
    """A U-Net with 32 base channels and 4 stages that has learnt phantoms for a minute."""
    from medseg.training import fit

    write_phantoms(folder / "data", cases=8, test_cases=0, shape=(patch, patch, patch))
    words = [f"data={folder / 'data'}", f"run_dir={folder / 'run'}", f"cache_dir={folder / 'cache'}"]
    words += ["model.base_channels=32", f"plan.patch_size=[{patch},{patch},{patch}]", "plan.batch_size=2"]
    words += ["plan.strides=[[1,1,1],[2,2,2],[2,2,2],[2,2,2]]", "trainer.max_time=00:00:01:00", "data.folds=4"]
    return fit(compose("train", words))


def medseg_logits(member: Member, image: Tensor) -> Tensor:
    """(K, *P) as `Predictor` computes them."""
    return sliding_window(member.logits, image, member.plan.patch_size, overlap=OVERLAP)


def monai_logits(member: Member, image: Tensor) -> Tensor:
    """MONAI's inferer, fp32."""
    from monai.inferers import sliding_window_inference

    with torch.inference_mode():
        return sliding_window_inference(
            image[None], member.plan.patch_size, 1, member.network, OVERLAP, "gaussian", sigma_scale=0.125
        )[0]


def nnunet_logits(member: Member, image: Tensor) -> Tensor:
    """nnU-Net's predictor, fp32 on the CPU, no mirroring."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(
        OVERLAP, True, False, False, torch.device("cpu"), verbose=False, verbose_preprocessing=False, allow_tqdm=False
    )
    predictor.network = member.network
    predictor.configuration_manager = SimpleNamespace(patch_size=list(member.plan.patch_size))
    predictor.label_manager = SimpleNamespace(num_segmentation_heads=member.target.out_channels)
    return predictor.predict_sliding_window_return_logits(image).float()


def compare_times(size: int, patch: int, repeats: int) -> str:
    """Markdown table: seconds, ratio to medseg's default, agreement with MONAI in fp32."""
    with tempfile.TemporaryDirectory() as scratch:
        run = train_network(patch, Path(scratch))
        fast, exact = (load_member(run, choose_profile(precision=p)) for p in ("auto", "fp32"))
    image, *_ = generate_phantom(np.random.default_rng(9), shape=(size, size, size))
    step = patch // 2  # in multiples of it the windows of all tools lie on the same places
    image = image[tuple(slice(n // step * step) for n in image.shape)]
    array = torch.from_numpy((image - image.mean()) / image.std()).float()[None]
    plain = Member(load_contiguous(exact), exact.plan, exact.target, contiguous(exact.profile))
    ways: dict[str, tuple[Callable[[Member, Tensor], Tensor], Member]] = {
        f"medseg, {fast.profile.precision}, channels-last": (medseg_logits, fast),
        "medseg, fp32, channels-last": (medseg_logits, exact),
        "MONAI, fp32": (monai_logits, plain),
    }
    if find_spec("nnunetv2"):
        ways["nnU-Net v2, fp32"] = (nnunet_logits, plain)
    seconds, logits = {}, {}
    for name, (way, member) in ways.items():
        way(member, array[(slice(None), *(slice(patch),) * 3)])
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            logits[name] = way(member, array)
            times.append(time.perf_counter() - start)
        seconds[name] = min(times)
    return time_table(seconds, logits, tuple(array.shape[1:]))


def contiguous(profile: DeviceProfile) -> DeviceProfile:
    """The same device without channels-last."""
    return DeviceProfile(profile.device, "fp32", False, False, profile.threads, "as the peers run it")


def load_contiguous(member: Member) -> nn.Module:
    """A copy of the network with contiguous weights, as the peers have it."""
    import copy

    network = copy.deepcopy(member.network)
    for parameter in network.parameters():
        parameter.data = parameter.data.contiguous()
    return network


def time_table(seconds: dict[str, float], logits: dict[str, Tensor], shape: tuple[int, ...]) -> str:
    """Markdown."""
    first, reference = next(iter(seconds.values())), logits["MONAI, fp32"]
    lines = [f"{shape} voxels", "| | seconds | times medseg's | Dice with MONAI fp32 | largest logit difference |"]
    lines.append("|---|---|---|---|---|")
    for name, spent in seconds.items():
        same = mean_dice(logits[name].argmax(0), reference.argmax(0))
        difference = float((logits[name] - reference).abs().max())
        lines.append(f"| {name} | {spent:.2f} | {spent / first:.2f} | {same:.4f} | {difference:.1e} |")
    return "\n".join(lines)


def mean_dice(a: Tensor, b: Tensor) -> float:
    """Over the classes that occur."""
    values = [int(v) for v in b.unique() if v]
    return float(np.mean([2 * ((a == v) & (b == v)).sum() / ((a == v).sum() + (b == v).sum()) for v in values]))


def one_convolution(classes: int) -> Member:
    """A network of one convolution, and a plan at 1.25 mm."""
    torch.manual_seed(0)
    labels = {f"class {value}": value for value in range(classes)}
    plan = Plan.from_dict(
        {
            "dataset": "memory",
            "spatial_dims": 3,
            "channel_names": ["CT"],
            "labels": labels,
            "ignore_label": None,
            "spacing": (1.25, 1.25, 1.25),
            "patch_size": [96, 96, 96],
            "batch_size": 1,
            "strides": [[1, 1, 1]],
            "normalization": [{"scheme": "zscore"}],
            "crop_nonzero": False,
            "mirror_axes": [],
            "mirror_swaps": {},
        }
    )
    return Member(nn.Conv3d(1, classes, 1), plan, ExclusiveClasses(labels=labels), choose_profile("cpu", "fp32"))


def measure(who: str, classes: int, depth: int) -> dict[str, Any]:
    """Peak memory of one case in this process, in GiB above that before it, and the prediction for it."""
    member = one_convolution(classes)
    shape = (320, 320, depth)
    array = np.random.default_rng(0).random((1, *shape), np.float32)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, predicted = time.perf_counter(), None
    if who == "medseg":
        predictor = Predictor([member])
        volume = Volume(array, Geometry(shape, np.eye(4)))
        predicted = predictor.memory_need(volume.geometry).total / 2**30
        predictor.predict(volume)
    else:
        nnunet_case(member, array)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"gib": (after - before) / 2**20, "predicted": predicted, "seconds": time.perf_counter() - start}


def nnunet_case(member: Member, array: np.ndarray) -> np.ndarray:
    """nnU-Net's sliding window and its own export to the file's spacing (linear, on the CPU)."""
    from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape

    from medseg.data.preprocess import preprocess

    prepared, done = preprocess(Volume(array, Geometry(array.shape[1:], np.eye(4))), member.plan)
    logits = nnunet_logits(member, torch.from_numpy(prepared))
    restored = resample_data_or_seg_to_shape(
        logits.numpy(), done.cropped_shape, member.plan.spacing, (1.0, 1.0, 1.0), is_seg=False, order=1, order_z=0
    )
    return np.asarray(torch.from_numpy(np.asarray(restored)).softmax(0).argmax(0))


def compare_memory(classes: list[int], depths: list[int], peer: bool) -> str:
    """Markdown table; every row is a process of its own."""
    lines = ["| | classes | depth | peak GiB | predicted GiB | seconds |", "|---|---|---|---|---|---|"]
    cases = [("medseg", count, 300) for count in classes] + [("medseg", 10, depth) for depth in depths]
    cases += [("nnU-Net v2", count, 300) for count in classes if peer]
    for who, count, depth in cases:
        words = [sys.executable, __file__, "--measure", who, str(count), str(depth)]
        done = subprocess.run(words, check=False, capture_output=True, text=True)
        if done.returncode:
            lines.append(f"| {who} | {count} | {depth} | died: {done.returncode} | | |")
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        told = f"{found['predicted']:.2f}" if found["predicted"] else ""
        lines.append(f"| {who} | {count} | {depth} | {found['gib']:.2f} | {told} | {found['seconds']:.1f} |")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--size", type=int, default=144)
    parser.add_argument("--patch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--classes", type=int, nargs="*", default=[2, 10, 60, 120])
    parser.add_argument("--depths", type=int, nargs="*", default=[100, 200, 400, 800])
    parser.add_argument("--peer", action="store_true")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        who, classes, depth = options.measure
        print(json.dumps(measure(who, int(classes), int(depth))))
    if options.time:
        print(compare_times(options.size, options.patch, options.repeats))
    if options.memory:
        print(compare_memory(options.classes, options.depths, options.peer))


if __name__ == "__main__":
    main()

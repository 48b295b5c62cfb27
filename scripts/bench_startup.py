"""Start-up times of medseg, each the median over fresh processes, interpreter start included.

python scripts/bench_startup.py [--runs 7]

The second figure is processor time, which other work on the machine changes less than the clock on the wall. The last
row is `medseg predict` up to the first window: a U-Net with 4 stages and 32 base channels, a file of 96 x 96 x 64.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CLI = ("-m", "medseg.cli")
COMMANDS: dict[str, tuple[tuple[str, ...], float | None]] = {  # what to run, and its limit in seconds
    "python, nothing imported": (("-c", "pass"), None),
    "import torch": (("-c", "import torch"), None),
    "import medseg": (("-c", "import medseg"), 0.2),
    "medseg --help": ((*CLI, "--help"), 0.5),
    "medseg train --help": ((*CLI, "train", "--help"), 1.0),
    "medseg trian (wrong verb)": ((*CLI, "trian"), 1.0),
    "medseg train trainer.max_epoch=5 (wrong key)": ((*CLI, "train", "trainer.max_epoch=5"), 1.0),
    "medseg train model=unetp (wrong option)": ((*CLI, "train", "model=unetp"), 1.0),
}
FIRST_WINDOW = 4.0
UNTIL_THE_NETWORK = """
import os, sys
from medseg.cli import main
from medseg.device import DeviceProfile
DeviceProfile.run = lambda *_: os._exit(77)
main(sys.argv[1:])
"""


def seconds(arguments: tuple[str, ...], runs: int, code: int | None = None) -> tuple[float, float]:
    """Median wall and processor time of a fresh interpreter with these arguments, after one that warms the file cache.

    Raises:
        RuntimeError: it ended with another exit code than the given one.
    """
    times = []
    for _ in range(runs + 1):
        start, before = time.perf_counter(), os.times()
        done = subprocess.run([sys.executable, *arguments], capture_output=True, check=False, text=True)
        used = os.times()
        if code is not None and done.returncode != code:
            raise RuntimeError(f"{arguments} ended with {done.returncode}: {done.stderr}")
        processor = used.children_user + used.children_system - before.children_user - before.children_system
        times.append((time.perf_counter() - start, processor))
    wall, processors = zip(*times[1:], strict=True)
    return statistics.median(wall), statistics.median(processors)


def write_model(folder: Path, *, base_channels: int = 32, patch: int = 64) -> None:
    """A model folder as `medseg train` writes it, of a U-Net with 4 stages and two classes that was not trained."""
    from medseg.inference.memory import activation_bytes
    from medseg.io import save_model
    from medseg.models import create_model

    labels, strides = {"background": 0, "organ": 1}, [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]]
    model = {"name": "unet", "base_channels": base_channels, "in_channels": 1, "out_channels": 2, "strides": strides}
    plan = {"dataset": "none", "spatial_dims": 3, "channel_names": ["CT"], "labels": labels, "ignore_label": None}
    plan |= {"spacing": [1, 1, 1], "patch_size": [patch] * 3, "batch_size": 1, "strides": strides}
    plan |= {"normalization": [{"scheme": "zscore"}], "crop_nonzero": False, "mirror_axes": [], "mirror_swaps": {}}
    network = create_model(**model)
    description = {"model": model, "plan": plan, "target": {"name": "exclusive", "labels": labels}}
    description["window_bytes"] = activation_bytes(network, (1, 1, patch, patch, patch))
    save_model(folder, network.state_dict(), description)


def predict_words(folder: Path, *, base_channels: int = 32, patch: int = 64) -> list[str]:
    """Write a model and a case for it; the words of the command that segments the case."""
    import numpy as np

    from medseg.io import Geometry, Volume, write_volume

    write_model(folder / "model", base_channels=base_channels, patch=patch)
    image = np.random.default_rng(0).random((1, 96, 96, 64), np.float32)
    write_volume(folder / "case.nii.gz", Volume(image, Geometry(image.shape[1:], np.eye(4))))
    return ["predict", f"model={folder / 'model'}", f"input={folder / 'case.nii.gz'}", f"output={folder / 'out'}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    print("| command | seconds | of the processor | limit |\n|---|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as scratch:
        words = ("-c", UNTIL_THE_NETWORK, *predict_words(Path(scratch)))
        for name, (arguments, limit) in {**COMMANDS, "medseg predict": (words, FIRST_WINDOW)}.items():
            wall, processor = seconds(arguments, runs, 77 if arguments is words else None)
            shown = f"`{name}`" + (" to the first window" if arguments is words else "")
            print(f"| {shown} | {wall:.2f} | {processor:.2f} | {limit or '–'} |", flush=True)


if __name__ == "__main__":
    main()

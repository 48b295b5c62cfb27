"""Start-up times of medseg, each the median over fresh processes, interpreter start included.

python scripts/bench_startup.py [--runs 7]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

CLI = ("-m", "medseg.cli")
COMMANDS: dict[str, tuple[tuple[str, ...], float | None]] = {  # what to run, and its limit in seconds
    "python, nothing imported": (("-c", "pass"), None),
    "import medseg": (("-c", "import medseg"), 0.2),
    "medseg --help": ((*CLI, "--help"), 0.5),
    "medseg train --help": ((*CLI, "train", "--help"), 1.0),
    "medseg trian (wrong verb)": ((*CLI, "trian"), 1.0),
    "medseg train trainer.max_epoch=5 (wrong key)": ((*CLI, "train", "trainer.max_epoch=5"), 1.0),
    "medseg train model=unetp (wrong option)": ((*CLI, "train", "model=unetp"), 1.0),
}


def seconds(arguments: tuple[str, ...], runs: int) -> float:
    """Median wall time of a fresh interpreter with these arguments, after one run that warms the file cache."""
    times = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        subprocess.run([sys.executable, *arguments], capture_output=True, check=False)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    print("| command | seconds | limit |\n|---|---:|---:|")
    for name, (arguments, limit) in COMMANDS.items():
        print(f"| `{name}` | {seconds(arguments, runs):.2f} | {limit if limit else '–'} |", flush=True)


if __name__ == "__main__":
    main()

"""One command on a machine with a GPU: do training, prediction and the retreats from full memory work there?

    bash scripts/gpu_check.sh [--output FOLDER]

Writes gpu_report.json and gpu_report.md after each check, so that what was found is kept whatever comes after. Exit
code 0: nothing failed, or there is no GPU; 1: a check failed.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import _stand_ins

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 220.0  # for all checks together, so that they end before gpu_check.sh ends them
COLUMNS = (
    "s per step", "fp32 time / this", "loss off by", "last loss", "MiB", "s", "s on the CPU",
    "voxels with the same label", "windows in the end",
)  # fmt: skip


def main() -> int:
    """Command line; returns the exit code."""
    options = parse()
    stand_ins = make_importable()
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        print(f"medseg: this machine has no GPU that torch {torch.__version__} can use; nothing was checked")
        return 0
    report = {"machine": machine(options.device), "rows": [], "finished": False}
    for name, row in rows(options):
        report["rows"].append(row)
        report["machine"]["stood in for"] = sorted(stand_ins.used)
        print(f"{name}: {row['outcome']}{': ' if row['note'] else ''}{row['note']}", flush=True)
        write(options.output, report)
    report["finished"] = True
    write(options.output, report)
    print(table(report))
    return int(any(row["outcome"] == "failed" for row in report["rows"]))


def parse() -> argparse.Namespace:
    """The words of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, default=Path(), help="folder of the report (default: this one)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu tries the checks themselves")
    parser.add_argument("--patch", type=int, default=64, help="voxels per axis of a training patch")
    parser.add_argument("--width", type=int, default=32, help="channels of the networks' first level")
    parser.add_argument("--steps", type=int, default=12, help="training steps per row")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all checks together")
    parser.add_argument("--only", nargs="+", default=[""], help="checks whose names begin with one of these words")
    return parser.parse_args()


def make_importable() -> _stand_ins.StandIns:
    """Let medseg be imported from this checkout, installed or not, and do without packages that are missing."""
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    warnings.filterwarnings("ignore", module="pytorch_lightning|lightning")
    if find_spec("medseg") is None:
        sys.path.insert(0, str(ROOT))
    import medseg

    if find_spec("medseg.configs") is None:  # configs/ and kernels/ lie beside the package in a checkout
        medseg.__path__.append(str(ROOT))
    return _stand_ins.install()


def rows(options: argparse.Namespace) -> Any:
    """(name, row) of each check; one that fails, or that the time does not suffice for, is a row as any other."""
    deadline = time.monotonic() + options.seconds
    try:
        import _gpu_checks
        import torch
    except ImportError as error:
        yield "import", {"check": "import", "outcome": "failed", "figures": {}, "note": f"cannot be imported: {error}"}
        return
    for logger in ("pytorch_lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(logger).setLevel(logging.WARNING)
    gpus = torch.cuda.device_count() if options.device == "cuda" else 0
    setting = _gpu_checks.Setting(options.device, gpus, options.patch, options.width, options.steps)
    signal.signal(signal.SIGALRM, _too_long)
    chosen = ((name, check) for name, check in _gpu_checks.checks() if name.startswith(tuple(options.only)))
    for name, check in chosen:
        left = deadline - time.monotonic()
        try:
            if left <= 5:
                raise _gpu_checks.NotRun("the time was spent")
            signal.setitimer(signal.ITIMER_REAL, left)
            row = check(setting)
        except _gpu_checks.NotRun as reason:
            row = _gpu_checks.Row(name, "not run", note=str(reason))
        except Exception as error:  # whatever it is, it is what this check found
            row = _gpu_checks.Row(name, "failed", note=f"{type(error).__name__}: {error}".splitlines()[0][:300])
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        yield name, asdict(row)


def machine(device: str) -> dict[str, Any]:
    """The card, its driver, and the versions of what was used."""
    import numpy
    import pytorch_lightning
    import torch

    import medseg

    facts: dict[str, Any] = {
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
    }
    for module in (torch, pytorch_lightning, numpy, medseg):
        facts[module.__name__] = module.__version__
    if device == "cuda":
        card = torch.cuda.get_device_properties(0)
        facts |= {"card": card.name, "cards": torch.cuda.device_count(), "GiB": round(card.total_memory / 2**30, 1)}
        facts |= {"capability": f"{card.major}.{card.minor}", "cuda": torch.version.cuda, "driver": driver()}
        facts |= {"cudnn": torch.backends.cudnn.version(), "tf32 in convolutions": torch.backends.cudnn.allow_tf32}
    return facts


def driver() -> str:
    """Version of the card's driver, as nvidia-smi tells it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        out = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return f"unknown ({type(error).__name__})"
    return out.splitlines()[0].strip() if out.strip() else "unknown"


def table(report: dict[str, Any]) -> str:
    """Markdown: a line of the machine, and a row for each check."""
    facts = "; ".join(f"{name} {value}" for name, value in report["machine"].items() if value not in ([], None))
    used = [column for column in COLUMNS if any(column in row["figures"] for row in report["rows"])]
    lines = [facts, "", "| " + " | ".join(["check", "outcome", *used, "note"]) + " |", "|---" * (len(used) + 3) + "|"]
    for row in report["rows"]:
        cells = [row["check"], row["outcome"], *(shown(row["figures"].get(column)) for column in used), row["note"]]
        lines.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    return "\n".join(lines)


def shown(value: float | str | None) -> str:
    """A number in four figures."""
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def write(folder: Path, report: dict[str, Any]) -> None:
    """Both files, each whole or as it was."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (("gpu_report.json", json.dumps(report, indent=1)), ("gpu_report.md", table(report))):
        part = folder / f".{name}.part"
        part.write_text(text + "\n", encoding="utf-8")
        part.replace(folder / name)


def _too_long(*_: Any) -> None:
    raise TimeoutError("the time for all checks together is over")


if __name__ == "__mp_main__":  # a process of the check with two GPUs
    make_importable()
if __name__ == "__main__":
    raise SystemExit(main())

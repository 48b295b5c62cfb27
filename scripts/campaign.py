"""Damage many small files of every format, open each with medseg, and count what must not happen.

python scripts/campaign.py [--tries 2000] [--seed 0] [--formats NRRD PNG] [--out campaign]

Each try makes a file from (seed, format, number), damages it in one way, and opens it in a child process whose address
space is limited. What is accepted must hold exactly the voxels and the grid that a small independent reader of the
damaged bytes finds (`_campaign_reference.py`; where it finds none, those of the undamaged file); all else must be
refused with a MedsegError in one line. Results are kept line by line in --out and a run goes on where one stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from _campaign_formats import FORMATS, Format, Sample, reading_of
from _campaign_mutations import damaged
from _campaign_reference import Files, Reading

BAD = ("wrong voxels accepted", "traceback", "crash", "hang", "too much memory", "refusal of several lines")
FREE_MIB = 4  # what an interpreter takes for a try whatever it reads: below it nothing is measured
MEMORY_FACTOR = 4
WARM = 30
SINGLE = 4  # bytes of a voxel as medseg hands it out


def sample_of(name: str, seed: int, number: int) -> tuple[Sample, dict[str, bytes], str]:
    """The undamaged sample of a try, its damaged files and the kind of damage."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode()), number])
    sample = FORMATS[name].make(rng)
    return (sample, *damaged(rng, sample))


def open_with_medseg(kind: str, path: Path) -> Reading:
    """What medseg reads.

    Raises:
        MedsegError: it refuses.
    """
    if kind == "model":
        from medseg.io import load_model

        weights, _ = load_model(path)
        flat = [weights[name].double().numpy().ravel() for name in sorted(weights)]
        from medseg.inference import Predictor

        Predictor.from_pretrained(path, device="cpu")
        return Reading(np.concatenate(flat))
    if kind == "checkpoint":
        from medseg.io import load_checkpoint

        return Reading(load_checkpoint(path)["weight"].double().numpy())
    from medseg.io import read_geometry, read_volume

    volume, geometry = read_volume(path), read_geometry(path)
    if geometry.shape != volume.spatial_shape or not np.array_equal(geometry.affine, volume.affine):
        raise AssertionError("read_geometry and read_volume differ")
    return Reading(volume.array, volume.affine if volume.ndim == 3 else None)


def agrees(found: Reading, said: Reading | None, exact: bool) -> bool:
    """Whether medseg's reading is that of the bytes."""
    if said is None or found.array.shape != said.array.shape:
        return False
    with np.errstate(all="ignore"):
        wanted = said.array.astype(np.float32)
        largest = float(np.abs(wanted).max(initial=0))
        off = np.abs(found.array.astype(np.float64) - wanted).max(initial=0)
    same = off <= (largest * 1e-6 if exact else 4.0)
    if found.affine is None or said.affine is None:
        return bool(same)
    return bool(same and np.allclose(found.affine, said.affine, rtol=1e-5, atol=1e-4))


def judge(form: Format, sample: Sample, files: Files, folder: Path) -> tuple[str, str, float]:
    """One try: the outcome, what was said, and the bytes of memory that opening the files took at most."""
    from medseg.errors import MedsegError

    for name, data in files.items():
        (folder / name).write_bytes(data)
    path = folder if sample.several else folder / next(iter(files))
    before = _resting()
    try:
        found = open_with_medseg(form.opened, path)
    except MedsegError as error:
        return ("refused" if "\n" not in str(error) else BAD[5]), str(error), _grown(before)
    except Exception as error:
        return BAD[1], f"{type(error).__name__}: {error}", 0.0
    used = _grown(before)
    said = reading_of(form, files)
    if agrees(found, said if said is not None else reading_of(form, sample.files), form.exact):
        return "read", "", used
    return BAD[0], f"said {None if said is None else said.array.shape}, read {found.array.shape}", used


def over_promise(form: Format, files: Files, outcome: str, used: float) -> float:
    """Memory over what the files are and, read, hand out in single precision."""
    said = reading_of(form, files) if outcome == "read" else None
    promise = sum(map(len, files.values())) + (0 if said is None else SINGLE * said.array.size)
    return max(0.0, used - FREE_MIB * 2**20) / max(promise, 1)


def _resting() -> dict[int, float]:
    """Bytes of memory of this process and of its reader of DICOM; their peaks start from here."""
    from medseg.io.dicom_child import CHILD

    processes = (os.getpid(), *([CHILD.pid] if CHILD.pid else []))
    for process in processes:
        with contextlib.suppress(OSError):
            Path(f"/proc/{process}/clear_refs").write_text("5")
    return {process: _status(process, "VmRSS") for process in processes}


def _grown(before: dict[int, float]) -> float:
    """Most bytes taken since, by the processes that are still there; one that was ended had its limit."""
    return sum(max(0.0, _status(process, "VmHWM") - rest) for process, rest in before.items())


def _status(process: int, key: str) -> float:
    """0 where nothing is measured: the process has ended, or this is no Linux."""
    try:
        lines = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    except OSError:
        return 0.0
    return float(lines.get(key, "0").split()[0]) * 1024


def work(name: str, seed: int, first: int, tries: int, results: Path, limit_gib: float) -> None:
    """Child process: tries from the first on, a line before and a line after each."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    form = FORMATS[name]
    with tempfile.TemporaryDirectory() as root, results.open("a", buffering=1) as file:
        for number in range(WARM):  # what is imported on the way is not a file's memory
            sample = form.make(np.random.default_rng(number))
            judge(form, sample, sample.files, Path(tempfile.mkdtemp(dir=root)))
        used = int(_status(os.getpid(), "VmSize"))
        resource.setrlimit(resource.RLIMIT_AS, (used + int(limit_gib * 2**30),) * 2)
        for number in range(first, tries):
            file.write(json.dumps({"start": number}) + "\n")
            sample, files, damage = sample_of(name, seed, number)
            folder = Path(tempfile.mkdtemp(dir=root))
            outcome, said, used = judge(form, sample, files, folder)
            memory = over_promise(form, files, outcome, used)
            if memory > MEMORY_FACTOR and outcome in ("read", "refused"):
                outcome = BAD[4]
            row = {"try": number, "damage": damage, "outcome": outcome, "memory": round(memory, 3)}
            if outcome in BAD:
                row["said"] = said[:300]
            file.write(json.dumps(row) + "\n")
            shutil.rmtree(folder)


def run(name: str, seed: int, tries: int, results: Path, *, timeout: float, limit_gib: float) -> list[dict[str, Any]]:
    """All tries of one format, in children that are started again after a crash or a hang."""
    while True:
        rows, unfinished = _rows(results)
        _drop_cut_line(results)
        if unfinished is not None:  # the last child died, or was killed, in this try
            rows.append(_note(results, unfinished, "crash"))
        if len(rows) >= tries:
            return rows[:tries]
        command = [sys.executable, __file__, "--child", name, str(seed), str(len(rows)), str(tries), str(results)]
        with results.with_suffix(".stderr").open("ab") as told:
            child = subprocess.Popen([*command, str(limit_gib)], stdin=subprocess.DEVNULL, stderr=told)
        size, since = -1, time.monotonic()
        while child.poll() is None:
            time.sleep(0.2)
            now = results.stat().st_size if results.exists() else 0
            if now != size:
                size, since = now, time.monotonic()
            elif time.monotonic() - since > timeout:
                child.kill()
                child.wait()
                if (stuck := _rows(results)[1]) is not None:
                    _note(results, stuck, "hang")


def _rows(results: Path) -> tuple[list[dict[str, Any]], int | None]:
    """Finished tries in order, and one that was begun and not finished."""
    rows, begun = [], None
    for line in results.read_text().splitlines() if results.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):  # a line cut by a kill
            row = json.loads(line)
            begun = row.get("start", begun) if "start" in row else None
            rows += [row] if "try" in row else []
    return rows, begun


def _drop_cut_line(results: Path) -> None:
    if results.exists() and not (text := results.read_bytes()).endswith(b"\n"):
        results.write_bytes(text[: text.rfind(b"\n") + 1])


def _note(results: Path, number: int, outcome: str) -> dict[str, Any]:
    row = {"try": number, "damage": "?", "outcome": outcome, "memory": 0.0}
    with results.open("a") as file:
        file.write(json.dumps(row) + "\n")
    return row


def summary(rows: dict[str, list[dict[str, Any]]], seed: int) -> dict[str, Any]:
    """Counts per format."""
    formats = {}
    for name, tries in rows.items():
        counts = Counter(row["outcome"] for row in tries)
        formats[name] = {
            "tries": len(tries),
            "read": counts["read"],
            "refused": counts["refused"],
            **{bad: counts[bad] for bad in BAD},
            "peak memory over promise": max((row["memory"] for row in tries), default=0.0),
            "damage": dict(sorted(Counter(row["damage"] for row in tries).items())),
        }
    return {"seed": seed, "formats": formats}


def table(facts: dict[str, Any]) -> str:
    """Markdown: a line per format and one of sums."""
    columns = ("tries", "read", "refused", *BAD)
    lines = ["| format | " + " | ".join(columns) + " | peak memory / promise |", "|---" * (len(columns) + 2) + "|"]
    formats = facts["formats"]
    for name, row in formats.items():
        memory = f"{row['peak memory over promise']:.2f}"
        lines.append(f"| {name} | " + " | ".join(str(row[column]) for column in columns) + f" | {memory} |")
    sums = " | ".join(str(sum(row[column] for row in formats.values())) for column in columns)
    highest = max((row["peak memory over promise"] for row in formats.values()), default=0.0)
    return "\n".join([*lines, f"| all | {sums} | {highest:.2f} |"])


def main() -> int:
    """Run, print the table, write campaign.json; 1 where something happened that must not."""
    if sys.argv[1:2] == ["--child"]:
        name, seed, first, tries, results, limit = sys.argv[2:]
        work(name, int(seed), int(first), int(tries), Path(results), float(limit))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=2000, help="per format")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--formats", nargs="+", choices=[*FORMATS], default=[*FORMATS])
    parser.add_argument(
        "--out", type=Path, default=Path("campaign"), help="folder of the results; an old one is gone on with"
    )
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds without an answer that are a hang")
    parser.add_argument("--limit", type=float, default=1.0, help="GiB of address space for a child beyond its imports")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    rows = {}
    for name in options.formats:
        results = options.out / f"{zlib.crc32(name.encode()):08x}-{options.seed}.jsonl"
        rows[name] = run(name, options.seed, options.tries, results, timeout=options.timeout, limit_gib=options.limit)
        (options.out / "campaign.json").write_text(json.dumps(summary(rows, options.seed), indent=2))
    facts = summary(rows, options.seed)
    (options.out / "campaign.md").write_text(table(facts) + "\n")
    print(table(facts))
    return int(any(row[bad] for row in facts["formats"].values() for bad in BAD))


if __name__ == "__main__":
    sys.exit(main())

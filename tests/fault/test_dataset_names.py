"""Texts of a dataset's files that become file names: nothing is written beside what was asked for."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medseg.data.dataset import open_dataset
from medseg.data.fingerprint import make_fingerprint
from medseg.data.plan import make_plan
from medseg.data.prepare import prepare
from medseg.data.splits import make_splits
from medseg.errors import MedsegError
from medseg.inference.inputs import find_cases
from medseg.io import extract

NASTY = (
    *(
        "/tmp/medseg_abs",
        "../../x",
        "../x",
        "a/b",
        "a/../../b",
        "",
        ".",
        "..",
        "a\0b",
        "a\\b",
        "C:\\x",
        "a.",
        "a ",
        "a\nb",
    ),
    *("x" * 300, "\ud800", "~/x"),
)
LABELS = {"background": 0, "spot": 1}


def pictures(root: Path, count: int = 2) -> None:
    """Images beside masks."""
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
        for n in range(count):
            array = (
                np.random.default_rng(n).integers(0, 255, (16, 20), np.uint8) if part == "images" else np.eye(16, 20, n)
            )
            Image.fromarray(array.astype(np.uint8)).save(root / part / f"c{n}.png")


def write(path: Path, data: object) -> None:
    path.write_text(json.dumps(data))


def listed(n: int) -> dict[str, str]:
    return {"image": f"images/c{n}.png", "label": f"masks/c{n}.png"}


def as_name(root: Path, name: str) -> Path:
    write(root / "dataset.json", {"labels": LABELS, "name": name})
    return root


def as_id(root: Path, name: str) -> Path:
    cases = {name: listed(0), "c1": listed(1)}
    write(root / "dataset.json", {"labels": LABELS, "channel_names": {"0": "x"}, "dataset": cases})
    return root


def as_path(root: Path, name: str) -> Path:
    cases = [{**listed(0), "label": f"{name}/c0.png"}, {**listed(1), "image": name}]
    write(root / "dataset.json", {"labels": LABELS, "modality": {"0": "x"}, "training": cases})
    return root


def in_table(root: Path, name: str) -> Path:
    quoted = '"' + name.replace('"', '""') + '"'
    text = f"case,image,mask\n{quoted},images/c0.png,masks/c0.png\nc1,images/c1.png,masks/c1.png\n"
    (root / "list.csv").write_text(text, errors="surrogateescape" if "\udc80" <= name[:1] <= "\udcff" else "replace")
    return root / "list.csv"


def in_folds(root: Path, name: str) -> Path:
    write(root / "splits_final.json", [{"train": ["c0"], "val": [name]}])
    return root


def in_landmarks(root: Path, name: str) -> Path:
    (root / "masks").rename(root / "hidden")
    write(root / "landmarks.json", {"structures": {name: 3}})
    rows = "".join(f'"{case}",{n},{3 + n},{4 + n * n}\n' for case in ("c0", "c1") for n in range(3))
    (root / "landmarks.csv").write_text("case,point,x,y\n" + rows)
    return root


def as_landmarks_case(root: Path, name: str) -> Path:
    (root / "masks").rename(root / "hidden")
    write(root / "landmarks.json", {"structures": {"ring": 3}})
    rows = "".join(f'"{case}",{n},{3 + n},{4 + n * n}\n' for case in (name, "c1") for n in range(3))
    (root / "landmarks.csv").write_text("case,point,x,y\n" + rows, errors="replace")
    return root


DOORS = (as_name, as_id, as_path, in_table, in_folds, in_landmarks, as_landmarks_case)


def tree(root: Path) -> str:
    """SHA-256 over all names and contents."""
    entries = [(str(path), path.read_bytes() if path.is_file() else b"") for path in sorted(root.rglob("*"))]
    return hashlib.sha256(repr(entries).encode()).hexdigest()


def refusal(call: Callable[[], object]) -> MedsegError | None:
    """What a call is refused with."""
    try:
        call()
    except MedsegError as error:
        return error
    return None


def use(source: Path, cache: Path) -> None:
    """What training does with a dataset before its first step; also what a prediction of it is called."""
    dataset = open_dataset(source)
    make_splits(dataset, folds=2)
    fingerprint = make_fingerprint(dataset, cache_dir=cache, progress=False)
    ids = [case.id for case in dataset.training]
    prepared = prepare(dataset, make_plan(fingerprint), ids, cache_dir=cache, workers=0, progress=False)
    assert prepared.folder.resolve().is_relative_to(cache)
    assert all(prepared.case_folder(case).parent.parent == prepared.folder for case in ids)
    for case in find_cases(source, 1):
        assert (cache / f"{case.id}.png").parent == cache


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)
@pytest.mark.parametrize("name", NASTY, ids=ascii)
def test_nothing_is_written_outside(door: Callable[[Path, str], Path], name: str, tmp_path: Path, monkeypatch) -> None:
    root, cache = tmp_path / "home/data/set", tmp_path / "home/cache/deep"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    pictures(root)
    source = door(root, name)
    cache.mkdir(parents=True)
    before, outside = tree(tmp_path / "home/data"), Path("/tmp/medseg_abs")
    error = refusal(lambda: use(source, cache))
    assert error is None or (error.exit_code, len(str(error).splitlines())) == (3, 1)
    assert tree(tmp_path / "home/data") == before
    assert sorted(path.name for path in (tmp_path / "home").iterdir()) == ["cache", "data"]
    assert [path.name for path in (tmp_path / "home/cache").iterdir()] == ["deep"]
    assert not outside.exists()


@pytest.mark.parametrize(
    "name", ["/tmp/medseg_abs", "../../x", "..", "a/../../b", "a\\b", "C:\\x", "a\0b", "x" * 300], ids=ascii
)
def test_an_archive_leaves_nothing_outside(name: str, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        info = tarfile.TarInfo(name)
        info.size = 1
        archive.addfile(info, BytesIO(b"x"))
    before = tree(tmp_path)
    error = refusal(lambda: extract(tmp_path / "a.tar", tmp_path / "out"))
    if error is None:  # tar itself ends names at NUL
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "out"]
    else:
        assert error.exit_code in (3, 4, 5)
        assert tree(tmp_path) == before


@pytest.mark.parametrize("names", [("A", "a"), ("caf\u00e9", "cafe\u0301")])
def test_two_cases_that_would_be_one_file(names: tuple[str, str], tmp_path: Path) -> None:
    pictures(tmp_path)
    cases = {name: listed(n) for n, name in enumerate(names)}
    write(tmp_path / "dataset.json", {"labels": LABELS, "channel_names": {"0": "x"}, "dataset": cases})
    with pytest.raises(MedsegError, match=r"would be one file|two training cases are called"):
        open_dataset(tmp_path)

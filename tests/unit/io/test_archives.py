"""Honest archives of every kind are unpacked whole."""

from __future__ import annotations

import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from medseg.errors import UnreadableFile, UsageError
from medseg.io import extract

CONTENT = {"data/a.txt": b"one", "data/deep/b.bin": bytes(3_000_000), "c": b""}


def pack(path: Path) -> Path:
    source = path.parent / "source"
    for name, content in CONTENT.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(content)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in CONTENT:
                archive.write(source / name, name)
    else:
        with tarfile.open(path, f"w:{path.suffix[1:].replace('tar', '')}") as archive:
            archive.add(source, ".")
    return path


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.tar.bz2", "a.tar.xz"])
def test_every_kind(tmp_path: Path, name: str) -> None:
    folder = extract(pack(tmp_path / name), tmp_path / "out" / "data")
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert found == {str(Path(name)): content for name, content in CONTENT.items()}
    assert os.listdir(tmp_path / "out") == ["data"]


def test_an_empty_folder_is_filled_and_a_full_one_refused(tmp_path: Path) -> None:
    archive = pack(tmp_path / "a.zip")
    (tmp_path / "out").mkdir()
    extract(archive, tmp_path / "out")
    with pytest.raises(UsageError, match="not empty"):
        extract(archive, tmp_path / "out")


def test_a_missing_archive(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match="missing"):
        extract(tmp_path / "a.zip", tmp_path / "out")

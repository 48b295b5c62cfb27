"""Atomic writes, JSON and arrays."""

from __future__ import annotations

import ast
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

import medseg
from medseg.errors import UnreadableFile
from medseg.io import atomic_path, load_array, read_json, save_array, write_json, write_text


def test_a_file_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "case.nii.gz"
    with atomic_path(target) as temporary:
        assert temporary.parent == target.parent
        assert temporary.name.startswith(".")
        assert temporary.name.endswith(".nii.gz")
        temporary.write_text("whole")
        assert not target.exists()
    assert target.read_text() == "whole"
    assert os.listdir(target.parent) == ["case.nii.gz"]


def test_an_error_while_writing_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    write_text(target, "old")

    def half_write() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise KeyError("bug")

    with pytest.raises(KeyError):
        half_write()
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_what_killed_writers_left_is_swept(tmp_path: Path) -> None:
    dead, alive, other = (tmp_path / name for name in (".a.txt.4194305-ab.tmp.txt", "", ".b.txt.4194305-ab.tmp.txt"))
    alive = tmp_path / f".a.txt.{os.getpid()}-ab.tmp.txt"
    for path in (dead, alive, other):
        path.write_text("half")
        os.utime(path, (time.time() - 3600,) * 2)
    write_text(tmp_path / "a.txt", "new")
    assert not dead.exists()
    assert alive.exists()
    assert other.exists()


def test_json_takes_numpy_and_paths(tmp_path: Path) -> None:
    data = {"a": np.float32(0.5), "b": np.arange(3), "c": Path("x/y"), "d": "µm", "e": np.bool_(True)}
    write_json(tmp_path / "a.json", data)
    assert read_json(tmp_path / "a.json") == {"a": 0.5, "b": [0, 1, 2], "c": str(Path("x/y")), "d": "µm", "e": True}
    with pytest.raises(TypeError, match="cannot be written as JSON"):
        write_json(tmp_path / "a.json", {"a": object()})
    assert read_json(tmp_path / "a.json")["a"] == 0.5


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"a": 1,\n "b": }', "line 2, column 7"),
        (b"", "line 1, column 1"),
        (b'{"a": "\xff"}', "byte 7 is not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[" * 500 + b"]" * 500, "nested too deeply"),  # json reads it, what descends into it does not
    ],
)
def test_bad_json_is_refused_with_its_place(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UnreadableFile, match=said):
        read_json(tmp_path / "a.json")


def test_json_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "a.json") == {"a": 1}


def test_missing_json(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match=r"a\.json: cannot be read: No such file"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize("mmap", [True, False])
def test_arrays_come_back(tmp_path: Path, mmap: bool) -> None:
    array = np.random.default_rng(0).random((2, 3, 4)).astype(np.float16)
    save_array(tmp_path / "a.npy", array)
    loaded = load_array(tmp_path / "a.npy", mmap=mmap)
    assert isinstance(loaded, np.memmap) is mmap
    assert loaded.dtype == np.float16
    np.testing.assert_array_equal(loaded, array)


def test_objects_are_not_arrays(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Object arrays"):
        save_array(tmp_path / "a.npy", np.array([{}], dtype=object))
    assert os.listdir(tmp_path) == []


def test_json_has_neither_nan_nor_infinity(tmp_path: Path) -> None:
    odd = {"a": float("nan"), "b": [float("inf"), (1, -np.inf)], "c": np.array([1.0, np.nan]), "d": np.float32("nan")}
    write_json(tmp_path / "a.json", {**odd, "e": {"f": True, "g": Path("x"), "h": np.int64(3), "i": 0.1}})

    def refuse(word: str) -> None:
        raise AssertionError(word)

    found = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert {key: found[key] for key in odd} == {"a": None, "b": [None, [1, None]], "c": [1.0, None], "d": None}
    assert found["e"] == {"f": True, "g": "x", "h": 3, "i": 0.1}
    with pytest.raises(TypeError, match="object cannot be written"):
        write_json(tmp_path / "a.json", object())


def test_json_is_written_by_one_function() -> None:
    """Every other ``json.dump`` could write NaN: these compare, show and send; the ledger's lines are of strings."""
    package = Path(medseg.__file__).parent
    users = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if "json.dump" in (text := path.read_text(encoding="utf-8"))
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Attribute) and node.attr in ("dump", "dumps") and ast.unparse(node.value) == "json"
    }
    unwritten = {"data/keys.py", "help.py", "inference/description.py", "settings/parts.py", "testing.py"}
    assert users <= {"io/atomic.py", "io/dicom_child.py", "io/ledger.py", "io/sidecar.py"} | unwritten


def test_names_that_are_not_utf8_come_back_from_json(tmp_path: Path) -> None:
    name = os.fsdecode(b"M\xfcller")
    write_json(tmp_path / "a.json", {name: name})
    assert read_json(tmp_path / "a.json") == {name: name}

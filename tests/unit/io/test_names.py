"""Names: what passes can be written, below its folder only; what does not is told why."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from medseg.errors import BadDataset
from medseg.io.names import MAX_BYTES, name_fault, plain_name, plain_names, same_name

NASTY = (
    *(
        "/abs",
        "../../x",
        "a/b",
        "",
        ".",
        "..",
        "a\0b",
        "a\\b",
        "C:\\x",
        "C:x",
        "a.",
        "a ",
        " a",
        " ",
        ".hidden",
        "a\nb",
    ),
    *("a\x7fb", "\x1b[31m", "x" * (MAX_BYTES + 1), "é" * MAX_BYTES, "caf\udce9", "\ud800", "a\u2028b", "~/../x/.."),
)
FINE = (
    "case 1",
    "ISIC_0000001",
    "[a]",
    "$HOME",
    "NA",
    "null",
    "~",
    "-rf",
    "é",
    "東京",
    "2024-01-01T10:00",
    "a" * MAX_BYTES,
)


@pytest.mark.parametrize("name", NASTY)
def test_nasty_names_are_refused_in_one_line(name):
    with pytest.raises(BadDataset, match="is no file name") as refused:
        plain_name(name, "case", path="dataset.json")
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize("name", FINE)
def test_names_of_people_pass(name):
    assert plain_name(name, "case") == name


@given(st.text(max_size=MAX_BYTES))
@example("x" * MAX_BYTES)
def test_what_passes_is_one_entry_of_its_folder(name):
    folder = Path("/somewhere/deep")
    if name_fault(name) is None:
        path = folder / f"{name}_probabilities.nii.gz"
        assert os.path.normpath(path) == str(path)
        assert path.parent == folder
        assert len(os.fsencode(f".{path.name}.4194304-01234567.tmp.nii.gz")) <= 255  # as an atomic write calls it


@pytest.mark.parametrize("pair", [("A", "a"), ("caf\u00e9", "cafe\u0301"), ("stra\u00dfe", "STRASSE")])
def test_two_names_that_a_disk_does_not_tell_apart(pair):
    with pytest.raises(BadDataset, match="one file on many systems"):
        plain_names(pair, "case")
    plain_names([pair[0], pair[0], "other"], "case")  # one name twice is for others to judge


def test_a_name_has_one_spelling():
    assert same_name("cafe\u0301") == "caf\u00e9"

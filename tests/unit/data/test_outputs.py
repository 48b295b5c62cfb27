"""An output is refused where it would cost the user something, whatever the path to it looks like."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from medseg.data.outputs import check_outputs, keep_account, same_names
from medseg.errors import ResourceError, UsageError
from medseg.evaluation.command import check_report_folder
from medseg.io import write_json, write_text
from medseg.io.ledger import LEDGER

Spell = Callable[[Path], str | Path]


def linked(folder: Path) -> Path:
    link = folder.parent / f"link{len(list(folder.parent.iterdir()))}"
    link.symlink_to(folder)
    return link


def linked_above(folder: Path) -> Path:
    return linked(folder.parent) / folder.name


SPELLINGS: dict[str, Spell] = {
    "plain": lambda folder: folder,
    "slash": lambda folder: f"{folder}/",
    "up and down": lambda folder: folder / ".." / folder.name,
    "through nothing": lambda folder: folder.parent / "absent" / ".." / folder.name,
    "relative": lambda folder: os.path.relpath(folder),
    "dots": lambda folder: f"{folder.parent}/./{folder.name}/.",
    "home": lambda folder: f"~/{folder.name}",
    "link": linked,
    "link above": linked_above,
}


@pytest.fixture(params=SPELLINGS)
def spell(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Spell:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return SPELLINGS[request.param]


def test_an_input_folder_in_every_spelling(tmp_path: Path, spell: Spell) -> None:
    (tmp_path / "in").mkdir()
    for given, read in ((spell(tmp_path / "in"), tmp_path / "in"), (tmp_path / "in", spell(tmp_path / "in"))):
        with pytest.raises(UsageError, match="is an input"):
            check_outputs(given, ["a.nii.gz"], [None, read])


def test_an_input_file_in_every_spelling(tmp_path: Path, spell: Spell) -> None:
    """Also one that medseg wrote itself: the segmentation of a first step, the input of the second."""
    keep_account(tmp_path / "out", ["a.json"])
    write_text(tmp_path / "out" / "a.json", "{}")
    with pytest.raises(UsageError, match=r"a\.json: is an input"):
        check_outputs(tmp_path / "out", ["a.json"], [Path(spell(tmp_path / "out")) / "a.json"])


@pytest.mark.parametrize("link", [os.symlink, os.link], ids=["symlink", "hard link"])
def test_links_between_inputs_and_outputs(tmp_path: Path, link: Callable[[Path, Path], None]) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.json").write_text("the user's")
    (tmp_path / "out").mkdir()
    link(tmp_path / "in" / "a.json", tmp_path / "out" / "a.json")
    for read in ([tmp_path / "in" / "a.json"], []):  # known as an input, or just not ours
        with pytest.raises(UsageError, match=r"out/a\.json: is (an input|there already)"):
            check_outputs(tmp_path / "out", ["a.json"], read)


def changed(path: Path) -> None:
    path.write_text(path.read_text() + " ")


def replaced(path: Path) -> None:
    path.unlink()
    path.write_text("the user's")


def replaced_by_a_link(path: Path) -> None:
    path.rename(path.with_name("b.json"))
    path.symlink_to("b.json")


def replaced_by_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def without_ledger(path: Path) -> None:
    (path.parent / LEDGER).unlink()


@pytest.mark.parametrize("do", [changed, replaced, replaced_by_a_link, replaced_by_a_folder, without_ledger])
def test_only_what_medseg_wrote_may_be_replaced(tmp_path: Path, do: Callable[[Path], None]) -> None:
    out, names = tmp_path / "out", ["a.json", "deep/c.json"]
    assert check_outputs(out, names, []) == out
    keep_account(out, names)
    for _ in range(2):
        for name in names:
            write_json(out / name, {"n": 1})
        check_outputs(out, names, [])
    shutil.copytree(out, tmp_path / "copy")
    check_outputs(tmp_path / "copy", names, [])
    do(out / "a.json")
    with pytest.raises(UsageError, match=r"a\.json: is there already") as error:
        check_outputs(out, names, [])
    assert error.value.exit_code == 2
    check_outputs(out, ["deep/c.json"], [])
    # What the line advises: move it away, or choose another folder.
    (out / "a.json").rename(out / "mine.json")
    check_outputs(out, ["a.json"], [])
    check_outputs(tmp_path / "other", names, [])


def test_a_write_that_was_killed_before_its_end_is_still_ours(tmp_path: Path) -> None:
    keep_account(tmp_path, ["a.json"])
    write_json(tmp_path / "a.json", 1)
    with (tmp_path / LEDGER).open("a") as ledger:  # of a next write: its line is cut, or there and the file not yet
        ledger.write('\n{"file": "a.json", "sha256": "0123"}\n{"file": "a.js')
    check_outputs(tmp_path, ["a.json"], [])
    write_json(tmp_path / "a.json", 2)
    check_outputs(tmp_path, ["a.json"], [])


@pytest.mark.parametrize("name", ["labelsTr", "imagesTs", "masks", "Images", "labels/train"])
@pytest.mark.parametrize("below", ["", "new"])
def test_the_folders_of_a_dataset(tmp_path: Path, name: str, below: str) -> None:
    (tmp_path / name).mkdir(parents=True)
    check_outputs(tmp_path / name / below, ["a.png"], [])  # nothing in it yet
    (tmp_path / name / "b.png").write_bytes(b"the user's")
    if below and "/" in name:
        return  # two folders down nothing looks for images any more
    with pytest.raises(UsageError, match="the images or labels of a dataset"):
        check_outputs(tmp_path / name / below, ["a.png"], [])
    keep_account(tmp_path / "segmentations", ["a.json"])
    write_json(tmp_path / "segmentations" / "a.json", 1)
    (tmp_path / "segmentations" / "a.png").write_bytes(b"of a shard that runs beside")
    check_outputs(tmp_path / "segmentations", ["b.png"], [])


def test_a_report_about_predictions_whose_folder_is_called_like_labels(tmp_path: Path) -> None:
    (tmp_path / "segmentations").mkdir()
    (tmp_path / "segmentations" / "a.png").write_bytes(b"of another tool")
    for output in (tmp_path / "segmentations" / "evaluation", tmp_path / "segmentations"):
        assert check_report_folder(output, tmp_path / "segmentations", tmp_path / "references") == output
        with pytest.raises(UsageError, match="the images or labels of a dataset"):
            check_report_folder(output, tmp_path / "others", tmp_path / "references")


def test_homes_of_models_and_what_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(UsageError, match="holds a model"):
        check_outputs(tmp_path, ["a.png"], [])
    for output in (tmp_path / "model.json", tmp_path / "model.json" / "below"):
        with pytest.raises(ResourceError, match=r"model\.json: cannot be written: Not a directory"):
            check_outputs(output, ["a.png"], [])
    for output in ("", " "):
        with pytest.raises(UsageError, match="no name"):
            check_outputs(output, ["a.png"], [])


def test_a_ledger_that_is_a_link_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("the user's")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / LEDGER).symlink_to(tmp_path / "precious")
    keep_account(tmp_path / "out", ["a.json"])
    with pytest.raises(ResourceError, match="cannot be written"):
        write_json(tmp_path / "out" / "a.json", 1)
    assert not (tmp_path / "out" / "a.json").exists()
    assert (tmp_path / "precious").read_text() == "the user's"


def test_letter_case(tmp_path: Path) -> None:
    (tmp_path / "In").mkdir()
    if not same_names(tmp_path / "In"):
        assert not (tmp_path / "iN").exists()
        return
    with pytest.raises(UsageError, match="is an input"):
        check_outputs(tmp_path / "iN", ["a.json"], [tmp_path / "In"])

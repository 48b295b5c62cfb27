"""A run is bound to its record: what may change on a resume, what is refused, and that a refusal writes nothing."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from medseg.compose import compose
from medseg.errors import BadDataset, MedsegError, UnreadableFile, UsageError
from medseg.io import read_json
from medseg.training.run_folder import RunFolder
from medseg.training.run_record import (
    MAY_CHANGE,
    RunRecord,
    begin,
    differences,
    has_begun,
    note_begun,
    open_record,
    refuse_differences,
)

NEEDED = {"train": [], "pretrain": [], "adapt": ["model=base"]}
ROOT = Path(__file__).parents[3]
CONFIGS, DOCS = ROOT / "configs", ROOT / "docs" / "large_jobs.md"


def record_of(verb: str, config: Mapping[str, Any], **more: Any) -> RunRecord:
    facts = {"splits": [{"train": ["a"], "val": ["b"]}], "cases": {"a": "1", "b": "2"}, "known": ["a", "b"]}
    return RunRecord.of(verb, config, {"spacing": [1.0]}, **{**facts, "facts": {"labels": {"organ": 1}}, **more})


def begun_run(folder: Path, verb: str, config: Mapping[str, Any], **more: Any) -> RunFolder:
    run = RunFolder(folder)
    begin(run, record_of(verb, config, **more), config, resumed=False)
    note_begun(run, "")
    return run


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def leaves(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in config.items():
        inner = value if isinstance(value, Mapping) and value else None
        found |= leaves(inner, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return found


def with_changed(config: Mapping[str, Any], name: str) -> tuple[dict[str, Any], Any]:
    """The config with another value of one key, of the same type where it has one."""
    changed = copy.deepcopy(dict(config))
    *path, last = name.split(".")
    inner = changed
    for key in path:
        inner = inner[key]
    old = inner[last]
    new = not old if isinstance(old, bool) else old + 1 if isinstance(old, int | float) else ["other"]
    inner[last] = "other" if isinstance(old, str) else new
    return changed, inner[last]


@pytest.mark.parametrize("verb", NEEDED)
def test_every_key_is_free_by_name_or_refused_with_both_values(tmp_path: Path, verb: str) -> None:
    config = compose(verb, [*NEEDED[verb], "resume=true", f"run_dir={tmp_path}"])
    run = begun_run(tmp_path, verb, config)
    before = content(tmp_path)
    assert open_record(run, verb, config) is not None
    for name, old in leaves(config).items():
        changed, new = with_changed(config, name)
        if name == "resume":
            continue
        if name in MAY_CHANGE or (verb, name) == ("adapt", "model"):
            assert open_record(run, verb, changed) is not None
            continue
        with pytest.raises(UsageError) as refused:
            open_record(run, verb, changed)
        assert f"{name} is {new}, the run in this folder has {old}" in str(refused.value)
    assert content(tmp_path) == before


def test_every_key_of_every_option_is_free_by_name_or_refused() -> None:
    """Those of options that no default chooses: models, optimisers, targets, augmentations, views."""
    for file in sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.glob("*/*.yaml")):
        if file.startswith(("experiment", "hydra")):
            continue
        group, config = file.partition("/")[0], OmegaConf.to_container(OmegaConf.load(CONFIGS / file))
        for name in leaves({group: config}):
            changed, _ = with_changed({group: config}, name)
            if name in MAY_CHANGE:
                refuse_differences({group: config}, changed, UsageError)
            else:
                with pytest.raises(UsageError, match=re.escape(name)):
                    refuse_differences({group: config}, changed, UsageError)


def test_the_free_keys_exist_and_are_documented() -> None:
    known = {name for verb in NEEDED for name in leaves(compose(verb, NEEDED[verb]))}
    text = DOCS.read_text(encoding="utf-8")
    for name in MAY_CHANGE:
        assert name in known
        assert f"`{name}`" in text


@pytest.mark.parametrize("words", [["model=unetpp"], ["optimizer=sgd"], ["augmentation=none"], ["target=regions"]])
def test_another_option_of_a_group_is_refused(tmp_path: Path, words: list[str]) -> None:
    config = compose("train", [f"run_dir={tmp_path}", "resume=true"])
    run = begun_run(tmp_path, "train", config)
    with pytest.raises(UsageError, match=r"\.name is \w+, the run in this folder has \w+") as refused:
        open_record(run, "train", compose("train", [f"run_dir={tmp_path}", "resume=true", *words]))
    assert "give the settings of its config.json" in str(refused.value)
    assert open_record(run, "train", {**read_json(run.config), "resume": True}) is not None  # what the fix says


def test_another_verb_is_refused(tmp_path: Path) -> None:
    config = compose("train", ["resume=true", f"run_dir={tmp_path}"])
    run = begun_run(tmp_path, "train", config)
    with pytest.raises(UsageError, match="verb is pretrain, the run in this folder has train"):
        open_record(run, "pretrain", compose("pretrain", ["resume=true", f"run_dir={tmp_path}"]))


def test_without_resume_a_run_is_refused_and_what_is_no_run_always(tmp_path: Path) -> None:
    config = compose("train", [f"run_dir={tmp_path}"])
    assert open_record(RunFolder(tmp_path), "train", config) is None
    (tmp_path / "notes.txt").write_text("what a run does not write does not matter")
    assert open_record(RunFolder(tmp_path), "train", config) is None
    run = begun_run(tmp_path, "train", config)
    with pytest.raises(UsageError, match="add resume=true"):
        open_record(run, "train", config)
    for name in ("config.json", "splits_final.json", "model.safetensors", "fold_0", "validation"):
        other = tmp_path / f"foreign_{name}"
        other.mkdir()
        (other / name).write_text("[]")
        before = content(other)
        for resume in (False, True):
            with pytest.raises(UsageError, match=f"holds {name} but no record of a run"):
                open_record(RunFolder(other), "train", {**config, "resume": resume})
        assert content(other) == before


@pytest.mark.parametrize("name", ["run.json", "config.json", "plan.json", "splits_final.json"])
@pytest.mark.parametrize("damage", [None, b"", b"{", b"[]", b"{}", b"null", b'{"seed": 1}'])
def test_a_record_that_was_changed_is_refused(tmp_path: Path, name: str, damage: bytes | None) -> None:
    config = compose("train", ["resume=true", f"run_dir={tmp_path}"])
    run = begun_run(tmp_path, "train", config)
    (tmp_path / name).unlink()
    if damage is not None:
        (tmp_path / name).write_bytes(damage)
    before = content(tmp_path)
    with pytest.raises(MedsegError) as refused:
        open_record(run, "train", config)
    assert refused.value.exit_code in (2, 3)
    assert "\n" not in str(refused.value)
    assert content(tmp_path) == before


def test_a_run_that_ended_before_its_first_checkpoint_begins_anew_and_says_so(tmp_path: Path, capsys: Any) -> None:
    config = compose("train", ["resume=true", f"run_dir={tmp_path}"])
    run = RunFolder(tmp_path)
    begin(run, record_of("train", config), config, resumed=False)
    run.splits.unlink()  # killed between two of its writes
    assert open_record(run, "train", config) is None
    assert "it begins anew" in capsys.readouterr().out
    begin(run, record_of("train", config), config, resumed=False)
    run.checkpoint.parent.mkdir()
    run.checkpoint.touch()  # killed before it was taken down
    assert open_record(run, "train", config) is not None


def test_sessions_tell_what_changed_and_nothing_else_is_written(tmp_path: Path) -> None:
    config = compose("train", ["trainer.max_epochs=1", f"run_dir={tmp_path}"])
    run = begun_run(tmp_path, "train", config)
    before = content(tmp_path)
    later = compose("train", ["trainer.max_epochs=2", "resume=true", "data.loader_workers=0", f"run_dir={tmp_path}"])
    stored = open_record(run, "train", later)
    assert stored is not None
    begin(run, stored, later, resumed=True)
    after = content(tmp_path)
    assert {name for name in after if after[name] != before[name]} == {"run.json"}
    kept = json.loads(after["run.json"])
    assert [session["changed"] for session in kept["sessions"]] == [
        {},
        {"trainer.max_epochs": 2, "resume": True, "data.loader_workers": 0},
    ]
    assert has_begun(run, "")
    assert open_record(run, "train", later) == stored


def test_cases_and_facts_of_the_data(capsys: Any) -> None:
    stored = record_of("train", {})
    stored.require_cases(["a", "b"])
    stored.agree(record_of("train", {}))
    assert not capsys.readouterr().out
    stored.require_cases(["a", "b", "c"])
    assert "1 cases came after this run began and are left out: c" in capsys.readouterr().out
    with pytest.raises(BadDataset, match="no longer has b"):
        stored.require_cases(["a"])
    with pytest.raises(BadDataset, match="the files of a are not those"):
        stored.agree(record_of("train", {}, cases={"a": "9", "b": "2"}))
    with pytest.raises(BadDataset, match=r"labels\.organ is 2, the run in this folder has 1"):
        stored.agree(record_of("train", {}, facts={"labels": {"organ": 2}}))
    assert UnreadableFile.exit_code == BadDataset.exit_code == 3


def test_identity_follows_all_of_a_record() -> None:
    base = record_of("train", {"seed": 0})
    others = [
        record_of("adapt", {"seed": 0}),
        record_of("train", {"seed": 1}),
        record_of("train", {"seed": 0}, cases={"a": "1"}),
        record_of("train", {"seed": 0}, splits=[]),
        record_of("train", {"seed": 0}, facts={}),
    ]
    names = [base.identity(), base.identity("fold_0"), base.identity("fold_1"), *(o.identity() for o in others)]
    assert len(set(names)) == len(names)
    assert record_of("train", {"seed": 0}).identity() == base.identity()


def test_differences_name_leaves_and_absent_keys() -> None:
    assert list(differences({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 4}, "e": 5})) == [
        ("a.c", 2, 4),
        ("e", None, 5),
        ("d", 3, None),
    ]

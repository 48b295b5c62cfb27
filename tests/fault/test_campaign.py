"""A short version of scripts/campaign.py: what is damaged is read as its bytes say, or refused in one line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from medseg.io import read_volume

sys.path.append(str(Path(__file__).parents[2] / "scripts"))
import _campaign_formats
import _campaign_reference as reference
import campaign
from _campaign_formats import FORMATS, reading_of

TRIES = 20
SEED = 7  # another than the long run's


@pytest.fixture(autouse=True)
def _only_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_campaign_formats, "LARGE", 0.0)


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files(tmp_path: Path, name: str) -> None:
    for number in range(TRIES):
        folder = tmp_path / str(number)
        folder.mkdir()
        sample, files, damage = campaign.sample_of(name, SEED, number)
        outcome, said, _ = campaign.judge(FORMATS[name], sample, files, folder)
        assert outcome in ("read", "refused"), f"{name}, try {number} ({damage}): {outcome}: {said}"


@pytest.mark.parametrize("name", [name for name, form in FORMATS.items() if form.opened == "volume"])
def test_the_reference_reads_what_is_whole_and_medseg_agrees(tmp_path: Path, name: str) -> None:
    for seed in range(8):
        sample = FORMATS[name].make(np.random.default_rng(seed))
        said = reading_of(FORMATS[name], sample.files)
        assert said is not None
        for file, data in sample.files.items():
            (tmp_path / file).write_bytes(data)
        volume = read_volume(tmp_path if sample.several else tmp_path / next(iter(sample.files)))
        found = reference.Reading(volume.array, volume.affine if volume.ndim == 3 else None)
        assert campaign.agrees(found, said, FORMATS[name].exact)
        shifted = reference.Reading(said.array + 9, said.affine)
        assert not campaign.agrees(found, shifted, FORMATS[name].exact)


def test_a_try_that_killed_its_child_counts_and_the_run_goes_on(tmp_path: Path) -> None:
    results = tmp_path / "a.jsonl"
    results.write_text('{"start": 0}\n{"try": 0, "damage": "x", "outcome": "read", "memory": 0.0}\n{"start": 1}\n{"tr')
    rows = campaign.run("NRRD", 0, 4, results, timeout=240, limit_gib=1)
    assert [row["try"] for row in rows] == [0, 1, 2, 3]
    assert [row["outcome"] for row in rows][:2] == ["read", "crash"]
    assert all(row["outcome"] in ("read", "refused") for row in rows[2:])
    facts = campaign.summary({"NRRD": rows}, 0)
    assert facts["formats"]["NRRD"]["crash"] == 1
    assert json.loads(json.dumps(facts)) == facts
    assert campaign.table(facts).splitlines()[-1].startswith("| all | 4 |")

"""Cases overlap without changing a result, and never more than two are held."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch

from medseg.cli import main
from medseg.data.dataset import Case
from medseg.data.plan import Plan
from medseg.device import choose_profile
from medseg.errors import BadVoxels, PartialFailure, UnreadableFile
from medseg.inference import Predictor, predict_cases
from medseg.inference.member import Member
from medseg.inference.memory import MemoryNeed
from medseg.inference.pipeline import PreparedCase, overlapped
from medseg.inference.record import Record, record_path
from medseg.io import read_json, save_model
from medseg.io.ledger import LEDGER
from medseg.models import create_model
from medseg.targets import ExclusiveClasses

SPACING = (1.0, 1.0, 1.0)
LABELS = {"background": 0, "organ": 1}
PLAN = {
    "dataset": "d", "spatial_dims": 3, "channel_names": ["MR"], "labels": LABELS, "ignore_label": None,
    "spacing": [1.0, 1.0, 1.0], "patch_size": [8, 8, 8], "batch_size": 1, "strides": [[1, 1, 1], [2, 2, 2]],
    "normalization": [{"scheme": "none"}], "crop_nonzero": False, "mirror_axes": [], "mirror_swaps": {},
}  # fmt: skip
MODEL = {"name": "unet", "spatial_dims": 3, "in_channels": 1, "out_channels": 2, "base_channels": 4,
         "strides": PLAN["strides"]}  # fmt: skip


def images(count: int = 4) -> list[np.ndarray]:
    return [np.random.default_rng(seed).random((14, 11 + seed, 9), np.float32) for seed in range(count)]


def unet() -> Predictor:
    torch.manual_seed(0)
    member = Member(create_model(**MODEL).eval(), Plan.from_dict(PLAN), ExclusiveClasses(labels=LABELS),
                    choose_profile("cpu", "fp32"))  # fmt: skip
    return Predictor([member])


class Stage:
    """Stands for reading and network: writes down what happens, and how many cases are held at once."""

    def __init__(self, need: int = 0) -> None:
        self.events: list[str] = []
        self.held = self.most = 0
        self.need = need
        self.lock = threading.Lock()

    def prepare(self, source: int, /, *, gate: Callable[[MemoryNeed], None]) -> PreparedCase:
        gate(SimpleNamespace(total=self.need, image=self.need))
        with self.lock:
            self.held += 1
            self.most = max(self.most, self.held)
            self.events.append(f"read {source}")
        time.sleep(0.01)
        if source < 0:
            self.held -= 1
            raise BadVoxels(f"{source} is bad")
        return SimpleNamespace(source=source, need=SimpleNamespace(total=self.need), beside=[])  # type: ignore[return-value]

    def segment(self, case: PreparedCase) -> int:
        time.sleep(0.03)
        with self.lock:
            self.held -= 1
            self.events.append(f"done {case.source}")  # type: ignore[attr-defined]
        return case.source  # type: ignore[attr-defined]


def test_the_next_case_is_read_beside_the_network_and_only_that_one() -> None:
    stage = Stage()
    assert list(overlapped(stage.prepare, stage.segment, range(5), None)) == [0, 1, 2, 3, 4]
    assert stage.most == 2
    for number in range(4):
        assert stage.events.index(f"read {number + 1}") < stage.events.index(f"done {number}")


def test_no_case_is_read_ahead_that_would_not_fit_beside() -> None:
    stage = Stage(need=2**50)
    assert list(overlapped(stage.prepare, stage.segment, range(4), None)) == [0, 1, 2, 3]
    assert stage.most == 1


def test_sources_are_taken_one_by_one() -> None:
    taken = []

    def sources() -> Iterator[int]:
        for number in range(9):
            taken.append(number)
            yield number

    stage = Stage()
    outcomes = overlapped(stage.prepare, stage.segment, sources(), None)
    assert next(outcomes) == 0
    assert taken == [0, 1]
    outcomes.close()


@pytest.mark.parametrize("sources", [[-1, 1, 2], [0, -1, 2], [0, 1, -2], [-1], []])
def test_a_bad_case_gives_its_error_in_its_place(sources: list[int]) -> None:
    stage = Stage()
    outcomes = list(overlapped(stage.prepare, stage.segment, sources, None))
    assert [str(source) for source in sources] == [str(outcome).split(" ")[0] for outcome in outcomes]
    assert [isinstance(outcome, BadVoxels) for outcome in outcomes] == [source < 0 for source in sources]


def test_our_own_bugs_are_not_swallowed() -> None:
    def broken(case: PreparedCase) -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(overlapped(Stage().prepare, broken, range(3), None))


def test_a_bug_while_writing_ends_the_run_though_the_reader_waits(
    tmp_path: Path, threshold_predictor: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    nib.save(nib.Nifti1Image(images()[0], np.eye(4)), tmp_path / "a.nii.gz")
    monkeypatch.setattr("medseg.inference.pipeline.free_room", lambda _: 0)  # no case is read beside another
    monkeypatch.setattr("medseg.inference.segmentation.write_labels", lambda *_: 1 / 0)
    cases = [Case(name, (tmp_path / "a.nii.gz",)) for name in "abcd"]
    with pytest.raises(ZeroDivisionError) as error:
        predict_cases(threshold_predictor(), cases, tmp_path / "out", progress=False)
    readers = [thread for thread in threading.enumerate() if thread.name.startswith("medseg")]
    assert (readers, error.traceback is None) == ([], False)


def test_many_equal_one_by_one() -> None:
    predictor = unet()
    many = list(predictor.predict_many(iter(images()), spacing=SPACING))
    for image, segmentation in zip(images(), many, strict=True):
        assert np.array_equal(segmentation.labels, predictor.predict(image, spacing=SPACING).labels)
        assert {"read", "preprocess", "network", "restore"} <= set(segmentation.seconds)


def test_errors_are_raised_or_given() -> None:
    sources = [*images(2), np.full((8, 8, 8), np.nan), *images(1)]
    outcomes = list(unet().predict_many(sources, spacing=SPACING, errors="yield"))
    assert [isinstance(outcome, BadVoxels) for outcome in outcomes] == [False, False, True, False]
    iterator = unet().predict_many(sources, spacing=SPACING)
    assert len([next(iterator), next(iterator)]) == 2
    with pytest.raises(BadVoxels):
        next(iterator)


def test_two_threads_with_one_predictor() -> None:
    predictor = unet()
    alone = [predictor.predict(image, spacing=SPACING, probabilities=True) for image in images()]
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(predictor.predict, image, spacing=SPACING, probabilities=True) for image in images() * 3]
        together = [job.result() for job in jobs]
    for one, other in zip(alone * 3, together, strict=True):
        assert np.array_equal(one.labels, other.labels)
        np.testing.assert_allclose(one.probabilities, other.probabilities, atol=1e-6)


@pytest.fixture
def run(tmp_path: Path) -> tuple[Path, Path]:
    """A model folder, and a folder of three images of which the second is damaged."""
    target = ExclusiveClasses(labels=LABELS).to_dict()
    save_model(tmp_path / "model", create_model(**MODEL).state_dict(), {"model": MODEL, "target": target, "plan": PLAN})
    (tmp_path / "in").mkdir()
    for name, image in zip("abc", images(), strict=False):
        nib.save(nib.Nifti1Image(image, np.eye(4)), tmp_path / "in" / f"{name}.nii.gz")
    damaged = tmp_path / "in" / "b.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:-50])
    return tmp_path / "model", tmp_path / "in"


def predict(*words: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(["predict", "device=cpu", "precision=fp32", *words])
    return int(end.value.code or 0)


def test_the_command_reports_what_failed_and_what_it_took(
    run: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    words = (f"model={run[0]}", f"input={run[1]}", f"output={tmp_path / 'out'}")
    assert predict(*words, "verbose=true") == 6
    shown = capsys.readouterr()
    assert "1 of 3 cases failed: b: its gzip stream is truncated" in shown.err
    steps = ("read", "preprocess", "network", "restore", "postprocess", "write", "predicted", "measured", "error")
    assert all(word in shown.out for word in steps)
    cases = read_json(tmp_path / "out" / "predictions.json")["cases"]
    assert cases["b"]["exit_code"] == 3
    assert str(run[1] / "b.nii.gz") in cases["b"]["error"]
    assert cases["a"]["file"] == "a.nii.gz"
    assert cases["a"]["warnings"] == []
    assert {"read", "preprocess", "network", "restore", "write"} <= set(cases["a"]["seconds"])
    memory = cases["a"]["memory"]
    assert memory["measured"] > 0
    assert memory["error"] == round(memory["measured"] / (memory["predicted"] + memory["beside"]) - 1, 3)
    assert (memory["window_batch"], memory["fallbacks"], memory["device_predicted"]) == (1, [], 0)
    before = (tmp_path / "out" / "a.nii.gz").stat().st_mtime_ns
    nib.save(nib.Nifti1Image(np.zeros((9, 9, 9), np.float32), np.eye(4)), run[1] / "b.nii.gz")
    assert predict(*words, "overwrite=false") == 0
    again = read_json(tmp_path / "out" / "predictions.json")["cases"]
    assert again["a"] == cases["a"]
    assert again["b"]["warnings"] == ["channel MR is 0 everywhere"]
    assert (tmp_path / "out" / "a.nii.gz").stat().st_mtime_ns == before
    assert "case b: channel MR is 0 everywhere" in caplog.text


def test_shards_of_a_job_share_a_folder(run: tuple[Path, Path], tmp_path: Path) -> None:
    words = (f"model={run[0]}", f"input={run[1]}", f"output={tmp_path / 'out'}")
    (run[1] / "b.nii.gz").unlink()
    assert [predict(*words, f"shard={n}/3") for n in (1, 2, 3)] == [0, 0, 0]
    expected = {"a.nii.gz", "c.nii.gz", "predictions_1_of_3.json", "predictions_2_of_3.json"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == expected | {LEDGER}
    assert [predict(*words, f"shard={n}/3") for n in (1, 2, 3)] == [0, 0, 0]
    assert predict(*words, "shard=4/3") == 2


def test_a_damaged_record_is_told_before_anything_is_predicted(tmp_path: Path) -> None:
    path = record_path(tmp_path, None)
    for text in ("{", "[]", json.dumps({"cases": 3})):
        path.write_text(text)
        with pytest.raises(UnreadableFile, match=r"predictions\.json"):
            Record(path)


def test_probabilities_are_written_beside(tmp_path: Path, threshold_predictor: Callable) -> None:
    nib.save(nib.Nifti1Image(images()[0], np.eye(4)), tmp_path / "a.nii.gz")
    cases = [Case("a", (tmp_path / "a.nii.gz",)), Case("gone", (tmp_path / "gone",))]
    record = Record()
    with pytest.raises(PartialFailure, match="1 of 2 cases failed: gone"):
        predict_cases(threshold_predictor(), cases, tmp_path / "out", probabilities=True, record=record, progress=False)
    assert record.cases["a"]["channels"] == [[0], [1]]
    shares = np.asarray(nib.load(tmp_path / "out" / "a_probabilities.nii.gz").dataobj)
    assert shares.shape == (*images()[0].shape, 2)
    np.testing.assert_allclose(shares.sum(-1), 1, atol=1e-5)

"""Preprocessing there and back, and the cache: resumable, never stale, errors with their case."""

import os
from dataclasses import replace
from operator import attrgetter

import nibabel as nib
import numpy as np
import pytest
import torch

from medseg.data.dataset import Case, SegmentationDataset
from medseg.data.fingerprint import make_fingerprint
from medseg.data.keys import case_key
from medseg.data.parallel import choose_workers, map_cases
from medseg.data.plan import Plan, make_plan
from medseg.data.prepare import (
    prepare,
    prepare_command,
    preprocess,
    preprocess_labels,
    restore_labels,
    restore_probabilities,
    settings_key,
)
from medseg.data.prepared import sample_foreground
from medseg.errors import BadVoxels, InputRefused, ResourceError
from medseg.io import read_channels, read_labels


@pytest.fixture
def dataset(tmp_path):
    rng = np.random.default_rng(0)
    cases = []
    for i in range(3):
        image = np.zeros((10, 12, 8), np.float32)
        image[1:9, 2:11, 1:7] = rng.normal(50, 5, (8, 9, 6))
        label = np.zeros(image.shape, np.uint8)
        label[3:6, 4:8, 2:5] = 1
        label[6, 5:8, 2:5] = 2
        paths = tmp_path / f"c{i}_0000.nii.gz", tmp_path / f"c{i}.nii.gz"
        affine = np.diag([-1.0, 1.0, 2.0, 1.0])
        nib.save(nib.Nifti1Image(image, affine), paths[0])
        nib.save(nib.Nifti1Image(label, affine), paths[1])
        cases.append(Case(id=f"c{i}", images=(paths[0],), label=paths[1]))
    return SegmentationDataset(
        name="toy",
        root=tmp_path,
        channel_names=("MRI",),
        labels={"background": 0, "organ": 1, "lesion": 2},
        ignore_label=None,
        regions=None,
        training=tuple(cases),
        test=(),
        spatial_dims=3,
        file_ending=".nii.gz",
    )


@pytest.fixture
def plan(dataset):
    return make_plan(make_fingerprint(dataset, progress=False))


def prepared_in(tmp_path, dataset, plan, ids=("c0", "c1", "c2"), **settings):
    return prepare(dataset, plan, ids, cache_dir=tmp_path / "cache", workers=0, progress=False, **settings)


def test_arrays_on_disk(tmp_path, dataset, plan):
    prepared = prepared_in(tmp_path, dataset, plan)
    image, labels = prepared.image("c0"), prepared.labels("c0")
    assert isinstance(image, np.memmap)
    assert image.dtype == np.float32
    assert image.shape == (1, 8, 9, 6)  # cropped to what is not 0
    assert labels.shape == (8, 9, 6)
    assert labels.dtype == np.uint8
    assert prepared.classes("c0") == [1, 2]
    assert np.bincount(labels.ravel()).tolist() == [432 - 45, 36, 9]


def test_foreground_positions_have_their_class(tmp_path, dataset, plan):
    prepared = prepared_in(tmp_path, dataset, plan)
    positions = prepared.foreground("c1")
    assert {value: len(rows) for value, rows in positions.items()} == {1: 36, 2: 9}
    for value, rows in positions.items():
        assert (prepared.labels("c1")[tuple(rows.T)] == value).all()


def test_sampling_of_foreground_is_capped():
    rng = np.random.default_rng(0)
    found = sample_foreground(np.ones((9, 9), np.uint8), [1, 2], 10, rng)
    assert set(found) == {1}
    assert len(np.unique(found[1], axis=0)) == 10


def test_a_second_run_writes_nothing(tmp_path, dataset, plan):
    folder = prepared_in(tmp_path, dataset, plan).folder
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*.*")}
    assert len(times) == 12
    assert prepared_in(tmp_path, dataset, plan).folder == folder
    assert times == {path: path.stat().st_mtime_ns for path in folder.rglob("*.*")}


@pytest.mark.parametrize("broken", ["case.json", "image.npy"])
def test_an_incomplete_case_is_made_again(tmp_path, dataset, plan, broken):
    folder = prepared_in(tmp_path, dataset, plan).folder
    (folder / "c1" / broken).unlink()
    (folder / "c1" / "label.npy").write_bytes(b"half")
    assert prepared_in(tmp_path, dataset, plan).labels("c1").shape == (8, 9, 6)


def test_a_mapped_array_survives_being_made_again(tmp_path, dataset, plan):
    prepared = prepared_in(tmp_path, dataset, plan)
    mapped, expected = prepared.image("c1"), np.array(prepared.image("c1"))
    (prepared.folder / "c1" / "case.json").unlink()
    prepared_in(tmp_path, dataset, plan)
    np.testing.assert_array_equal(mapped, expected)


def test_a_disk_that_refuses_is_told(tmp_path, dataset, plan, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(ResourceError, match=r"case c0.*No space left") as caught:
        prepared_in(tmp_path, dataset, plan)
    assert caught.value.exit_code == 4
    assert not list((tmp_path / "cache").rglob("*.tmp"))


def test_a_changed_file_is_prepared_again(tmp_path, dataset, plan):
    before = prepared_in(tmp_path, dataset, plan)
    assert 2 in before.classes("c0")
    path = dataset.case("c0").label
    image = nib.load(path)
    label = np.asanyarray(image.dataobj).copy()
    label[label == 2] = 1
    nib.save(nib.Nifti1Image(label, image.affine), path)
    os.utime(path, ns=(1, 1))
    assert prepared_in(tmp_path, dataset, plan).classes("c0") == [1]


def test_keys_follow_what_changes_voxels_only(dataset, plan):
    assert settings_key(plan) == settings_key(replace(plan, batch_size=9, reasons={}))
    assert settings_key(plan) != settings_key(replace(plan, spacing=(2.0, 1.0, 1.0)))
    assert settings_key(plan) != settings_key(replace(plan, crop_nonzero=False))
    assert settings_key(plan) != settings_key(replace(plan, normalization=({"scheme": "none"},)))
    assert case_key(dataset.case("c0")) != case_key(dataset.case("c1"))


def test_workers_change_nothing(tmp_path, dataset, plan):
    one = prepared_in(tmp_path, dataset, plan)
    two = prepare(dataset, plan, one.ids, cache_dir=tmp_path / "two", workers=2, progress=False)
    for path in sorted(one.folder.rglob("*.npy")):
        assert path.read_bytes() == (two.folder / path.relative_to(one.folder)).read_bytes()


def test_one_bad_case_is_named_and_the_others_are_prepared(tmp_path, dataset, plan):
    path = dataset.case("c1").images[0]
    image = nib.load(path)
    voxels = image.get_fdata()
    voxels[4, 4, 4] = np.nan
    nib.save(nib.Nifti1Image(voxels, image.affine), path)
    with pytest.raises(BadVoxels, match=r"case c1.*2 of 3 cases are prepared") as caught:
        prepared_in(tmp_path, dataset, plan)
    assert caught.value.exit_code == 3
    assert len(list((tmp_path / "cache").rglob("case.json"))) == 2
    assert prepared_in(tmp_path, dataset, plan, ["c0", "c2"]).ids == ["c0", "c2"]


def test_the_command_prints_choices_and_place(tmp_path, dataset, monkeypatch, capsys):
    monkeypatch.setattr("medseg.data.catalogue.resolve_dataset", lambda data: dataset)
    cfg = {"data": {"name": "toy", "workers": 0}, "plan": {"batch_size": 3}, "cache_dir": str(tmp_path / "cache")}
    assert prepare_command(cfg) == 0
    (plan_file,) = (tmp_path / "cache").rglob("plan.json")
    assert Plan.load(plan_file).batch_size == 3
    printed = capsys.readouterr().out.replace("\n", "")
    assert "batch_size 3: set by the user" in printed
    assert str(plan_file.parent) in printed


def test_a_case_without_label_is_refused(tmp_path, dataset, plan):
    bare = replace(dataset, training=(replace(dataset.case("c0"), label=None),))
    with pytest.raises(InputRefused, match="case c0: the case has no label file"):
        prepared_in(tmp_path, bare, plan, ["c0"])


def test_number_of_channels_must_agree(dataset, plan):
    volume = read_channels(dataset.case("c0").images)
    two = replace(plan, channel_names=("a", "b"), normalization=plan.normalization * 2)
    with pytest.raises(InputRefused, match="3D with 1 channel"):
        preprocess(volume, two)


def test_a_map_with_no_resampling_comes_back_exactly(dataset, plan):
    volume = read_channels(dataset.case("c0").images)
    labels = read_labels(dataset.case("c0").label)
    _, done = preprocess(volume, plan)
    assert done.bbox == ((1, 9), (2, 11), (1, 7))
    back = restore_labels(preprocess_labels(labels, done), done)
    np.testing.assert_array_equal(back, labels.array[0])


def test_resampled_probabilities_come_back_in_the_files_grid(dataset, plan):
    volume = read_channels(dataset.case("c0").images)
    labels = read_labels(dataset.case("c0").label)
    coarse = replace(plan, spacing=(0.5, 0.5, 0.5))
    image, done = preprocess(volume, coarse)
    assert image.shape[1:] == done.resampled_shape == (16, 18, 24)
    mask = torch.from_numpy(preprocess_labels(labels, done)).long()
    probabilities = torch.nn.functional.one_hot(mask, 3).movedim(-1, 0).float()
    restored = restore_probabilities(probabilities, done)
    assert restored.shape == (3, 8, 9, 6)
    np.testing.assert_array_equal(restore_labels(restored.argmax(0).numpy(), done), labels.array[0])


class KillsItsReader:
    """Unpickled in a worker, it ends the worker."""

    def __reduce__(self):
        return os._exit, (9,)


def test_a_dying_worker_names_its_case(dataset):
    cases = [replace(case, metadata=KillsItsReader()) if case.id == "c1" else case for case in dataset.training]
    with pytest.raises(ResourceError, match="case c1: the worker process died") as caught:
        list(map_cases(attrgetter("id"), cases, workers=2, title="die", progress=False))
    assert caught.value.exit_code == 4


def test_small_jobs_stay_in_this_process(dataset):
    assert choose_workers(None, dataset.training) == 0
    assert choose_workers("auto", dataset.training) == 0
    assert choose_workers(3, dataset.training) == 3


def test_our_own_bugs_stay_exceptions_and_name_the_case(dataset):
    with pytest.raises(AttributeError) as caught:
        list(map_cases(attrgetter("no_such"), dataset.training, workers=0, title="bug", progress=False))
    assert "case c0" in caught.value.__notes__[0]

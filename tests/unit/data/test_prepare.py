"""Preprocessing there and back, and the cache: resumable, never stale, errors with their case."""

import os
import shutil
from dataclasses import replace
from operator import attrgetter

import nibabel as nib
import numpy as np
import pytest
import torch

from medseg.data.dataset import Case, SegmentationDataset
from medseg.data.fingerprint import make_fingerprint
from medseg.data.keys import case_key, content_key
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
from medseg.data.prepared import PreparedDataset, sample_foreground
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


@pytest.mark.parametrize("damage", [b"", b"half", b"[]", b"{}", None])
@pytest.mark.parametrize("broken", ["case.json", "image.npy", "label.npy", "foreground.npy"])
def test_an_incomplete_case_is_made_again(tmp_path, dataset, plan, broken, damage):
    before = prepared_in(tmp_path, dataset, plan)
    mapped, expected = before.image("c1"), np.array(before.image("c1"))
    path = before.case_folder("c1") / broken
    path.rename(tmp_path / "elsewhere")  # what is mapped stays mapped, whatever becomes of the name
    if damage is not None:
        path.write_bytes(damage)
    again = prepared_in(tmp_path, dataset, plan)
    np.testing.assert_array_equal(again.image("c1"), expected)
    np.testing.assert_array_equal(mapped, expected)
    assert again.foreground("c1").keys() == {1, 2}
    assert sorted(path.name for path in again.folder.iterdir()) == ["c0", "c1", "c2"]
    assert len(list((again.folder / "c1").iterdir())) == 1  # neither scratch nor damaged folders stay


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


def other_label(path, value):
    """A label file of the same size: one voxel of a class becomes another."""
    image = nib.load(path)
    label = np.asanyarray(image.dataobj).copy()
    label[tuple(np.argwhere(label == 1)[0])] = value
    return nib.Nifti1Image(label, image.affine).to_bytes()


def in_place(root, before):
    path = root / "c0.nii"
    path.write_bytes(other_label(path, 2))


def by_another_file(root, before):
    (root / "new.nii").write_bytes(other_label(root / "c0.nii", 2))
    os.utime(root / "new.nii", ns=(before.st_atime_ns, before.st_mtime_ns))
    (root / "new.nii").replace(root / "c0.nii")


def by_another_folder(root, before):
    shutil.copytree(root, root.with_name("copy"), ignore=shutil.ignore_patterns("cache"))
    other = root.with_name("copy") / "c0.nii"
    other.write_bytes(other_label(other, 2))
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    root.rename(root.with_name("away"))
    root.with_name("copy").rename(root)


def by_a_link(root, before):
    by_another_file(root, before)
    (root / "c0.nii").rename(root.parent / "far.nii")
    (root / "c0.nii").symlink_to(root.parent / "far.nii")


@pytest.mark.parametrize("swap", [in_place, by_another_file, by_another_folder, by_a_link])
def test_files_that_change_under_one_name_never_change_what_was_prepared(tmp_path, dataset, plan, swap):
    """Same path, ids, size and time of modification: the cache still tells, and the first run reads its own voxels."""
    root = tmp_path / "d"
    root.mkdir()
    for case in dataset.training:
        nib.save(nib.load(case.images[0]), root / f"{case.id}_0000.nii")
        nib.save(nib.load(case.label), root / f"{case.id}.nii")
    cases = [Case(c.id, (root / f"{c.id}_0000.nii",), root / f"{c.id}.nii") for c in dataset.training]
    here = replace(dataset, root=root, training=tuple(cases))
    first, facts = prepared_in(tmp_path, here, plan), make_fingerprint(here, cache_dir=tmp_path / "f", progress=False)
    own, key = np.array(first.labels("c0")), first.content("c0")
    before = (root / "c0.nii").stat()
    swap(root, before)
    os.utime(root / "c0.nii", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (root / "c0.nii").stat().st_size == before.st_size
    second = prepared_in(tmp_path, here, plan)
    np.testing.assert_array_equal(first.labels("c0"), own)
    assert (second.labels("c0") == 2).sum() == (own == 2).sum() + 1
    assert first.content("c0") == key != second.content("c0")
    assert first.content("c1") == second.content("c1")
    again = make_fingerprint(here, cache_dir=tmp_path / "f", progress=False)
    assert again.cases[0].voxels[2] == facts.cases[0].voxels[2] + 1


def test_datasets_of_one_name_share_nothing(tmp_path, dataset, plan):
    """Folders of one name, with equal ids, in different places: neither array nor fact of one reaches the other."""
    made = {}
    for place in ("a", "b"):
        root = tmp_path / place / "toy"
        root.mkdir(parents=True)
        cases = []
        for case in dataset.training:
            files = root / case.images[0].name, root / case.label.name
            shutil.copy2(case.images[0], files[0])
            files[1].write_bytes(other_label(case.label, 2) if place == "b" else case.label.read_bytes())
            cases.append(Case(case.id, files[:1], files[1]))
        made[place] = replace(dataset, root=root, training=tuple(cases))
    one = prepared_in(tmp_path, made["a"], plan)
    own = np.array(one.labels("c0"))
    two = prepared_in(tmp_path, made["b"], plan)
    assert one.folder != two.folder
    np.testing.assert_array_equal(one.labels("c0"), own)
    assert not np.array_equal(two.labels("c0"), own)
    facts = [make_fingerprint(made[p], cache_dir=tmp_path / "f", progress=False) for p in ("a", "b", "a")]
    assert facts[0] == facts[2] != facts[1]


def test_a_copy_has_the_content_of_its_original(tmp_path, dataset):
    case = dataset.case("c0")
    for path in (*case.images, case.label):
        shutil.copy(path, tmp_path / f"copy_{path.name}")
    copy = Case("x", (tmp_path / f"copy_{case.images[0].name}",), tmp_path / f"copy_{case.label.name}")
    assert content_key(copy) == content_key(case) != content_key(dataset.case("c1"))


def test_voxels_beside_their_header_are_part_of_a_case(tmp_path):
    import SimpleITK as sitk

    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((4, 4, 4), np.int16)), str(tmp_path / "a.mhd"))
    case = Case("a", (tmp_path / "a.mhd",))
    before = case_key(case), content_key(case)
    voxels = bytearray((tmp_path / "a.raw").read_bytes())
    voxels[5] ^= 1
    (tmp_path / "a.raw").write_bytes(voxels)
    assert case_key(case) != before[0]
    assert content_key(case) != before[1]


def test_two_writers_of_one_case(tmp_path):
    """The one that ends last finds the case done; what is read through the first stays."""
    arrays = np.ones((1, 4, 4, 4), np.float32), np.ones((4, 4, 4), np.uint8)
    one, two = (PreparedDataset(tmp_path / "p", {"a": "key"}) for _ in range(2))
    with one._new_folder("a"):
        two.write("a", "content", *arrays, {})
        mapped = two.image("a")
        (next((tmp_path / "p" / "a").glob(".*.tmp")) / "other").touch()
    assert two.complete("a")
    assert (mapped == 1).all()
    assert [path.name for path in (tmp_path / "p" / "a").iterdir()] == ["key"]


@pytest.mark.parametrize("place", ["/proc/x", "file/x"])
def test_a_cache_that_cannot_be_written_exits_4_before_a_case_is_read(tmp_path, dataset, plan, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    for call in (
        lambda: prepare(dataset, plan, ["c0"], cache_dir=place, workers=0, progress=False),
        lambda: make_fingerprint(dataset, cache_dir=place, progress=False),
    ):
        with pytest.raises(ResourceError, match="set cache_dir= to a folder that can be written") as caught:
            call()
        assert caught.value.exit_code == 4
        assert caught.value.case is None
    assert prepare(dataset, plan, ["c0"], cache_dir=tmp_path / "good", workers=0, progress=False).complete("c0")


def test_keys_follow_what_changes_voxels_only(dataset, plan):
    assert settings_key(plan) == settings_key(replace(plan, batch_size=9, reasons={}))
    assert settings_key(plan) != settings_key(replace(plan, spacing=(2.0, 1.0, 1.0)))
    assert settings_key(plan) != settings_key(replace(plan, crop_nonzero=False))
    assert settings_key(plan) != settings_key(replace(plan, normalization=({"scheme": "none"},)))
    assert case_key(dataset.case("c0")) != case_key(dataset.case("c1"))


def test_workers_change_nothing(tmp_path, dataset, plan):
    one = prepared_in(tmp_path, dataset, plan)
    prepare(dataset, plan, one.ids, cache_dir=tmp_path / "two", workers=2, progress=False)
    for path in sorted(one.folder.rglob("*.npy")):
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "cache")).read_bytes()


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

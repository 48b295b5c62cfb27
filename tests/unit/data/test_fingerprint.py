"""Facts measured from files."""

import nibabel as nib
import numpy as np
import pytest

from medseg.data.dataset import Case, SegmentationDataset
from medseg.data.fingerprint import Fingerprint, make_fingerprint, nonzero_box
from medseg.data.plan import make_plan
from medseg.errors import BadDataset, BadGeometry, BadLabels

LABELS = {"background": 0, "organ": 1, "lesion": 2}


def write_dataset(root, count=4, *, flip=False, label_value=1, label_shift=0.0):
    """Cases of 12x16x10 voxels of 1x2x3 mm; class 1 is a block at the left of the body, in RAS+ terms."""
    cases = []
    for i in range(count):
        image = np.zeros((12, 16, 10), np.float32)
        image[1:11, 2:14, 1:9] = 100 + i
        label = np.zeros(image.shape, np.uint8)
        label[1:4, 4:8, 2:6] = label_value
        affine = np.diag([1.0, 2.0, 3.0, 1.0])
        if flip and i % 2:  # the same anatomy, stored the other way round
            image, label, affine = image[::-1], label[::-1], np.diag([-1.0, 2.0, 3.0, 1.0])
        moved = affine.copy()
        moved[0, 3] += label_shift
        paths = root / f"c{i}_0000.nii.gz", root / f"c{i}.nii.gz"
        nib.save(nib.Nifti1Image(image, affine), paths[0])
        nib.save(nib.Nifti1Image(label, moved), paths[1])
        cases.append(Case(id=f"c{i}", images=(paths[0],), label=paths[1]))
    return SegmentationDataset(
        name="toy",
        root=root,
        channel_names=("MRI",),
        labels=LABELS,
        ignore_label=None,
        regions=None,
        training=tuple(cases),
        test=(),
        spatial_dims=3,
        file_ending=".nii.gz",
    )


def test_facts_of_a_case(tmp_path):
    facts = make_fingerprint(write_dataset(tmp_path), progress=False)
    case = facts.cases[0]
    assert case.shape == (12, 16, 10)
    assert case.cropped_shape == (10, 12, 8)
    assert case.spacing == pytest.approx((1.0, 2.0, 3.0))
    assert case.voxels == {0: 1920 - 48, 1: 48}
    assert case.zero_fraction[0] == pytest.approx(1 - 960 / 1920)
    assert case.integers == (True,)
    assert (case.minimum[0], case.maximum[0]) == (0, 100)
    assert case.offsets[1] < -0.5
    assert facts.intensities[0]["mean"] == pytest.approx(101.5)
    assert facts.class_frequencies == pytest.approx({0: 1 - 48 / 1920, 1: 48 / 1920, 2: 0.0})


def test_orientation_does_not_change_the_facts(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    plain = make_fingerprint(write_dataset(tmp_path / "a"), progress=False)
    flipped = make_fingerprint(write_dataset(tmp_path / "b", flip=True), progress=False)
    assert plain.cases == flipped.cases
    assert make_plan(flipped).mirror_axes == ()  # the organ is on the same side in all cases


def test_workers_do_not_change_the_facts(tmp_path):
    dataset = write_dataset(tmp_path)
    alone = make_fingerprint(dataset, workers=0, progress=False)
    assert make_fingerprint(dataset, workers=2, progress=False) == alone
    alone.save(tmp_path / "facts.json")
    assert Fingerprint.load(tmp_path / "facts.json") == alone


def test_cached_facts_follow_the_files(tmp_path, monkeypatch):
    dataset = write_dataset(tmp_path)
    facts = make_fingerprint(dataset, cache_dir=tmp_path / "cache", progress=False)
    with monkeypatch.context() as patch:
        patch.setattr("medseg.data.fingerprint._make", None)  # a second look must not read the cases
        assert make_fingerprint(dataset, cache_dir=tmp_path / "cache", progress=False) == facts
    write_dataset(tmp_path, label_value=2)
    assert 2 in make_fingerprint(dataset, cache_dir=tmp_path / "cache", progress=False).cases[0].voxels


def test_a_part_of_the_cases(tmp_path):
    facts = make_fingerprint(write_dataset(tmp_path), ["c2", "c1"], progress=False)
    assert [case.id for case in facts.cases] == ["c1", "c2"]


def test_no_case_is_refused(tmp_path):
    with pytest.raises(BadDataset, match="no training case"):
        make_fingerprint(write_dataset(tmp_path, count=0), progress=False)


def test_no_foreground_is_refused(tmp_path):
    with pytest.raises(BadDataset, match="foreground"):
        make_fingerprint(write_dataset(tmp_path, label_value=0), progress=False)


def test_an_unknown_label_is_named_with_its_case(tmp_path):
    with pytest.raises(BadLabels, match=r"case c0.*7 \(48 voxels\)"):
        make_fingerprint(write_dataset(tmp_path, label_value=7), progress=False)


def test_a_label_on_another_grid_is_refused(tmp_path):
    with pytest.raises(BadGeometry, match="case c0"):
        make_fingerprint(write_dataset(tmp_path, label_shift=3.0), progress=False)


def test_nonzero_box():
    array = np.zeros((2, 5, 6))
    array[0, 1, 2] = array[1, 3, 4] = -1
    assert nonzero_box(array) == ((1, 4), (2, 5))
    assert nonzero_box(np.zeros((1, 5, 6))) == ((0, 5), (0, 6))


@pytest.mark.realdata
def test_hippocampus(shared_data):
    from medseg.data.dataset import open_dataset

    dataset = open_dataset(shared_data / "Dataset004_Hippocampus")
    plan = make_plan(make_fingerprint(dataset, [case.id for case in dataset.training[:40]], progress=False))
    assert plan.patch_size == (40, 56, 40)
    assert plan.mirror_axes == (0,)
    assert plan.batch_size == 2

"""Patches: where they lie, what they hold, and that nothing but (seed, index) decides them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from medseg.data.augment import make_augmentation
from medseg.data.plan import Plan
from medseg.data.prepared import PreparedDataset, sample_foreground
from medseg.data.sampling import PatchDataset, cut_padded, patch_start
from medseg.errors import BadDataset


@pytest.fixture
def plan():
    return Plan(
        dataset="toy",
        spatial_dims=3,
        channel_names=("MRI",),
        labels={"background": 0, "organ": 1, "rare": 2},
        ignore_label=None,
        spacing=(1.0, 1.0, 1.0),
        patch_size=(8, 8, 8),
        batch_size=3,
        strides=((1, 1, 1), (2, 2, 2)),
        normalization=({"scheme": "zscore"},),
        crop_nonzero=False,
        mirror_axes=(0, 1, 2),
        mirror_swaps={},
    )


@pytest.fixture
def prepared(tmp_path):
    """Five cases of 20x24x16; class 2 is one voxel of one case. Each image holds its own number everywhere."""
    prepared = PreparedDataset(tmp_path, {f"c{i}": "key" for i in range(5)})
    for i, case_id in enumerate(prepared.ids):
        labels = np.zeros((20, 24, 16), np.uint8)
        labels[2:10, 3:12, 4:9] = 1
        if i == 3:
            labels[19, 23, 15] = 2
        image = np.full((1, *labels.shape), i + 1, np.float32)
        found = sample_foreground(labels, [1, 2], 50, np.random.default_rng(0))
        prepared.write(case_id, "key", image, labels, found)
    return prepared


def test_a_sample(prepared, plan):
    sample = PatchDataset(prepared, plan, prepared.ids)[0]
    assert sample["image"].shape == (1, 8, 8, 8)
    assert sample["image"].dtype == torch.float32
    assert sample["label"].shape == (1, 8, 8, 8)
    assert sample["label"].dtype == torch.uint8
    assert sample["case"] in prepared.ids
    assert (sample["image"] == prepared.ids.index(sample["case"]) + 1).all()


def test_the_last_third_of_each_batch_holds_foreground_and_rare_classes_are_seen_as_often(prepared, plan):
    data = PatchDataset(prepared, plan, prepared.ids)
    forced = [data[i] for i in range(2, 300, 3)]
    assert all(sample["label"].any() for sample in forced)
    rare = sum(bool((sample["label"] == 2).any()) for sample in forced)
    assert 35 <= rare <= 65  # half of 100, though it is one voxel of one case


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_foreground_fraction_at_its_ends(prepared, plan, fraction):
    data = PatchDataset(prepared, plan, prepared.ids, foreground_fraction=fraction)
    rare = sum(bool((data[i]["label"] == 2).any()) for i in range(60))
    assert rare < 6 if fraction == 0 else rare > 15


def test_the_other_patches_visit_every_case_in_turn(prepared, plan):
    data = PatchDataset(prepared, plan, prepared.ids, foreground_fraction=0.0)
    orders = [tuple(data[5 * turn + i]["case"] for i in range(5)) for turn in range(4)]
    assert all(set(order) == set(prepared.ids) for order in orders)
    assert len(set(orders)) > 1
    mixed = PatchDataset(prepared, plan, prepared.ids)  # two of three places go round the cases
    assert {mixed[i]["case"] for i in (0, 1, 3, 4, 6)} == set(prepared.ids)


def test_an_index_alone_decides(prepared, plan):
    first = PatchDataset(prepared, plan, prepared.ids, seed=1)
    again = PatchDataset(prepared, plan, list(reversed(prepared.ids)), seed=1)
    other = PatchDataset(prepared, plan, prepared.ids, seed=2)
    for i in (0, 2, 100_001):
        assert torch.equal(first[i]["label"], again[i]["label"])
        assert first[i]["case"] == again[i]["case"]
    assert [first[i]["case"] for i in range(12)] != [other[i]["case"] for i in range(12)]


@pytest.mark.parametrize("dims", [2, 3])
def test_workers_change_nothing(tmp_path, dims, plan):
    plan = replace(plan, spatial_dims=dims, spacing=(1.0,) * dims, patch_size=(32,) * dims, mirror_axes=(0,))
    prepared = PreparedDataset(tmp_path, {"a": "key", "b": "key"})
    rng = np.random.default_rng(0)
    for case_id in prepared.ids:
        labels = rng.integers(0, 3, (40,) * dims).astype(np.uint8)
        found = sample_foreground(labels, [1, 2], 50, rng)
        prepared.write(case_id, "k", rng.normal(size=(1, *labels.shape)).astype(np.float32), labels, found)
    augment = make_augmentation("default", dims, plan, noise_probability=0.5, contrast_probability=0.5)
    runs = []
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    for workers in (0, 1, 2):
        data = PatchDataset(prepared, plan, prepared.ids, seed=3, augment=augment)
        runs.append(list(DataLoader(data, batch_size=3, sampler=range(24, 36), num_workers=workers)))
    torch.set_num_threads(threads)
    for batches in runs[1:]:
        assert len(batches) == 4
        for one, two in zip(runs[0], batches, strict=True):
            assert one["case"] == two["case"]
            assert torch.equal(one["image"], two["image"])
            assert torch.equal(one["label"], two["label"])


def test_starts_stay_inside_where_they_can():
    rng = np.random.default_rng(0)
    starts = np.array([patch_start(rng, (20, 5, 8), (8, 8, 8), None) for _ in range(300)])
    assert (starts.min(0).tolist(), starts.max(0).tolist()) == ([0, -3, 0], [12, 0, 0])


def test_a_patch_holds_its_voxel():
    rng = np.random.default_rng(0)
    for voxel in ([0, 0, 0], [19, 4, 7], [10, 2, 3]):
        starts = np.array([patch_start(rng, (20, 5, 8), (8, 8, 8), np.array(voxel)) for _ in range(100)])
        assert (starts <= voxel).all()
        assert (np.array(voxel) < starts + 8).all()
    assert len(np.unique(starts[:, 0])) == 5  # jittered by a quarter patch


@pytest.mark.parametrize(
    ("start", "size", "expected"),
    [
        (1, 3, [2, 3, 4]),
        (-2, 4, [0, 0, 1, 2]),
        (3, 4, [4, 5, 0, 0]),
        (-1, 7, [0, 1, 2, 3, 4, 5, 0]),
        (-4, 2, [0, 0]),
        (7, 2, [0, 0]),
    ],
)
def test_cut_padded(start, size, expected):
    array = np.arange(1, 6)[None]
    assert cut_padded(array, [start], [size])[0].tolist() == expected


def test_each_case_is_announced_before_it_is_read(prepared, plan):
    data = PatchDataset(prepared, plan, prepared.ids)
    told = []
    data.announce = told.append
    cases = [data[i]["case"] for i in range(4)]
    assert told == cases


def test_no_case_is_refused(prepared, plan):
    with pytest.raises(BadDataset, match="no case"):
        PatchDataset(prepared, plan, [])


def test_the_margin_of_an_augmentation_is_cut_around_the_patch(prepared, plan):
    class Keep:
        input_size = (12, 12, 12)

        def __call__(self, rng, sample):
            return sample

    plain = PatchDataset(prepared, plan, prepared.ids)
    wide = PatchDataset(prepared, plan, prepared.ids, augment=Keep())
    for i in range(6):
        assert torch.equal(wide[i]["label"][:, 2:-2, 2:-2, 2:-2], plain[i]["label"])

"""Phantoms: the same from a seed, varied in all that real scans vary in, and too hard for thresholds."""

from __future__ import annotations

import time
from itertools import combinations

import numpy as np
import pytest
from nibabel.orientations import aff2axcodes

from medseg.data.dataset import SegmentationDataset, open_dataset
from medseg.data.phantom import generate_phantom, write_phantoms
from medseg.data.phantom_anatomy import LABELS
from medseg.io import Geometry, Volume, read_json, read_labels, read_volume


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[SegmentationDataset, float]:
    start = time.process_time()
    dataset = write_phantoms(tmp_path_factory.mktemp("phantoms"))
    return dataset, time.process_time() - start


@pytest.fixture(scope="module")
def scans(written) -> list[tuple[Volume, np.ndarray]]:
    cases = written[0].training
    return [(read_volume(c.images[0]).canonical(), read_labels(c.label).canonical().array[0]) for c in cases]


def test_written_as_a_dataset_in_seconds(written):
    dataset, seconds = written
    assert (len(dataset.training), len(dataset.test)) == (24, 8)
    assert all(case.label for case in dataset.test)
    assert dataset.synthetic
    assert dataset.labels == LABELS
    assert "SYNTHETIC" in read_json(dataset.root / "dataset.json")["description"]
    assert seconds < 20  # 2.5 s on an idle core


def test_image_and_label_are_on_one_grid(written):
    for case in written[0].training[:4]:
        image, labels = read_volume(case.images[0]), read_labels(case.label)
        assert image.geometry.difference(labels.geometry, tolerance_voxels=1e-3) is None


def test_every_organ_is_there_and_large_enough(scans):
    for volume, labels in scans:
        voxels = np.bincount(labels.ravel(), minlength=6)
        assert (voxels > 4 / 3 * np.pi * 3.5**3).all(), volume.spacing
        assert voxels.argmax() == 0


def test_sides_are_those_of_a_body(scans):
    """RAS+: the first axis grows to the right."""
    for _, labels in scans:
        right, left, liver, spleen = (
            np.argwhere(labels == LABELS[name])[:, 0].mean()
            for name in ("kidney_right", "kidney_left", "liver", "spleen")
        )
        assert left < right
        assert spleen < liver


def test_the_lesion_is_inside_the_liver(scans):
    from scipy.ndimage import binary_dilation

    for _, labels in scans:
        lesion = labels == LABELS["lesion"]
        shell = binary_dilation(lesion) & ~lesion
        assert (labels[shell] == LABELS["liver"]).mean() > 0.7  # it may touch the liver's surface


def test_orientation_spacing_and_scale_vary(written):
    geometries = [read_volume(case.images[0]).geometry for case in written[0].training]
    assert len({aff2axcodes(geometry.affine) for geometry in geometries}) > 12  # of 48, in 24 draws
    spacings = np.array([geometry.canonical().spacing for geometry in geometries])
    assert spacings[:, 2].max() / spacings[:, 2].min() > 1.3
    assert (spacings[:, 2] / spacings[:, 0]).max() > 1.3
    tilts = [np.abs(geometry.affine[:3, :3] / geometry.spacing).max(axis=0).min() for geometry in geometries]
    assert np.cos(np.deg2rad(15)) < min(tilts) < 0.999
    maxima = [read_volume(case.images[0]).array.max() for case in written[0].training]
    assert max(maxima) > 2 * min(maxima)


def test_no_threshold_reaches_06(scans):
    """For each class the best of all intervals between 60 quantiles, over all cases and for each case alone."""
    scores = [normal_scores(volume.array[0]) for volume, _ in scans]
    labels = [labels.ravel() for _, labels in scans]
    assert best_interval_dice(np.concatenate(scores), np.concatenate(labels)) < 0.4
    oracle = [best_interval_dice(score, label) for score, label in zip(scores, labels, strict=True)]
    assert max(oracle) < 0.5


def normal_scores(image: np.ndarray) -> np.ndarray:
    return ((image - image.mean()) / image.std()).ravel()


def best_interval_dice(scores: np.ndarray, labels: np.ndarray) -> float:
    bins = np.searchsorted(np.quantile(scores, np.linspace(0, 1, 61)), scores)
    below = np.concatenate([[0], np.cumsum(np.bincount(bins, minlength=62))])
    best = []
    for value in list(LABELS.values())[1:]:
        found = np.concatenate([[0], np.cumsum(np.bincount(bins[labels == value], minlength=62))])
        intervals = combinations(range(len(below)), 2)
        best.append(max(2 * (found[b] - found[a]) / (below[b] - below[a] + found[-1]) for a, b in intervals))
    return float(np.mean(best))


def test_one_seed_one_phantom():
    first, again, other = (generate_phantom(np.random.default_rng(seed), shape=(20, 20, 16)) for seed in (3, 3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert first[0].shape != other[0].shape or not np.array_equal(first[0], other[0])
    assert (first[0].dtype, first[1].dtype) == (np.int16, np.uint8)


def test_a_case_does_not_depend_on_the_number_of_cases(tmp_path):
    few = write_phantoms(tmp_path / "few", cases=1, test_cases=1, seed=5, shape=(16, 16, 12))
    more = write_phantoms(tmp_path / "more", cases=2, test_cases=1, seed=5, shape=(16, 16, 12))
    for case in (*few.training, *few.test):
        same = more.case(case.id)
        assert np.array_equal(read_volume(case.images[0]).array, read_volume(same.images[0]).array)
    assert not np.array_equal(*(read_labels(more.training[n].label).array.sum() for n in (0, 1)))
    assert open_dataset(tmp_path / "few") == few


def test_the_same_anatomy_at_twice_the_resolution():
    """The shape changes the grid, not the body: organs keep their volume in mm^3."""
    volumes = []
    for shape in ((26, 22, 20), (52, 44, 40)):
        _, labels, affine = generate_phantom(np.random.default_rng(1), shape=shape)
        voxel = np.prod(Geometry(labels.shape, affine).spacing)
        volumes.append(np.bincount(labels.ravel(), minlength=6)[1:] * voxel)
    assert np.allclose(volumes[0], volumes[1], rtol=0.15)

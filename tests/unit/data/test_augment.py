"""Augmentation: image and label move together, mirrors swap sides, everything follows from the generator."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from medseg.data.augment import (
    CentreCrop,
    Mirror,
    make_augmentation,
    movable_axes,
    swap_labels,
    wider_size,
)
from medseg.data.augment3d import sample_labels, sampling_grid, spline_basis
from medseg.data.intensity3d import Blur, Brightness, Contrast, Gamma, LowResolution, Noise
from medseg.data.plan import Plan
from medseg.errors import UsageError

PLAN3D = Plan(
    dataset="toy",
    spatial_dims=3,
    channel_names=("MRI",),
    labels={"background": 0, "organ": 1},
    ignore_label=None,
    spacing=(1.0, 1.0, 1.0),
    patch_size=(32, 32, 24),
    batch_size=2,
    strides=((1, 1, 1),),
    normalization=({"scheme": "zscore"},),
    crop_nonzero=False,
    mirror_axes=(0, 1, 2),
    mirror_swaps={},
)
PLAN2D = replace(PLAN3D, spatial_dims=2, spacing=(1.0, 1.0), patch_size=(64, 48), mirror_axes=(0, 1))
ANISOTROPIC = replace(PLAN3D, spacing=(1.0, 1.0, 6.0))
SPATIAL_ONLY = {
    "spatial_probability": 1.0,
    "noise_probability": 0.0,
    "blur_probability": 0.0,
    "brightness_probability": 0.0,
    "contrast_probability": 0.0,
    "gamma_probability": 0.0,
    "low_resolution_probability": 0.0,
}


def blob(size, dtype=torch.uint8):
    """An off-centre ellipsoid as image and label."""
    grid = np.indices(size) - np.array(size).reshape(-1, *[1] * len(size)) * 0.45
    inside = sum((g / (0.22 * n)) ** 2 for g, n in zip(grid, size, strict=True)) < 1
    label = torch.from_numpy(inside[None]).to(dtype)
    return {"image": label.float(), "label": label}


def dice(a, b):
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


@pytest.mark.parametrize("plan", [PLAN3D, ANISOTROPIC, PLAN2D])
@pytest.mark.parametrize("elastic", [0.0, 1.0])
def test_image_and_label_stay_aligned(plan, elastic):
    """The image is its own label: thresholded after augmentation it must still be."""
    augment = make_augmentation("default", plan.spatial_dims, plan, elastic_probability=elastic, **SPATIAL_ONLY)
    for seed in range(6):
        out = augment(np.random.default_rng(seed), blob(augment.input_size))
        assert out["image"].shape[1:] == out["label"].shape[1:] == plan.patch_size
        assert out["label"].dtype == torch.uint8
        assert dice(out["image"] > 0.5, out["label"] > 0) > 0.97


@pytest.mark.parametrize("plan", [PLAN3D, PLAN2D])
def test_something_happens(plan):
    augment = make_augmentation("default", plan.spatial_dims, plan, mirror_probability=0.0, **SPATIAL_ONLY)
    sample = blob(augment.input_size)
    still = CentreCrop(plan.patch_size).apply(sample, None)
    assert dice(augment(np.random.default_rng(0), sample)["label"] > 0, still["label"] > 0) < 0.95


@pytest.mark.parametrize("plan", [PLAN3D, PLAN2D])
@pytest.mark.parametrize("name", ["none", "light", "default"])
def test_the_generator_decides_and_the_input_stays(plan, name):
    augment = make_augmentation(name, plan.spatial_dims, plan)
    sample = blob(augment.input_size, torch.int16)
    before = {key: value.clone() for key, value in sample.items()}
    for seed in range(8):
        one, two = (augment(np.random.default_rng(seed), sample) for _ in range(2))
        for key in ("image", "label"):
            assert torch.equal(one[key], two[key])
            assert torch.equal(sample[key], before[key])
        assert one["label"].dtype == torch.int16
        assert one["image"].dtype == torch.float32
        assert type(one["image"]) is torch.Tensor
        assert torch.isfinite(one["image"]).all()
        assert set(one["label"].unique().tolist()) <= {0, 1}


def test_drawn_parameters_replay():
    augment = make_augmentation("default", 3, PLAN3D)
    sample = blob(augment.input_size)
    rng = np.random.default_rng(5)
    drawn = augment.draw(rng)
    after = rng.random()
    assert torch.equal(augment.apply(sample, drawn)["image"], augment.apply(sample, drawn)["image"])
    rng = np.random.default_rng(5)
    augment(rng, sample)
    assert rng.random() == after  # applying takes nothing from the generator


def test_none_is_the_identity():
    augment = make_augmentation("none", 3, PLAN3D)
    sample = blob(PLAN3D.patch_size)
    assert augment(np.random.default_rng(0), sample) is sample
    assert augment.input_size == PLAN3D.patch_size


def test_the_identity_grid_is_exact():
    image = torch.rand(1, 1, 5, 6, 7)
    grid = sampling_grid(np.eye(3), np.zeros((3, 6, 6, 6), np.float32), (5, 6, 7), (5, 6, 7))
    torch.testing.assert_close(torch.nn.functional.grid_sample(image, grid, align_corners=False), image)


def test_the_matrix_maps_output_voxels_to_input_voxels():
    """A quarter turn about axis 2 with a wider input is numpy's rot90 of the middle."""
    image = torch.rand(1, 1, 12, 12, 6)
    turn = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    grid = sampling_grid(turn, None, (12, 12, 6), (8, 8, 6))
    out = torch.nn.functional.grid_sample(image, grid, align_corners=False)
    torch.testing.assert_close(out, torch.rot90(image, 3, (2, 3))[:, :, 2:-2, 2:-2])


def test_rotation_is_in_mm():
    """With 1 x 1 x 2 mm a turn keeps the length of a vector in mm, not in voxels."""
    plan = replace(PLAN3D, spacing=(1.0, 1.0, 2.0))
    augment = make_augmentation("default", 3, plan, scale=[1.0, 1.0], shear=0.0)
    for seed in range(5):
        matrix = augment.steps[0].draw(np.random.default_rng(seed))["matrix"]
        spacing = np.diag(plan.spacing)
        in_mm = spacing @ matrix @ np.linalg.inv(spacing)
        np.testing.assert_allclose(in_mm @ in_mm.T, np.eye(3), atol=1e-6)


def test_anisotropic_volumes_move_within_the_plane_only():
    assert movable_axes(ANISOTROPIC) == (0, 1)
    assert movable_axes(replace(PLAN3D, patch_size=(64, 64, 16))) == (0, 1)
    augment = make_augmentation("default", 3, ANISOTROPIC, elastic_probability=1.0)
    assert augment.input_size == (40, 40, 24)
    params = augment.steps[0].draw(np.random.default_rng(0))
    np.testing.assert_allclose(params["matrix"][2], [0, 0, 1])
    np.testing.assert_allclose(params["matrix"][:, 2], [0, 0, 1])
    assert not params["elastic"][2].any()
    assert params["elastic"][:2].any()


def test_splines_sum_to_1():
    torch.testing.assert_close(spline_basis(40).sum(1), torch.ones(40))


def test_mirror_swaps_the_sides():
    label = torch.tensor([[2, 2, 0, 3]], dtype=torch.uint8)[:, :, None]
    mirror = Mirror((0, 1), {"0": [[2, 3]]})
    sample = {"image": label.float(), "label": label}
    out = mirror.apply(sample, (0,))
    assert out["label"][0, :, 0].tolist() == [2, 0, 3, 3]
    assert out["image"][0, :, 0].tolist() == [3, 0, 2, 2]
    assert mirror.apply(sample, (1,))["label"][0, :, 0].tolist() == [2, 2, 0, 3]
    again = mirror.apply(out, (0,))
    assert torch.equal(again["label"], label)


def test_mirror_takes_only_the_axes_of_the_plan():
    plan = replace(PLAN3D, mirror_axes=(1,))
    mirror = make_augmentation("light", 3, plan).steps[2]
    drawn = {mirror.draw(np.random.default_rng(seed)) for seed in range(20)}
    assert drawn == {(), (1,)}


def test_swap_leaves_other_labels():
    label = torch.tensor([0, 1, 2, 3, 255], dtype=torch.uint8)
    assert swap_labels(label, [[1, 3]]).tolist() == [0, 3, 2, 1, 255]
    assert swap_labels(label, ()) is label


@pytest.mark.parametrize(
    ("step", "params"),
    [
        (Noise((0, 1), 1), (0.1, 3)),
        (Blur((0, 1), 1), 0.8),
        (Brightness((0, 1), 1), 1.2),
        (Contrast((0, 1), 1), 1.2),
        (LowResolution((0, 1), 1), 0.5),
        (Gamma((0, 1), 1), (0.8, False)),
        (Gamma((0, 1), 1), (1.4, True)),
    ],
)
def test_intensity_steps_change_the_image_only(step, params):
    z, y, x = torch.meshgrid(torch.linspace(0, 3, 9), torch.linspace(0, 2, 8), torch.linspace(0, 1, 7), indexing="ij")
    image = torch.stack([z.sin() + x, y.cos() * x])
    sample = {"image": image, "label": torch.ones(1, 9, 8, 7)}
    out = step.apply(sample, params)
    assert out["label"] is sample["label"]
    assert out["image"].shape == image.shape
    assert not torch.equal(out["image"], image)
    assert float(torch.corrcoef(torch.stack([out["image"].flatten(), image.flatten()]))[0, 1]) > 0.9


def test_intensity_keeps_what_it_promises():
    image = torch.rand(1, 9, 8, 7)
    contrast = Contrast((0, 1), 1).change(image, 1.5)
    assert contrast.amin() >= image.amin()
    assert contrast.amax() <= image.amax()
    gamma = Gamma((0, 1), 1).apply({"image": image}, (1.4, False))["image"]
    assert float(gamma.mean()) == pytest.approx(float(image.mean()), abs=1e-4)
    assert float(gamma.std()) == pytest.approx(float(image.std()), abs=1e-4)


def test_2d_intensity_stays_in_range_and_leaves_any_number_of_channels():
    augment = make_augmentation("default", 2, PLAN2D, spatial_probability=0.0, mirror_probability=0.0)
    image = torch.randn(5, 64, 48) * 3
    outs = [
        augment(np.random.default_rng(seed), {"image": image, "label": torch.zeros(1, 64, 48)}) for seed in range(20)
    ]
    changed = [out["image"] for out in outs if not torch.allclose(out["image"], image, atol=1e-4)]
    assert 3 < len(changed) < 20
    for out in changed:
        assert out.shape == image.shape
        assert out.min() >= image.min() - 1e-3
        assert out.max() <= image.max() + 1e-3


def test_2d_steps_happen_independently():
    """One seed for every step of a pipeline would make them all happen together, or none."""
    augment = make_augmentation("default", 2, PLAN2D, elastic_probability=0.5, **SPATIAL_ONLY)
    pipeline = augment.steps[0].seeded(1)
    states = {id(step.random_generator) for step in pipeline.transforms}
    assert len(states) == 1  # shared, so one draws after the other


def test_names_and_options_are_checked():
    with pytest.raises(UsageError, match="did you mean 'default'"):
        make_augmentation("defualt", 3, PLAN3D)
    with pytest.raises(UsageError, match="did you mean 'rotation_degrees'"):
        make_augmentation("light", 3, PLAN3D, rotation=3)


def test_wider_size_keeps_the_centre():
    assert wider_size((40, 56, 40), (0, 1, 2)) == (50, 70, 50)
    assert wider_size((7, 16), (1,)) == (7, 20)


def turned_about_the_first_axis(degrees: float) -> torch.Tensor:
    """The grid of a turn about the first axis of a 24-voxel cube."""
    angle = np.deg2rad(degrees)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    return sampling_grid(turn, None, (24, 24, 24), (24, 24, 24))


def test_labels_come_back_unchanged_where_nothing_moves():
    label = torch.from_numpy(np.random.default_rng(0).integers(0, 5, (1, 24, 24, 24)).astype(np.uint8))
    assert torch.equal(sample_labels(label, turned_about_the_first_axis(0)), label)


def test_a_turned_ball_stays_rounder_than_with_nearest_neighbours(monkeypatch):
    position = torch.stack(torch.meshgrid(*[torch.arange(24) - 11.5] * 3, indexing="ij"))
    ball = 9 * (position.norm(dim=0, keepdim=True) < 8).to(torch.uint8)
    label = torch.where(position[:1] < 0, ball, ball // 2)  # two halves, 9 and 4: a turn about the axis changes nothing
    smooth = sample_labels(label, turned_about_the_first_axis(20))
    monkeypatch.setattr("medseg.data.augment3d.SMOOTH_LABELS", 0)
    nearest = sample_labels(label, turned_about_the_first_axis(20))
    assert smooth.dtype == nearest.dtype == torch.uint8
    assert set(smooth.unique().tolist()) == {0, 4, 9}
    assert (smooth != label).sum() < (nearest != label).sum()


def pictures_plan(channels=3, **changes):
    settings = {
        "dataset": "d", "spatial_dims": 2, "channel_names": list("RGBX")[:channels],
        "labels": {"background": 0, "a": 1},
        "ignore_label": None, "spacing": [1.0, 1.0], "patch_size": [32, 32], "batch_size": 1, "strides": [[1, 1]],
        "normalization": [{"scheme": "none"}] * channels, "crop_nonzero": False, "mirror_axes": [0, 1],
        "mirror_swaps": {},
    }  # fmt: skip
    return Plan.from_dict({**settings, **changes})


def pictures_sample(channels):
    rng = np.random.default_rng(0)
    label = torch.from_numpy((rng.random((1, 32, 32)) > 0.5).astype(np.uint8))
    return {"image": torch.from_numpy(rng.normal(size=(channels, 32, 32)).astype(np.float32)), "label": label}


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_every_listed_transform_runs_and_replays(channels):
    from medseg.data.augment_list import ALLOWED, COLOURS, GREY_OR_COLOUR

    sample = pictures_sample(channels)
    unfit = {1: COLOURS, 3: ()}.get(channels, (*COLOURS, *GREY_OR_COLOUR))
    for name in [name for name in ALLOWED if name not in unfit]:
        augment = make_augmentation("list", 2, pictures_plan(channels), transforms=[{"name": name, "p": 1.0}])
        first, second = (augment(np.random.default_rng(4), sample) for _ in range(2))
        assert torch.equal(first["image"], second["image"]), name
        assert first["image"].shape == sample["image"].shape
        assert first["image"].isfinite().all()
        assert set(first["label"].unique().tolist()) <= {0, 1}


def test_points_go_along_with_every_listed_transform():
    from medseg.data.augment_list import ALLOWED, FLIPPING

    where = torch.tensor([[12.5, 7.5], [20.5, 24.5], [-0.5, 31.0]])
    sample = {**pictures_sample(3), "points": where}
    spots = torch.zeros(1, 32, 32, dtype=torch.uint8)
    spots[0, 7, 12], spots[0, 24, 20] = 1, 2
    for name in ALLOWED:
        augment = make_augmentation("list", 2, pictures_plan(), transforms=[{"name": name, "p": 1.0}])
        moved = augment(np.random.default_rng(4), {**sample, "label": spots})
        assert moved["points"].shape == where.shape, name
        if name in FLIPPING:
            for value in (1, 2):
                _, row, column = (moved["label"] == value).nonzero()[0].tolist()
                assert moved["points"][value - 1].tolist() == pytest.approx([column + 0.5, row + 0.5]), name


@pytest.mark.parametrize("name", ["flips", "dermoscopy", "microscopy"])
def test_the_named_lists_compose_and_run(name):
    from medseg.compose import compose

    settings = compose("train", [f"augmentation={name}"])["augmentation"]
    augment = make_augmentation(settings.pop("name"), 2, pictures_plan(), **settings)
    sample = pictures_sample(3)
    outcomes = {augment(np.random.default_rng(seed), sample)["image"].numpy().tobytes() for seed in range(12)}
    assert len(outcomes) > 1
    if name == "flips":  # the image, or it from right to left
        assert outcomes == {sample["image"].numpy().tobytes(), sample["image"].flip(2).numpy().tobytes()}


@pytest.mark.parametrize(
    ("transform", "changes", "message"),
    [
        ({"name": "HorizontalFlop"}, {}, "did you mean 'HorizontalFlip'"),
        ({"_target_": "os.system"}, {}, "augmentation.transforms has"),
        ({"name": "GaussNoise", "foo": 1}, {}, "GaussNoise: .*'foo'"),
        ({"name": "Affine", "p": 7}, {}, "Affine: "),
        ({"name": "D4"}, {"patch_size": [32, 64]}, "needs a square patch"),
        ({"name": "VerticalFlip"}, {"mirror_swaps": {"1": [[1, 2]]}}, "mirror labels that name a side"),
        ({"name": "VerticalFlip"}, {"reasons": {"mirror_axes": "target x is never mirrored"}}, "x is never mirrored"),
        *(
            ({"name": name}, {"channel_names": ["A", "B"], "normalization": [{"scheme": "none"}] * 2}, "grey or colour")
            for name in ("ColorJitter", "CLAHE")
        ),
        ({"name": "ToGray"}, {"channel_names": ["X"], "normalization": [{"scheme": "none"}]}, "red, green and blue"),
    ],
)
def test_refuses_a_bad_list(transform, changes, message):
    with pytest.raises(UsageError, match=message):
        make_augmentation("list", 2, pictures_plan(**changes), transforms=[transform])


def test_a_list_is_for_pictures_only():
    with pytest.raises(UsageError, match="2D images"):
        make_augmentation("list", 3, pictures_plan(), transforms=[])
    with pytest.raises(UsageError, match="no option 'p'"):
        make_augmentation("list", 2, pictures_plan(), p=1)


def test_elastic_deformation_keeps_points_that_lie_outside():
    sample = {**pictures_sample(3), "points": torch.tensor([[12.5, 7.5], [-0.5, 31.0]])}
    augment = make_augmentation("default", 2, pictures_plan(), **SPATIAL_ONLY, elastic_probability=1.0)
    assert augment(np.random.default_rng(0), sample)["points"].shape == (2, 2)

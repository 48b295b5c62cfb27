"""The plan's choices for known kinds of data, and its JSON."""

from dataclasses import replace

import numpy as np
import pytest

from medseg.data import plan_rules as rules
from medseg.data.fingerprint import CaseFacts, Fingerprint
from medseg.data.plan import Plan, make_plan
from medseg.errors import UnreadableFile, UsageError

INTENSITIES = {
    "mean": 100.0,
    "std": 40.0,
    "percentile_00_5": -20.0,
    "percentile_99_5": 260.0,
    "min": -50.0,
    "max": 400.0,
}


def fingerprint(
    shapes,
    spacings,
    *,
    channels=("MRI",),
    labels=None,
    minimum=0.0,
    zero=0.0,
    integers=True,
    cropped=None,
    offsets=None,
):
    dims = len(shapes[0])
    cases = tuple(
        CaseFacts(
            id=f"c{i}",
            shape=tuple(shape),
            cropped_shape=tuple(cropped or shape),
            spacing=tuple(spacing),
            minimum=(minimum,) * len(channels),
            maximum=(1000.0,) * len(channels),
            zero_fraction=(zero,) * len(channels),
            integers=(integers,) * len(channels),
            voxels={0: 1000, 1: 100, 2: 90},
            offsets=offsets or {},
        )
        for i, (shape, spacing) in enumerate(zip(shapes, spacings, strict=True))
    )
    labels = {"background": 0, "Anterior": 1, "Posterior": 2}
    return Fingerprint("toy", dims, tuple(channels), labels, None, cases, (INTENSITIES,) * len(channels))


def hippocampus(**settings):
    return fingerprint([(36, 50, 35), (34, 48, 36), (37, 51, 34)], [(1.0, 1.0, 1.0)] * 3, **settings)


def test_hippocampus_takes_the_whole_volume():
    plan = make_plan(hippocampus())
    assert plan.spacing == (1.0, 1.0, 1.0)
    assert plan.patch_size == (40, 56, 40)
    assert plan.strides == ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    assert plan.batch_size == 2
    assert plan.mirror_axes == (0,)
    assert plan.normalization == ({"scheme": "zscore", "nonzero": False},)
    assert not plan.crop_nonzero


def test_every_choice_has_a_reason():
    choices = {"spacing", "patch_size", "batch_size", "strides", "normalization", "crop_nonzero", "mirror_axes"}
    reasons = make_plan(hippocampus()).reasons
    assert choices <= set(reasons)
    assert all(reasons.values())


def test_anisotropic_volumes_pool_the_thick_axis_later():
    plan = make_plan(fingerprint([(256, 256, 36)] * 4, [(1.25, 1.25, 7.7)] * 4))
    assert plan.strides[1] == (2, 2, 1)
    assert rules.total_stride(plan.strides)[2] < rules.total_stride(plan.strides)[0]
    assert np.prod(plan.patch_size) < 1.3 * rules.CPU_PATCH_VOXELS[3]
    assert plan.patch_size[0] * 1.25 == pytest.approx(plan.patch_size[2] * 7.7, rel=0.2)
    assert plan.batch_size == 2 or np.prod(plan.patch_size) * plan.batch_size <= rules.CPU_BATCH_VOXELS


@pytest.mark.parametrize("mm", [0.1e-6, 0.4e-6, 3.58e-6, 16e-6, 1e-3, 0.123456789, 3.58, 1234.5678])
def test_the_unit_of_lengths_does_not_matter(mm):
    """Electron microscopy has nanometres: a grid at its own spacing keeps its voxels."""
    spacings = np.array([[mm, mm, 4 * mm]] * 5)
    target, _ = rules.target_spacing(spacings, np.array([[640, 640, 16]] * 5))
    np.testing.assert_allclose(target, spacings[0], rtol=1e-6)
    assert rules.resampled_shape((5000, 641, 16), spacings[0], target) == (5000, 641, 16)
    unit, _ = rules.fit_patch((640, 640, 16), (1, 1, 4), 64**3)
    assert rules.fit_patch((640, 640, 16), (mm, mm, 4 * mm), 64**3)[0] == unit


def test_spacing_takes_the_10th_percentile_of_a_far_coarser_axis():
    spacings = np.array([[1.0, 1.0, z] for z in (5.0, 5.0, 5.0, 8.0, 8.0, 8.0, 8.0, 8.0, 8.0, 8.0)])
    shapes = np.array([[256, 256, 20]] * 10)
    target, reason = rules.target_spacing(spacings, shapes)
    assert target == (1.0, 1.0, 5.0)
    assert "10th percentile" in reason
    isotropic_size, _ = rules.target_spacing(spacings, np.array([[60, 60, 60]] * 10))
    assert isotropic_size == (1.0, 1.0, 8.0)


@pytest.mark.parametrize("name", ["CT", "ct", "Chest_CT"])
def test_ct_is_known_by_name(name):
    scheme = make_plan(hippocampus(channels=(name,))).normalization[0]
    assert scheme == {"scheme": "ct", "lower": -20.0, "upper": 260.0, "mean": 100.0, "std": 40.0}


def test_ct_is_known_by_hounsfield_units_and_not_by_letters_in_a_word():
    assert make_plan(hippocampus(minimum=-1024.0)).normalization[0]["scheme"] == "ct"
    assert make_plan(hippocampus(minimum=-1024.0, integers=False)).normalization[0]["scheme"] == "zscore"
    assert make_plan(hippocampus(channels=("octane",))).normalization[0]["scheme"] == "zscore"


def test_background_of_zeros_is_left_out_of_the_statistics_and_cropped():
    plan = make_plan(hippocampus(zero=0.4, cropped=(20, 30, 20)))
    assert plan.normalization[0] == {"scheme": "zscore", "nonzero": True}
    assert plan.crop_nonzero
    assert plan.patch_size == (24, 32, 24) or np.prod(plan.patch_size) < 40 * 56 * 40


def test_2d_images():
    plan = make_plan(fingerprint([(256, 256)] * 3, [(1.0, 1.0)] * 3, channels=("red", "green", "blue")))
    assert plan.patch_size == (256, 256)
    assert len(plan.strides) == rules.MAX_STAGES
    assert plan.mirror_axes == (0, 1)
    assert plan.batch_size == 8


def test_mirroring_is_off_beside_a_one_sided_organ():
    cases = fingerprint([(36, 50, 35)] * 5, [(1.0, 1.0, 1.0)] * 5, offsets={1: 0.5, 2: 0.0})
    assert make_plan(cases).mirror_axes == ()


def test_memory_and_device_bound_the_patch():
    volumes = fingerprint([(400, 400, 400)] * 3, [(1.0, 1.0, 1.0)] * 3)
    assert make_plan(volumes).patch_size == (64, 64, 64)
    assert len(make_plan(volumes).strides) == 5
    assert make_plan(volumes, device="cuda").patch_size == (128, 128, 128)
    assert make_plan(volumes, device="cuda", memory_gib=24).patch_size > (128, 128, 128)
    assert np.prod(make_plan(volumes, memory_gib=0.1).patch_size) < 40**3


def test_tiny_images_keep_one_stage():
    plan = make_plan(fingerprint([(5, 6, 1)] * 3, [(1.0, 1.0, 5.0)] * 3))
    assert plan.strides == ((1, 1, 1),)
    assert plan.patch_size == (5, 6, 1)


def test_dependent_choices_follow_an_override():
    plan = make_plan(hippocampus(), spacing=[2.0, 2.0, 2.0])
    assert plan.patch_size == (20, 28, 20)
    assert plan.reasons["spacing"] == "set by the user"
    plan = make_plan(hippocampus(), patch_size=[16, 16, 16])
    assert plan.patch_size == (16, 16, 16)
    assert len(plan.strides) == 3
    assert plan.batch_size > 4


def test_none_is_not_an_override():
    assert make_plan(hippocampus(), batch_size=None) == make_plan(hippocampus())


@pytest.mark.parametrize("act", [make_plan, lambda facts, **given: make_plan(facts).override(**given)])
def test_unknown_settings_name_the_nearest(act):
    with pytest.raises(UsageError, match="did you mean 'patch_size'"):
        act(hippocampus(), patchsize=[8, 8, 8])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patch_size": (41, 56, 40)}, "divisible by"),
        ({"patch_size": (40, 40)}, "expected 3 numbers"),
        ({"spacing": (1.0, 0.0, 1.0)}, "expected 3 numbers > 0"),
        ({"normalization": [{"scheme": "zscor"}]}, "did you mean 'zscore'"),
        ({"normalization": []}, "one scheme per channel"),
        ({"batch_size": 0}, "batch_size"),
        ({"mirror_axes": [3]}, "mirror_axes"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        make_plan(hippocampus()).override(**settings)


def test_json_round_trip(tmp_path):
    plan = make_plan(hippocampus(), mirror_swaps={"0": [[1, 2]]})
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    assert Plan.from_dict(plan.to_dict()) == plan


def test_damaged_plans_are_refused(tmp_path):
    (tmp_path / "plan.json").write_text("[1]")
    with pytest.raises(UnreadableFile, match="JSON object"):
        Plan.load(tmp_path / "plan.json")
    (tmp_path / "plan.json").write_text('{"dataset": "x"}')
    with pytest.raises(UsageError, match="lacks spatial_dims"):
        Plan.load(tmp_path / "plan.json")


def test_fingerprint_json_round_trip(tmp_path):
    facts = hippocampus(offsets={1: 0.25})
    facts.save(tmp_path / "fingerprint.json")
    assert Fingerprint.load(tmp_path / "fingerprint.json") == facts


@pytest.mark.parametrize(("highest", "full"), [(1.0, 1.0), (255.0, 255.0), (4095.0, 65535.0)])
def test_a_normalization_by_name_is_filled_in(highest, full):
    cases = fingerprint([(64, 64)] * 3, [(1.0, 1.0)] * 3, channels=("R", "G", "B"))
    cases = replace(cases, cases=tuple(replace(case, maximum=(highest,) * 3) for case in cases.cases))
    unit = make_plan(cases, normalization="unit")
    assert unit.normalization == ({"scheme": "unit", "full": full},) * 3
    chosen = make_plan(cases)  # colours keep their meaning
    assert [scheme["mean"] for scheme in chosen.normalization] == [0.485, 0.456, 0.406]
    assert make_plan(cases, normalization="imagenet").normalization == chosen.normalization


def test_a_fixed_size_is_seen_whole():
    cases = fingerprint([(1000, 800)] * 3, [(1.0, 1.0)] * 3, channels=("X",))
    plan = make_plan(cases, size=[512, 512])
    assert (plan.patch_size, plan.grid((1000, 800), (1.0, 1.0))) == ((512, 512), (512, 512))
    with pytest.raises(UsageError, match="expected 2 numbers"):
        make_plan(cases, size=[224])


def test_a_stride_of_one_number_is_that_of_every_axis():
    every = ((1, 1, 1), (2, 2, 2), (1, 2, 2))
    plan = make_plan(hippocampus(), strides=[1, 2, [1, 2, 2]])
    assert plan.strides == every
    assert plan.override(strides=[1, 2]).strides == every[:2]
    assert Plan.from_dict({**plan.to_dict(), "strides": [1, 2, [1, 2, 2]]}) == plan
    sliced = make_plan(hippocampus(), slices="axial", strides=[1, 2])
    assert sliced.strides == ((1, 1, 1), (2, 2, 1))
    assert sliced.override(strides=[1, 2]) == sliced


@pytest.mark.parametrize("strides", [2, [], [1, None], [1, 2.5], [1, "ab"], [1, [2, 2]], [1, [0, 2, 2]]])
def test_strides_of_another_form_are_refused(strides):
    with pytest.raises(UsageError, match="strides is"):
        make_plan(hippocampus(), strides=strides)

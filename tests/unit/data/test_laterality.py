"""Left-right pairs by name and by place."""

import numpy as np
import pytest

from medseg.data.laterality import (
    decide_mirroring,
    is_one_sided,
    lateral_pairs,
    side_and_stem,
    side_offsets,
)

KIDNEYS = {"background": 0, "liver": 1, "right_kidney": 2, "left_kidney": 3, "spleen": 4}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("kidney_left", ("left", "kidney")),
        ("Left-Kidney", ("left", "kidney")),
        ("right_kidney", ("right", "kidney")),
        ("leftKidney", ("left", "kidney")),
        ("rightlung", ("right", "lung")),
        ("femur R", ("right", "femur")),
        ("lung_upper_lobe_left", ("left", "lobe_lung_upper")),
        ("l_femur", ("left", "femur")),
        ("liver", (None, "liver")),
        ("left", (None, "left")),
    ],
)
def test_side_and_stem(name, expected):
    assert side_and_stem(name) == expected


def test_pairs_are_left_then_right_and_lonely_sides_are_told():
    labels = {"kidney_left": 3, "right_kidney": 2, "left_adrenal": 7, "l_something": 8}
    assert lateral_pairs(labels) == ([(3, 2)], ["left_adrenal"])


def test_side_offsets_of_a_box_on_the_low_side():
    image = np.zeros((20, 10, 10))
    image[2:18] = 1
    labels = np.zeros(image.shape, np.uint8)
    labels[3:5] = 1
    labels[9:11, 4:6] = 2
    offsets = side_offsets(image, labels, [1, 2, 3], axis=0)
    assert set(offsets) == {1, 2}
    assert offsets[1] < -0.7
    assert abs(offsets[2]) < 0.1


def test_side_offsets_of_an_empty_image_are_absent():
    assert side_offsets(np.zeros((4, 4)), np.zeros((4, 4), int), [1], axis=1) == {}


@pytest.mark.parametrize(
    ("offsets", "expected"),
    [([0.5, 0.4, 0.5, 0.45], True), ([0.5, -0.4, 0.5, -0.45], False), ([0.01] * 9, False), ([0.5] * 3, False)],
)
def test_one_sided(offsets, expected):
    assert is_one_sided(offsets) is expected


def test_a_pair_alone_swaps():
    labels = {"background": 0, "right_kidney": 1, "left_kidney": 2}
    mirroring = decide_mirroring(labels, {1: [0.5] * 5, 2: [-0.5] * 5}, {1: 100, 2: 120}, 3)
    assert mirroring.axes == (0,)
    assert mirroring.swaps == {"0": [[2, 1]]}


def test_a_pair_beside_an_organ_of_one_side_switches_the_axis_off():
    offsets = {1: [0.4] * 5, 2: [0.5] * 5, 3: [-0.5] * 5, 4: [-0.6] * 5}
    mirroring = decide_mirroring(KIDNEYS, offsets, {1: 900, 2: 100, 3: 100, 4: 200}, 3)
    assert mirroring.axes == ()
    assert mirroring.swaps == {}
    assert "liver, spleen" in mirroring.reason


def test_ventricles_of_the_heart_are_no_mirror_pair():
    labels = {"background": 0, "left_ventricle": 1, "right_ventricle": 2}
    assert decide_mirroring(labels, {1: [-0.6] * 5, 2: [-0.2] * 5}, {1: 100, 2: 110}, 3).axes == ()
    assert decide_mirroring(labels, {}, {1: 100, 2: 300}, 3).axes == ()


def test_a_side_without_counterpart_switches_the_axis_off():
    assert decide_mirroring({"background": 0, "left_lung": 1}, {}, {}, 3).axes == ()


def test_without_sides_left_and_right_are_mirrored():
    labels = {"background": 0, "Anterior": 1, "Posterior": 2}
    mirroring = decide_mirroring(labels, {1: [0.3, -0.3, 0.2, -0.2], 2: [0.0] * 4}, {1: 10, 2: 10}, 3)
    assert mirroring.axes == (0,)
    assert mirroring.swaps == {}


def test_2d_pairs_swap_along_columns():
    mirroring = decide_mirroring({"background": 0, "left_lung": 1, "right_lung": 2}, {}, {}, 2)
    assert mirroring.axes == (0, 1)
    assert mirroring.swaps == {"1": [[1, 2]]}
    assert "no anatomical axes" in decide_mirroring({"background": 0, "cell": 1}, {}, {}, 2).reason

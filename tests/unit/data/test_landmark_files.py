"""Landmark files in every form, their way through preparation and augmentation, and what is refused."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from medseg.data.augment import make_augmentation
from medseg.data.check import check_dataset
from medseg.data.dataset import open_dataset
from medseg.data.fingerprint import make_fingerprint
from medseg.data.landmark_files import faults, find_landmarks, read_landmarks
from medseg.data.plan import Plan, make_plan
from medseg.data.prepare import prepare
from medseg.data.preprocess import Preprocessed, preprocess_points, restore_points
from medseg.data.sampling import PatchDataset
from medseg.errors import BadDataset, BadLabels, InputRefused, MedsegError, UnreadableFile, UsageError
from medseg.io import Geometry
from medseg.targets.contours import Structure, paint

DISC = Structure("disc", 0, 12, 1)


def disc(x: float, y: float, radius: float = 12) -> np.ndarray:
    angle = 2 * np.pi * np.arange(12) / 12
    return np.stack([x + radius * np.sin(angle), y - radius * np.cos(angle)], axis=1).astype(np.float32)


@pytest.fixture
def discs(tmp_path: Path) -> Path:
    """Six images of 48x64 with one disc each, its mask and its 12 landmarks."""
    root, rng = tmp_path / "discs", np.random.default_rng(0)
    for folder in ("images", "masks", "landmarks"):
        (root / folder).mkdir(parents=True)
    for number in range(6):
        points = disc(*rng.uniform((16, 16), (48, 32)))
        mask = paint(points, [DISC], (48, 64))
        image = (150 * mask + rng.integers(20, 60, mask.shape)).astype(np.uint8)
        Image.fromarray(image).save(root / "images" / f"case{number}.png")
        Image.fromarray(mask.astype(np.uint8)).save(root / "masks" / f"case{number}.png")
        np.save(root / "landmarks" / f"case{number}.npy", points)
    return root


def name_them(root: Path, **more: object) -> None:
    (root / "landmarks.json").write_text(json.dumps({"structures": {"top": 5, "rest": 7}, **more}))


def problems(root: Path, severity: str = "error", **target: object) -> list[tuple[str, str | None]]:
    chosen = {"name": "landmarks", **target} if target else None
    found = check_dataset(open_dataset(root, strict=False), target=chosen, workers=0, progress=False).findings
    return [(finding.problem, finding.case) for finding in found if finding.severity == severity]


def plan_of(root: Path, **overrides: object) -> Plan:
    dataset = open_dataset(root)
    return make_plan(make_fingerprint(dataset, workers=0, progress=False), **{"patch_size": (64, 64), **overrides})


def prepared_points(root: Path, cache: Path, points: int = 12, **overrides: object):  # type: ignore[no-untyped-def]
    dataset = open_dataset(root)
    ids = [case.id for case in dataset.training]
    plan = plan_of(root, **overrides)
    return prepare(dataset, plan, ids, cache_dir=cache, workers=0, progress=False, points=points), plan


def test_clean_data_have_no_findings(discs: Path) -> None:
    assert problems(discs) == []
    name_them(discs)
    assert problems(discs) == []


def test_layout_is_read(discs: Path) -> None:
    name_them(discs, edges=[[0, 1]], values={"top": 1, "rest": 1})
    layout = open_dataset(discs).landmarks
    assert layout is not None
    assert layout.to_dict() == {
        "structures": {"top": 5, "rest": 7},
        "edges": ((0, 1),),
        "values": {"top": 1, "rest": 1},
    }
    assert layout.members == {"top": range(5), "rest": range(5, 12)}


@pytest.mark.parametrize("content", ['{"structures": {}}', '{"structures": {"a": 0}}', "[1]", '{"structures": "a"}'])
def test_layout_that_says_nothing(discs: Path, content: str) -> None:
    (discs / "landmarks.json").write_text(content)
    with pytest.raises(BadDataset, match="'structures' is"):
        open_dataset(discs)


def test_layout_with_edges_to_nowhere(discs: Path) -> None:
    name_them(discs, edges=[[0, 12]])
    with pytest.raises(BadDataset, match="pairs of point numbers, 0 to 11"):
        open_dataset(discs)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        *(({"edges": edges}, "pairs of point numbers") for edges in (5, {}, "ab", [1, 2], [["x", "y"]], [[0, 1.0]])),
        ({"edges": [[0, 1], [4, 5]]}, "edge .4, 5. leads from 'top' to 'rest'"),
        *(
            ({"values": values}, "label value above 0")
            for values in ("foo", [1, 2], {"top": "one"}, {"top": 0}, {"top": 65536})
        ),
        ({"values": {"zzz": 1}}, "'zzz', which is no structure"),
        ({"values": {"top": 1}}, "no label value for structure 'rest'"),
    ],
)
def test_layout_that_is_malformed(discs: Path, more: dict, message: str) -> None:
    name_them(discs, **more)
    with pytest.raises(BadDataset, match=rf"landmarks.json: .*{message}"):
        open_dataset(discs)


@pytest.mark.parametrize("form", ["long", "wide", "per case", "semicolons"])
def test_tables_hold_the_same_points(discs: Path, form: str) -> None:
    points = {file.stem: np.load(file) for file in (discs / "landmarks").glob("*.npy")}
    for file in (discs / "landmarks").glob("*.npy"):
        file.unlink()
    rows = {
        case: [f"{case},{i},{x:.9g},{y:.9g}" for i, (x, y) in reversed(list(enumerate(own)))]
        for case, own in points.items()
    }
    if form in ("long", "semicolons"):
        text = "\n".join(["case,point,x,y", *(row for own in rows.values() for row in own)])
        (discs / "landmarks.csv").write_text(text if form == "long" else text.replace(",", ";"))
    elif form == "wide":
        header = ",".join(["case", *(f"{axis}{i}" for i in range(12) for axis in "xy")])
        lines = [",".join([case, *(f"{value:.9g}" for value in own.ravel())]) for case, own in points.items()]
        (discs / "landmarks.csv").write_text("\n".join([header, *lines]))
    else:
        for case, own in points.items():
            text = "\n".join(["x,y", *(f"{x:.9g},{y:.9g}" for x, y in own)])
            (discs / "landmarks" / f"{case}.csv").write_text(text)
    for case in open_dataset(discs).training:
        assert case.landmarks is not None
        np.testing.assert_array_equal(read_landmarks(case.landmarks, case.id), points[case.id])


@pytest.mark.parametrize(
    ("text", "error"),
    [("case,u\na,1\n", BadDataset), ("case,point,x,y\na,0,one,2\n", UnreadableFile), ("x,y\n1\n", UnreadableFile)],
)
def test_tables_that_are_none(tmp_path: Path, text: str, error: type[MedsegError]) -> None:
    (tmp_path / "landmarks.csv").write_text(text)
    with pytest.raises(error):
        read_landmarks(tmp_path / "landmarks.csv", "a")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("case,point,x,y\na,0,1,2\na,0,3,4\n", "point 0 of case 'a' twice"),
        ("case,x0,y0\na,1,2\na,3,4\n", "has case 'a' twice"),
        *(
            (f"case,point,x,y\na,0,1,2\na,{number},3,4\n", f"point {number} of case 'a' .expected 0 to 9999")
            for number in (-1, 10_000, 3_000_000_000)
        ),
    ],
)
def test_rows_given_twice_and_absurd_numbers_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "landmarks.csv").write_text(text)
    with pytest.raises(BadDataset, match=message):
        read_landmarks(tmp_path / "landmarks.csv", "a")


def test_a_file_of_another_case_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c0.csv").write_text("case,point,x,y\nc1,0,1,2\n")
    with pytest.raises(BadLabels, match="has no case 'c0'"):
        read_landmarks(tmp_path / "c0.csv", "c0")


def test_a_changed_table_is_read_again(tmp_path: Path) -> None:
    table = tmp_path / "landmarks.csv"
    for case in ("first", "other"):
        table.write_text(f"case,point,x,y\n{case},0,1,2\n")
        os.utime(table, ns=(1, 1 if case == "first" else 2))
        assert set(find_landmarks(tmp_path).files) == {case}


def test_test_images_and_cases_left_out_on_purpose_need_nothing(discs: Path) -> None:
    (discs / "test").mkdir()
    (discs / "images" / "case5.png").rename(discs / "test" / "t0.png")
    for part in ("masks/case5.png", "landmarks/case5.npy"):
        (discs / part).unlink()
    assert problems(discs) == []
    rows = [f"images/case{n}.png,masks/case{n}.png" for n in range(3)]
    (discs / "cases.csv").write_text("\n".join(["image,mask", *rows]))
    assert problems(discs / "cases.csv") == []


FAULTS = {
    "outside": (
        lambda p: p + np.float32([60, 0]),
        r"landmark \d+ \(\w+\) at \(\d+\.\d, .* lies outside of the image of 64x48",
    ),
    "fewer": (lambda p: p[:5], r"has 5 landmarks \(expected 12: top 5, rest 7\)"),
    "not a number": (lambda p: np.where(np.arange(12)[:, None] == 6, np.nan, p), r"landmark 6 \(rest\) is not finite"),
    "missing structure": (lambda p: np.where(np.arange(12)[:, None] < 5, np.nan, p), r"structure 'top' is missing"),
    "shape": (lambda p: p.ravel(), r"holds float\d+ of shape \(24,\)"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_found_by_check_and_refused_by_training(discs: Path, tmp_path: Path, fault: str) -> None:
    name_them(discs)
    change, message = FAULTS[fault]
    file = discs / "landmarks" / "case3.npy"
    np.save(file, change(np.load(file)))
    ((problem, case),) = problems(discs)
    assert case == "case3"
    assert re.search(message, problem), problem
    with pytest.raises(BadLabels, match=message) as caught:
        prepared_points(discs, tmp_path / "cache")
    assert caught.value.exit_code == 3
    assert caught.value.case == "case3"
    assert "\n" not in str(caught.value)


def test_a_little_outside_is_how_people_draw(discs: Path) -> None:
    file = discs / "landmarks" / "case3.npy"
    points = np.load(file)
    points[0] = (-1.2, 48.9)
    np.save(file, points)
    assert problems(discs) == []


def test_numbers_that_differ_are_found_without_a_layout(discs: Path) -> None:
    np.save(discs / "landmarks" / "case1.npy", disc(20, 20)[:7])
    assert problems(discs) == [("has 7 landmarks, most cases have 12", "case1")]


def test_structures_that_the_files_do_not_have(discs: Path) -> None:
    assert problems(discs, structures={"foreground": 12}) == []
    wrong = ("has 12 landmarks (target.structures has 11)", "case0")
    assert problems(discs, structures={"foreground": 11})[0] == wrong
    name_them(discs)
    assert problems(discs, structures={"foreground": 11})[0] == wrong
    assert problems(discs, structures={"foreground": 11}, from_masks=True) == []


def test_a_layout_without_landmark_files(discs: Path) -> None:
    name_them(discs)
    for file in (discs / "landmarks").iterdir():
        file.unlink()
    told = ("no training case has landmarks that can be read (12 expected)", None)
    assert (problems(discs), problems(discs, "warning")) == ([], [told])
    assert problems(discs, from_masks=False) == [told]
    assert problems(discs, from_masks=True) == [("no training mask has a piece of its own for top, rest", None)]


def test_structures_that_touch_or_lack_in_masks(discs: Path) -> None:
    """Of two structures with one label, masks of one disc have one piece."""
    two = {"structures": {"top": 5, "rest": 7}, "from_masks": True}
    assert problems(discs, "warning", structures={"disc": 9}, from_masks=True) == []
    told = problems(discs, "warning", **two)
    assert [case for _, case in told] == [f"case{n}" for n in range(6)]
    assert told[0][0] == "the mask has no piece of its own for top, rest (not learnt from this case)"
    assert problems(discs, **two) == [("no training mask has a piece of its own for top, rest", None)]
    apart = np.zeros((48, 64), np.uint8)
    apart[5:20, 5:20] = apart[25:40, 40:60] = 1
    Image.fromarray(apart).save(discs / "masks" / "case3.png")
    assert (len(problems(discs, "warning", **two)), problems(discs, **two)) == (5, [])


def test_a_layout_that_the_labels_contradict(discs: Path) -> None:
    name_them(discs, values={"top": 1, "rest": 7})
    ((problem, _),) = problems(discs)
    assert "structure 'rest' has no label value" in problem


def test_landmarks_without_image_and_image_without_landmarks(discs: Path, tmp_path: Path) -> None:
    (discs / "landmarks" / "case2.npy").rename(discs / "landmarks" / "cas2.npy")
    assert sorted(problems(discs)) == [
        ("image without landmarks, though other cases have them", "case2"),
        ("landmarks without an image", "cas2"),
    ]
    with pytest.raises(InputRefused, match="case2: the image has no landmark file"):
        prepared_points(discs, tmp_path / "cache")


def test_pickled_and_damaged_files_are_refused(discs: Path) -> None:
    (discs / "landmarks" / "case0.npy").write_bytes(b"nothing")
    np.save(discs / "landmarks" / "case1.npy", np.array([{}], dtype=object), allow_pickle=True)
    assert [case for _, case in problems(discs)] == ["case0", "case1"]


def test_points_follow_crop_and_resampling_and_come_back() -> None:
    done = Preprocessed(Geometry((40, 60), np.eye(4)), ((10, 30), (5, 55)), (40, 60), (20, 50), (40, 25))
    points = np.array([[5.0, 10.0], [55.0, 30.0], [30.0, 15.0]], np.float32)
    np.testing.assert_allclose(preprocess_points(points, done), [[0, 0], [25, 40], [12.5, 10]])
    np.testing.assert_allclose(restore_points(preprocess_points(points, done), done), points, atol=1e-5)


def mean_overlap(data: PatchDataset) -> float:
    """Dice of the moved labels with the discs painted from the moved points, the worst of 12 samples."""
    scores = []
    for index in range(12):
        sample = data[index]
        rows, columns = sample["label"].shape[1:]
        painted = paint(sample["points"].numpy() * [columns, rows], [DISC], (rows, columns)) > 0
        label = sample["label"][0].numpy() > 0
        scores.append(2 * (painted & label).sum() / (painted.sum() + label.sum()))
    return min(scores)


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (2.0, 1.0)])
@pytest.mark.parametrize("name", ["none", "light", "default", "landmarks"])
def test_points_move_with_the_image(discs: Path, tmp_path: Path, name: str, spacing: tuple[float, float]) -> None:
    prepared, plan = prepared_points(discs, tmp_path / "cache", spacing=spacing, mirror_axes=())
    augment = make_augmentation(name, 2, plan)
    data = PatchDataset(prepared, plan, prepared.ids, augment=augment, whole=True, points=True)
    assert data[0]["points"].shape == (12, 2)
    assert mean_overlap(data) > (0.85 if spacing[0] == 1 else 0.75)  # a disc of 12 pixels, elastically deformed


def test_landmarks_never_leave_the_image(discs: Path, tmp_path: Path) -> None:
    prepared, plan = prepared_points(discs, tmp_path / "cache", mirror_axes=())
    data = PatchDataset(
        prepared, plan, prepared.ids, augment=make_augmentation("landmarks", 2, plan), whole=True, points=True
    )
    points = torch.stack([data[i]["points"] for i in range(40)])
    assert -1e-5 <= points.min() <= points.max() <= 1 + 1e-5
    spread = (points.amax(1) - points.amin(1)).numpy()
    assert spread.max() / spread.min() > 1.5, "width and height are scaled"


def test_without_landmarks_the_foreground_stays_inside(discs: Path, tmp_path: Path) -> None:
    prepared, plan = prepared_points(discs, tmp_path / "cache", points=0, mirror_axes=())
    plain = PatchDataset(prepared, plan, prepared.ids)
    moved = PatchDataset(prepared, plan, prepared.ids, augment=make_augmentation("landmarks", 2, plan), whole=True)
    for index in range(20):
        ratio = float(moved[index]["label"].sum()) / float(plain[index]["label"].sum())
        assert 0.6 < ratio < 4.1
        assert "points" not in moved[index]


def test_samples_without_points_are_as_before(discs: Path, tmp_path: Path) -> None:
    prepared, plan = prepared_points(discs, tmp_path / "cache")
    assert set(PatchDataset(prepared, plan, prepared.ids)[0]) == {"image", "label", "case"}


def test_an_image_larger_than_the_patch_is_refused(discs: Path, tmp_path: Path) -> None:
    prepared, plan = prepared_points(discs, tmp_path / "cache", patch_size=(32, 32))
    with pytest.raises(UsageError, match="case0: the image has 48x64 pixels"):
        PatchDataset(prepared, plan, prepared.ids, whole=True, points=True)


def test_a_changed_landmark_file_is_prepared_again(discs: Path, tmp_path: Path) -> None:
    before, _ = prepared_points(discs, tmp_path / "cache")
    first = before.points("case0")
    np.save(discs / "landmarks" / "case0.npy", np.load(discs / "landmarks" / "case0.npy") + 1)
    after, _ = prepared_points(discs, tmp_path / "cache")
    np.testing.assert_allclose(after.points("case0"), first + 1, atol=1e-5)


@pytest.mark.realdata
def test_real_landmarks_fit_their_masks(shared_data: Path) -> None:
    dataset = open_dataset(shared_data / "cxr_lungs")
    lungs = (Structure("right lung", 0, 44, 1), Structure("left lung", 44, 50, 1))
    assert all(case.landmarks is not None for case in dataset.training)
    for case in dataset.training[::25]:
        assert case.landmarks is not None
        assert case.label is not None
        points, mask = read_landmarks(case.landmarks, case.id), np.asarray(Image.open(case.label))
        assert list(faults(points, mask.shape, 94, None)) == []
        painted = paint(points, lungs, mask.shape)
        assert 2 * (painted * mask).sum() / (painted.sum() + mask.sum()) > 0.93

"""Every piece of advice that an error gives: followed here, and then it works, or listed as a matter for a person."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from medseg.data.catalogue import resolve_dataset
from medseg.data.check import check_dataset
from medseg.data.fingerprint import make_fingerprint
from medseg.data.plan import check_stages, make_plan
from medseg.data.sampling import check_whole
from medseg.data.splits import make_splits
from medseg.errors import MedsegError
from medseg.targets.base import configure_target

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {  # patterns of files -> beginnings of names that others look after
    ("data/*.py",): ("prepare", "augment", "normalize", "outputs", "keys"),
    ("targets/*.py",): (),
}

# What needs knowledge that no program has: what a scan shows, which of two files is right, where data came from.
FOR_A_PERSON = frozenset((ROOT / "tests/unit/advice_for_a_person.txt").read_text(encoding="utf-8").splitlines())

KEY = re.compile(r"(?<![\w.\"'])([a-z_]+(?:\.[a-z_]+)*)=(?=[\w.])")  # of a setting with a value

Settings = dict[str, Any]
Change = Callable[[Path], object]
SPLIT = {"folds": "folds", "group_by": "group_by", "leave_out": "leave_out", "own_split": "own", "split_file": "file"}


@dataclass(frozen=True)
class Scenario:
    """How a dataset of two-class pictures comes to an advice, and what the advice says to do.

    Attributes:
        spoil: changes the folder.
        settings: of the user that lead there: ``data``, ``plan``, ``target``.
        then: settings that the advice says.
        repair: changes of files that it says.
        folder: of the dataset.
        by: who meets it: a training, which checks as well, or a check alone.
        remark: a check still finds it worth a remark that something is left out or padded.
    """

    spoil: Change = lambda root: None
    settings: Mapping[str, Settings] = field(default_factory=dict)
    then: Mapping[str, Settings] = field(default_factory=dict)
    repair: Change = lambda root: None
    folder: str = "set"
    by: Callable[[Path, Mapping[str, Settings]], None] = field(default_factory=lambda: use)
    remark: bool = False


class Remark(MedsegError):
    """What a check finds in a dataset that could be trained on."""


def picture(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array.astype(np.uint8)).save(path)


def mask(n: int) -> np.ndarray:
    values = np.zeros((20, 24))
    values[3 : 9 + n, 4:12] = 255
    return values


def pictures(root: Path, count: int = 6) -> Path:
    for n in range(count):
        picture(root / f"images/c{n}.png", np.random.default_rng(n).integers(0, 255, (20, 24)))
        picture(root / f"masks/c{n}.png", mask(n))
    return root


def use(root: Path, settings: Mapping[str, Settings]) -> None:
    """What a training does before its first step, and what it does not ask for: a check of the whole."""
    data = {"path": str(root), **settings.get("data", {})}
    dataset = resolve_dataset(data)
    target = configure_target(settings.get("target", {"name": "exclusive"}), dataset.label_facts)
    split = {SPLIT[key]: value for key, value in data.items() if key in SPLIT}
    make_splits(dataset, **split)
    slices = data.get("slices")
    plan = make_plan(make_fingerprint(dataset, progress=False), slices=slices, **settings.get("plan", {}))
    check_stages(plan)
    if not target.dense:
        check_whole((20, 24), plan.patch_size)
    check(root, settings)


def check(root: Path, settings: Mapping[str, Settings]) -> None:
    """The first finding of a check."""
    data = settings.get("data", {})
    opened = {key: value for key, value in data.items() if key not in SPLIT and key != "slices"}
    dataset = resolve_dataset({"path": str(root), **opened}, strict=False)
    split = {SPLIT[key]: value for key, value in data.items() if key in SPLIT}
    chosen = {"target": settings.get("target"), "slices": data.get("slices")}
    for finding in check_dataset(dataset, split=split, **chosen, workers=0, progress=False).findings:
        raise Remark(finding.problem, fix=finding.fix)


def write(root: Path, **files: object) -> None:
    for name, data in files.items():
        file = root / name.replace("__", ".")
        file.write_text(data if isinstance(data, str) else json.dumps(data))


def without(*names: str) -> Change:
    return lambda root: [(root / name).unlink() for name in names]


def cases(first: int, stop: int) -> list[str]:
    return [f"{part}/c{n}.png" for n in range(first, stop) for part in ("images", "masks")]


def masked(number: int, array: np.ndarray) -> Change:
    return lambda root: picture(root / f"masks/c{number}.png", array)


def renamed(old: str, new: str) -> Change:
    return lambda root: (root / old).rename(root / new)


def descriptions(**fields: object) -> Change:
    return lambda root: write(root, dataset__json=fields)


def nnunet(root: Path, **fields: object) -> None:
    (root / "images").rename(root / "imagesTr")
    (root / "masks").rename(root / "labelsTr")
    known = {"labels": {"background": 0, "a": 255}, "channel_names": {"0": "x"}, "file_ending": ".png"}
    write(root, dataset__json=known | fields)


def grown(size: int) -> Change:
    def change(root: Path) -> None:
        for n in range(6):
            picture(root / f"images/c{n}.png", np.random.default_rng(n).integers(0, 255, (size, size)))
            picture(root / f"masks/c{n}.png", 255 * np.tri(size, size, -1 + n % 2))

    return change


def in_color(root: Path) -> None:
    picture(root / "images/c1.png", np.random.default_rng(1).integers(0, 255, (20, 24, 3)))


def landmarks(root: Path, count: int = 6, points: int = 12) -> None:
    angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
    for n in range(count):
        (root / "landmarks").mkdir(exist_ok=True)
        np.save(root / f"landmarks/c{n}.npy", np.stack([8 + 3 * np.cos(angles), 6 + 2 * np.sin(angles)], 1))


def ring(points: int = 12, **more: object) -> Change:
    return lambda root: write(root, landmarks__json={"structures": {"ring": points}, **more})


def table(*rows: str) -> Change:
    return lambda root: write(root, metadata__csv="\n".join(rows))


def both(*changes: Change) -> Change:
    return lambda root: [change(root) for change in changes]


def two_classes(root: Path) -> None:
    for n in range(6):
        picture(root / f"masks/c{n}.png", mask(n) / 255 + 2 * np.tri(20, 24, -16))


def smoothed(value: float) -> Change:
    return lambda root: picture(root / "masks/c1.png", np.where(np.eye(20, 24) > 0, value, mask(1)))


TARGET = {"name": "landmarks", "structures": {"ring": 12}}
REGIONS = {"name": "regions", "regions": {"all": [1, 2], "in": [2]}}
FOLLOWED: dict[str, list[Scenario]] = {
    "set data.folds=*": [Scenario(settings={"data": {"folds": 9}}, then={"data": {"folds": 6}})],
    "add cases, or set data.folds=1 to train on all": [
        Scenario(
            without(*cases(1, 6)),
            settings={"data": {"folds": 5}},
            then={"data": {"folds": 1}},
        )
    ],
    "*data.folds=1 to train on all": [
        Scenario(
            without(*cases(3, 6)),
            then={"data": {"folds": folds}},
            by=check,
        )
        for folds in (1, 3)
    ],
    "add its mask, or set data.unlabelled=skip": [
        Scenario(without("masks/c1.png"), then={"data": {"unlabelled": "skip"}}, by=check, remark=True),
        Scenario(without("masks/c1.png"), repair=masked(1, mask(1)), by=check),
    ],
    "set data.group_by=, e.g. to site": [
        Scenario(
            table("case,site", *(f"c{n},s{n % 2}" for n in range(6))),
            settings={"data": {"leave_out": True}},
            then={"data": {"leave_out": True, "group_by": "site"}},
        )
    ],
    "set data.group_by= to that column, or correct the lists or splits_final.json": [
        Scenario(
            table("case,patient", *(f"c{n},p{n // 2}" for n in range(6))),
            settings={"data": {"folds": 3}},
            then={"data": {"folds": 3, "group_by": "patient"}},
        )
    ],
    "add *": [
        Scenario(
            settings={"data": {"group_by": "site", "folds": 2}},
            then={"data": {"group_by": "site", "folds": 2}},
            repair=table("case,site", *(f"c{n},s{n % 2}" for n in range(6))),
        )
    ],
    "remove one, or name the patient in metadata.csv and set data.group_by=patient": [
        Scenario(
            lambda root: picture(root / "images/c1.png", np.random.default_rng(0).integers(0, 255, (20, 24))),
            then={"data": {"group_by": "patient", "folds": 3}},
            repair=table("case,patient", *(f"c{n},p{max(n, 1)}" for n in range(6))),
            remark=True,  # that they are alike
        )
    ],
    "add the masks, or set data.unlabelled=skip": [
        Scenario(without("masks/c1.png"), then={"data": {"unlabelled": "skip", "folds": 5}}, remark=True)
    ],
    "set data.instances=true (medseg evaluate: instances=true): *": [
        Scenario(renamed("masks", "instances"), then={"data": {"instances": True}})
    ],
    "remove instances or mask_threshold: they are for folders of images and masks, and lists": [
        Scenario(nnunet, settings={"data": {"instances": True}}, then={"data": {"instances": False}})
    ],
    "set *: values from * on are foreground; or *": [
        Scenario(smoothed(250), then={"data": {"mask_threshold": 128}}),
        Scenario(masked(1, mask(1) / 255), then={"data": {"mask_threshold": 1}}),
    ],
    "state them in dataset.json": [
        Scenario(
            both(smoothed(250), masked(2, mask(2) * 3 / 255)),
            repair=descriptions(labels={"white": 255, "near": 250, "three": 3}),
        )
    ],
    "write one number per class; if objects are numbered, set data.instances=true to take them as one class": [
        Scenario(
            lambda root: [
                Image.fromarray((np.arange(480).reshape(20, 24) * 2 + n).astype(np.uint16)).save(
                    root / f"masks/c{n}.png"
                )
                for n in range(6)
            ],
            then={"data": {"instances": True}},
        )
    ],
    "set data.color=rgb or data.color=grey to bring all pictures to one kind": [
        Scenario(in_color, then={"data": {"color": color}}) for color in ("rgb", "grey")
    ],
    "use e.g. 128": [Scenario(settings={"data": {"mask_threshold": -1}}, then={"data": {"mask_threshold": 128}})],
    "leave data.slices out": [Scenario(settings={"data": {"slices": "axial"}})],
    'give a short "name" in dataset.json, or rename the folder': [
        Scenario(folder="odd.", repair=descriptions(name="short")),
        Scenario(descriptions(name="a/b"), repair=descriptions(name="short")),
    ],
    "give a narrower pattern": [Scenario(settings={"data": {"test": "*"}}, then={"data": {"test": "c5"}})],
    "give a pattern as 'site_b_*'": [Scenario(settings={"data": {"test": "x*"}}, then={"data": {"test": "c5*"}})],
    'give e.g. "channel_names": {"0": "CT"}': [
        Scenario(
            lambda root: nnunet(root, channel_names={}),
            repair=descriptions(labels={"background": 0, "a": 255}, channel_names={"0": "x"}, file_ending=".png"),
        )
    ],
    'add e.g. "labels": {"background": 0, "liver": 1}': [
        Scenario(
            lambda root: nnunet(root, labels={}),
            repair=descriptions(labels={"background": 0, "liver": 255}, channel_names={"0": "x"}, file_ending=".png"),
        )
    ],
    'add "background": 0': [
        Scenario(
            lambda root: nnunet(root, labels={"liver": 255}),
            repair=descriptions(labels={"background": 0, "liver": 255}, channel_names={"0": "x"}, file_ending=".png"),
        )
    ],
    'give e.g. "colors": {"nucleus": [255, 0, 0]}': [
        Scenario(descriptions(colors={}), repair=descriptions(colors={"nucleus": [255, 255, 255]}))
    ],
    'give [red, green, blue], 0 to 255, or "#rrggbb"': [
        Scenario(descriptions(colors={"a": "white"}), repair=descriptions(colors={"a": "#ffffff"}))
    ],
    'write {"labels": {...}, ...}': [
        Scenario(lambda root: write(root, dataset__json=[1]), repair=descriptions(labels={"a": 255}))
    ],
    "correct file_ending": [
        Scenario(
            lambda root: nnunet(root, file_ending=".nii.gz"),
            repair=descriptions(labels={"background": 0, "a": 255}, channel_names={"0": "x"}, file_ending=".png"),
        )
    ],
    "name the folders so, or add a dataset.json: *": [
        Scenario(renamed("masks", "truth"), repair=renamed("truth", "gt"))
    ],
    "write / between folders": [
        Scenario(
            descriptions(modality={"0": "x"}, labels={"background": 0, "a": 255}, training=["images\\c0.png"]),
            repair=descriptions(
                modality={"0": "x"},
                labels={"background": 0, "a": 255},
                training=[{"image": f"images/c{n}.png", "label": f"masks/c{n}.png"} for n in range(6)],
            ),
        )
    ],
    "call one of its columns '*'": [
        Scenario(
            table("name,site", *(f"c{n},s" for n in range(6))),
            repair=table("case,site", *(f"c{n},s" for n in range(6))),
        )
    ],
    "put text that holds the separator into quotation marks": [
        Scenario(table("case,who", "c0,Smith, John"), repair=table("case,who", 'c0,"S, J"'))
    ],
    "set target.regions={name: [labels], ...}, the outermost first, or target=exclusive": [
        Scenario(two_classes, settings={"target": {"name": "regions"}}, then={"target": REGIONS}),
        Scenario(two_classes, settings={"target": {"name": "regions"}}, then={"target": {"name": "exclusive"}}),
    ],
    "set target.levels=[labels], or target.regions={name: [labels], ...}, the outermost first": [
        Scenario(
            two_classes, settings={"target": {"name": "nested"}}, then={"target": {"name": "nested", "levels": [1, 2]}}
        ),
        Scenario(two_classes, settings={"target": {"name": "nested"}}, then={"target": {**REGIONS, "name": "nested"}}),
    ],
    "put the outermost first, or use target=regions, which need not be nested": [
        Scenario(
            two_classes,
            settings={"target": {"name": "nested", "regions": {"a": [1], "b": [2]}}},
            then={"target": {"name": "regions", "regions": {"a": [1], "b": [2]}}},
        )
    ],
    "put the regions in order, the outermost first, or set class_order": [
        Scenario(
            two_classes,
            settings={"target": {"name": "regions", "regions": {"in": [2], "all": [1, 2]}}},
            then={"target": REGIONS},
        )
    ],
    "add it to the regions that it is part of": [
        Scenario(
            two_classes, settings={"target": {"name": "regions", "regions": {"all": [1]}}}, then={"target": REGIONS}
        )
    ],
    "put landmarks.json beside the images, or set e.g. target.structures='{right lung: 44, left lung: 50}'": [
        Scenario(landmarks, settings={"target": {"name": "landmarks"}}, then={"target": TARGET}),
        Scenario(
            landmarks, settings={"target": {"name": "landmarks"}}, then={"target": {"name": "landmarks"}}, repair=ring()
        ),
    ],
    "add landmarks/CASE.npy, or set target.from_masks=true": [
        Scenario(settings={"target": TARGET}, then={"target": {**TARGET, "from_masks": True}}),
        Scenario(settings={"target": TARGET}, then={"target": TARGET}, repair=landmarks),
    ],
    "set target.values, e.g. '{right lung: 1, left lung: 1}'": [
        Scenario(
            both(two_classes, landmarks),
            settings={"target": TARGET},
            then={"target": {**TARGET, "values": {"ring": 1}}},
        )
    ],
    'write e.g. {"structures": {"right lung": 44, "left lung": 50}}': [
        Scenario(both(landmarks, lambda root: write(root, landmarks__json={"structures": 3})), repair=ring())
    ],
    'write landmarks.json, e.g. {"structures": {"right lung": 44, "left lung": 50}}': [
        Scenario(both(landmarks, renamed("masks", "left")), repair=ring())
    ],
    "write e.g. [[0, 1], [1, 2]]": [Scenario(both(landmarks, ring(edges=3)), repair=ring(edges=[[0, 1], [1, 2]]))],
    'write e.g. {"*": 1}': [Scenario(both(landmarks, ring(values=3)), repair=ring(values={"ring": 255}))],
    "give images of 8 voxels or more along an axis, or a smaller plan.spacing": [
        Scenario(grown(7), settings={"data": {"folds": 5}}, then={"plan": {"spacing": [0.5, 0.5]}}, remark=True),
        Scenario(grown(7), repair=grown(16)),
    ],
    "make it divisible by * or set plan.strides too": [
        Scenario(
            settings={"plan": {"patch_size": [18, 24], "strides": [1, 2, 2]}},
            then={"plan": {"patch_size": [16, 24], "strides": [1, 2, 2]}},
        )
    ],
    "train with a larger plan.patch_size, or a coarser plan.spacing": [
        Scenario(
            both(landmarks, ring()),
            settings={"target": TARGET, "plan": {"patch_size": [16, 16]}},
            then={"target": TARGET, "plan": {"patch_size": [20, 24]}},
        )
    ],
}


SKIPPED = "*"  # what an advice fills in


def collect(root: Path, patterns: Sequence[str], leave_out: Sequence[str] = ()) -> dict[str, str]:
    """Advice -> the file that gives it: ``fix=`` of calls, names called ``fix``, and upper-case constants with them.

    Args:
        root: of the package.
        patterns: of its files, e.g. ``"data/*.py"``.
        leave_out: beginnings of file names.

    Returns:
        Texts as in the source; what an f-string fills in is ``*``. Advice that comes from elsewhere is left out.
    """
    files = sorted({path for pattern in patterns for path in root.glob(pattern)})
    trees = {file.name: ast.parse(file.read_text()) for file in files if not file.name.startswith(tuple(leave_out))}
    named = dict(pair for tree in trees.values() for pair in _assigned(tree))
    return {text: file for file, tree in trees.items() for node in _advising(tree) for text in _texts(node, named)}


def _assigned(tree: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """Constants in capitals: advice that is used in several places."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id.isupper():
            yield node.targets[0].id, node.value


def _advising(tree: ast.AST) -> Iterator[ast.expr]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield from (keyword.value for keyword in node.keywords if keyword.arg == "fix")
            if isinstance(node.func, ast.Name) and node.func.id == "Finding" and len(node.args) > 4:
                yield node.args[4]
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                names = target.elts if isinstance(target, ast.Tuple) else [target]
                values = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
                pairs = zip(names, values, strict=False)
                yield from (
                    v
                    for n, v in pairs
                    if isinstance(n, ast.Name) and n.id in ("fix", "stated", "choice", "apart", "again")
                )
                yield from (node.value for n in names if isinstance(n, ast.Attribute) and n.attr == "fix")


def _texts(node: ast.expr, named: dict[str, ast.expr]) -> Iterable[str]:
    match node:
        case ast.Constant(value=str(text)) if text:
            return [text]
        case ast.JoinedStr(values=parts):
            text = "".join(part.value if isinstance(part, ast.Constant) else SKIPPED for part in parts)
            return [text]
        case ast.IfExp(body=body, orelse=orelse):
            return [*_texts(body, named), *_texts(orelse, named)]
        case ast.BoolOp(values=values):
            return [text for value in values for text in _texts(value, named)]
        case ast.Name(id=name) if name in named:
            return _texts(named[name], named)
    return []


ELSEWHERE = {  # advice -> the test that follows it
    "medseg check fix=true repairs a copy": "unit/data/test_check.py::test_the_repaired_copy_is_whole_and_clean",
    "medseg check fix=true gives a copy the image's header": (
        "unit/data/test_check.py::test_the_repaired_copy_is_whole_and_clean"
    ),
    "run medseg check fix=true for a copy with 0 there, or repair the file": (
        "unit/data/test_check.py::test_the_repaired_copy_is_whole_and_clean"
    ),
    "set fix=true too": "unit/data/test_check.py::test_command_writes_json_and_the_copy_beside",
    "set data=FOLDER or data=*": "unit/data/test_catalogue.py::test_phantoms_are_generated_once",
    "add it, leave the case out, or set target.from_masks=true": (
        "unit/training/test_landmarks.py::test_masks_alone_are_enough"
    ),
    "predict without tta (tta=false)": "unit/training/test_landmarks.py::test_masks_alone_are_enough",
}


def template(advice: str) -> re.Pattern[str]:
    return re.compile(".+".join(map(re.escape, advice.split("*"))))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("advice", "number"), [(advice, n) for advice, scenarios in FOLLOWED.items() for n in range(len(scenarios))]
)
def test_advice_that_is_followed_helps(advice: str, number: int, tmp_path: Path) -> None:
    scenario = FOLLOWED[advice][number]
    root = pictures(tmp_path / scenario.folder)
    scenario.spoil(root)
    with pytest.raises(MedsegError) as refused:
        scenario.by(root, scenario.settings)
    assert template(advice).fullmatch(refused.value.fix or ""), refused.value
    scenario.repair(root)
    if scenario.remark:
        with pytest.raises(Remark):
            scenario.by(root, scenario.then)
    else:
        scenario.by(root, scenario.then)


def advice_of_all() -> dict[str, str]:
    return {
        text: file
        for patterns, leave_out in PACKAGES.items()
        for text, file in collect(ROOT / "medseg", patterns, leave_out).items()
    }


def test_every_advice_is_followed_or_for_a_person() -> None:
    given = set(advice_of_all())
    followed = FOLLOWED.keys() | ELSEWHERE.keys()
    assert given - followed - FOR_A_PERSON == set(), "new advice: add a scenario that follows it"
    assert followed - given == set(), "no error says so any more"
    assert FOR_A_PERSON - given == set(), "no error says so any more"
    assert followed & FOR_A_PERSON == set()
    assert not [advice for advice in FOR_A_PERSON if KEY.search(advice)], "a setting is advised: follow it"


@pytest.mark.parametrize("advice", ELSEWHERE)
def test_the_test_elsewhere_is_there(advice: str) -> None:
    file, _, name = ELSEWHERE[advice].partition("::")
    assert f"def {name}(" in (ROOT / "tests" / file).read_text(encoding="utf-8")


def known_keys() -> set[str]:
    """Every key that a shipped config has, as it is typed: ``data.folds``, ``tta``."""
    keys: set[str] = set()
    for file in (ROOT / "configs").rglob("*.yaml"):
        group = file.relative_to(ROOT / "configs").parts[0] if file.parent != ROOT / "configs" else ""
        loaded = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        for key, value in loaded.items():
            keys.add(f"{group}.{key}" if group else key)
            keys |= {f"{key}.{inner}" for inner in value} if isinstance(value, dict) and not group else set()
    groups = {path.name for path in (ROOT / "configs").iterdir() if path.is_dir()}
    return keys | groups


def test_every_key_that_is_advised_exists() -> None:
    known = known_keys()
    for advice, file in advice_of_all().items():
        for key in KEY.findall(advice):
            assert key in known, f"{file}: {advice}"

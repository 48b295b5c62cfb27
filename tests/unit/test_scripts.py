"""The benchmark scripts: each can be asked for help, and what they make of rows is right. Their short versions are in
test_agreement.py, and in the tests of the parts they measure."""

from __future__ import annotations

import importlib.util
import runpy
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from medseg.errors import UsageError
from medseg.io import Geometry, Volume, write_volume

SCRIPTS = Path(__file__).parents[2] / "scripts"


def load(name: str) -> ModuleType:
    """A script as a module."""
    if str(SCRIPTS) not in sys.path:
        sys.path.append(str(SCRIPTS))  # where a script finds its own helpers
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", sorted(SCRIPTS.glob("[a-z]*.py")), ids=lambda path: path.stem)
def test_every_script_can_be_asked_for_help(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    monkeypatch.syspath_prepend(str(SCRIPTS))  # as Python does for the script it runs
    with pytest.raises(SystemExit) as end:  # in this process: importing torch in each takes seconds
        runpy.run_path(str(path), run_name="__main__")
    assert not end.value.code
    assert "usage:" in capsys.readouterr().out


def test_dice_against_minutes_is_the_mean_over_folds(tmp_path: Path) -> None:
    bench = load("bench_hippocampus")
    row = {"what": "medseg unet", "minutes": 6.0, "steps": 1000, "anterior": 0.9, "posterior": 0.8}
    rows = [{**row, "fold": fold, "dice": dice} for fold, dice in ((1, 0.86), (0, 0.84))]
    rows.append({**row, "what": "nnU-Net v2", "fold": 0, "dice": 0.5})
    summary = bench.summarise(rows)
    assert [(one["what"], one["folds"], round(one["dice"], 4)) for one in summary] == [
        ("medseg unet", [0, 1], 0.85),
        ("nnU-Net v2", [0], 0.5),
    ]
    assert "| medseg unet | 6 | 0 1 | 1000 | 0.8500 | 0.9000 | 0.8000 |" in bench.table(summary)
    bench.draw(rows, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_the_zoo_table_has_mean_and_spread(tmp_path: Path) -> None:
    bench = load("bench_zoo2d")
    scores = {"lesion": {"Dice": 0.8, "pooled Dice": 0.9}}
    words = ["trainer.threads=1"]
    row = {"dataset": "isic", "model": "unet", "settings": words, "minutes": 15.0, "steps": 100, "scores": scores}
    other = {**row, "scores": {"lesion": {"Dice": 0.9, "pooled Dice": None}}, "steps": 200}
    text = bench.table([row, other, {**row, "dataset": "chaos", "scores": {"liver": {"Dice": 0.5, "HD95": 12.34}}}])
    assert "| isic | lesion | unet | 15 | 2 | 150 | 0.850 ± 0.071 | 0.900 |" in text
    assert "| chaos | liver | unet | 15 | 1 | 100 | 0.500 | 12.3 |" in text
    assert text.endswith("settings: trainer.threads=1")
    assert "| unet model.depth=3 |" in bench.table([row, {**row, "settings": [*words, "model.depth=3"]}])


def test_the_zoo_refuses_models_that_are_not_there() -> None:
    bench = load("bench_zoo2d")
    bench.check_models(["unet", "unetpp"])
    with pytest.raises(UsageError, match="did you mean 'unet'"):
        bench.check_models(["unett"])


def test_a_run_of_the_zoo_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = load("bench_zoo2d")
    (tmp_path / "wbc").mkdir()
    for part in ("images", "masks"):
        (tmp_path / "wbc" / part).mkdir()
        for number in range(6):
            pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            picture = Image.fromarray(pixels if part == "images" else pixels[..., 0] // 90)
            picture.save(tmp_path / "wbc" / part / f"{number}.png")
    monkeypatch.setenv("MEDSEG_DATA", str(tmp_path))
    words = [
        "model.base_channels=4",
        "trainer.threads=1",
        f"cache_dir={tmp_path / 'cache'}",
        "trainer.tensorboard=false",
    ]
    made = bench.train("wbc", "unet", 0.02, 0, tmp_path / "out", words)
    assert set(made["scores"]) == {"label_1", "label_2"}
    assert set(made["scores"]["label_1"]) == {f"{p}{m}" for p in ("", "pooled ") for m in ("Dice", "SE", "SP", "ACC")}
    (row,) = (tmp_path / "out").glob("*/row.json")
    before = row.stat().st_mtime_ns
    assert bench.train("wbc", "unet", 0.02, 0, tmp_path / "out", words) == made
    assert row.stat().st_mtime_ns == before


def test_landmark_bench_hides_one_lung_and_writes_a_table() -> None:
    bench = load("bench_landmarks")
    points = np.concatenate([np.tile([[10.0, 10.0], [30.0, 50.0]], (22, 1)), np.tile([[40, 10.0], [60, 50]], (25, 1))])
    image = Volume(np.arange(1.0, 64 * 64 + 1).reshape(1, 64, 64), Geometry((64, 64), np.eye(4)))
    hidden = bench.hide(image, points, "case").array[0] != image.array[0]
    rows, columns = np.nonzero(hidden)
    assert (rows.min(), rows.max()) == (18, 41)
    assert (columns.min(), columns.max()) in ((14, 25), (44, 55))
    row = {"model": "unet", "minutes": 25, "steps": 9, "images": "validation", "dice": 0.9, "hd95": 12.34, "n": 60}
    lines = bench.table([{**row, "error": None, "implausible": 3}, {**row, "error": 10.24, "implausible": 0}])
    assert "| unet | 25 | 9 | validation | 0.900 | 12.3 | – | – | 3/60 |" in lines
    assert "| 12.3 | 10.2 | 1.00 | 0/60 |" in lines


def test_inference_agrees_with_the_peers_on_the_same_windows(tmp_path: Path) -> None:
    bench, startup = load("bench_inference"), load("bench_startup")
    startup.write_model(tmp_path / "model", base_channels=4, patch=16)
    image = np.random.default_rng(0).random((1, 40, 24, 16), np.float32)
    write_volume(tmp_path / "case.nii.gz", Volume(image, Geometry(image.shape[1:], np.eye(4))))
    ways = bench.contestants(tmp_path / "model")
    array = bench.prepare(tmp_path / "case.nii.gz", ways[bench.REFERENCE][1].plan)
    logits = {name: way(member, array).float() for name, (way, member) in ways.items() if "bf16" not in name}
    for name in ("medseg, fp32, channels-last", "medseg, fp32, contiguous"):
        assert (logits[name] - logits[bench.REFERENCE]).abs().max() < 1e-4, name
    table = bench.compare_times(ways, [tmp_path / "case.nii.gz"], repeats=1)
    assert table.startswith("1 image(s), 40x24x16 voxels, windows of [16, 16, 16]")
    assert f"| {bench.REFERENCE} |" in table
    assert "1.0000 | 0.0e+00 | 0.0e+00 | 0.0e+00 |" in table


def test_memory_of_a_case_is_measured_in_a_process_and_stopped_above_the_guard() -> None:
    bench = load("bench_inference")
    rows = bench.compare_memory([("medseg", 3, 24)], 32, most=8).splitlines()
    cells = [cell.strip() for cell in rows[2].strip("|").split("|")]
    assert cells[:3] == ["medseg", "3", "24"]
    assert 0 <= float(cells[3]) < 1
    assert 0 < float(cells[4]) < 1
    code, told = bench.guarded([sys.executable, "-c", "import time; held = bytearray(2**27); time.sleep(60)"], 0.05)
    assert code is None
    assert told.startswith("more than 0.")


def test_predict_reaches_the_network_without_what_only_training_needs(tmp_path: Path) -> None:
    startup = load("bench_startup")
    words = startup.predict_words(tmp_path, base_channels=4, patch=16)
    heavy = {"monai", "pytorch_lightning", "albumentations", "pandas", "matplotlib", "skimage", "sklearn", "timm"}
    heavy |= {"torchvision", "torch._dynamo", "sympy", "scipy.stats"}
    told = f"print('loaded:', *{heavy!r} & set(sys.modules), flush=True)"
    code = startup.UNTIL_THE_NETWORK.replace("os._exit(77)", f"({told}, os._exit(77))")
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 77, done.stderr
    assert done.stdout.splitlines()[-1].split() == ["loaded:"]


def test_nested_methods_are_compared_over_seeds_and_folds() -> None:
    bench = load("bench_nested")
    row = {"data": "brats", "budget": "90s", "method": "regions", "steps": 10, "violating_cases": 1, "cases": 1}
    dice = {(0, 0): 0.8, (0, 1): 0.6, (1, 0): 0.9, (1, 1): 0.7}
    rows = [{**row, "seed": s, "fold": f, "violations": 5, "dice": {"whole": d}} for (s, f), d in dice.items()]
    assert bench.table(rows).splitlines()[2:] == [
        "| brats | 90s | sigmoid regions | 2 | 10 | whole 0.7500 ± 0.0707 | 20 | 4 of 4 |"
    ]
    assert bench.budget_words("90s") == ["trainer.max_time=00:00:01:30"]
    assert bench.budget_words("200 steps") == ["trainer.max_epochs=1", "trainer.steps_per_epoch=200"]


def test_gain_of_pretraining_is_paired_over_seeds(tmp_path: Path) -> None:
    bench = load("bench_pretrain")
    (tmp_path / "images").mkdir()
    for name in ("a", "b", "c"):
        (tmp_path / "images" / f"{name}.jpg").touch()
    (tmp_path / "val.txt").write_text("b\n")
    assert bench.write_split(tmp_path, tmp_path).read_text() == '[{"train": ["a", "c"], "val": ["b"]}]'
    row = {"model": "unet", "fraction": 0.05, "cases": 70, "steps": 9}
    rows = [
        {**row, "seed": seed, "start": start, "dice": dice}
        for seed, scratch, tuned in ((0, 0.70, 0.75), (1, 0.80, 0.81))
        for start, dice in (("scratch", scratch), ("pretrained", tuned))
    ]
    last = bench.table(rows).splitlines()[-1]
    assert last == "| unet | 5% | 70 | 0.7500 ± 0.0707 | 0.7800 ± 0.0424 | +0.0300 ± 0.0283 | 2 |"
    assert bench.limit(90.5) == "00:01:30:30"

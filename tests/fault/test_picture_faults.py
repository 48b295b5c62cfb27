"""2D data that must not be used: one line each, with its exit code, from the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medseg.cli import main

TINY = ["model.base_channels=4", "trainer.max_epochs=1", "trainer.steps_per_epoch=1", "trainer.progress=false"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Six good pictures in colour with masks of 0 and 1."""
    for number in range(6):
        for part in ("images", "masks"):
            (tmp_path / "data" / part).mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (32, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"data/images/c{number}.png")
        Image.fromarray((pixels[..., 0] > 99).astype(np.uint8)).save(tmp_path / f"data/masks/c{number}.png")
    return tmp_path / "data"


def alone(root: Path) -> None:
    (root / "masks/c1.png").unlink()


def other_size(root: Path) -> None:
    Image.fromarray(np.ones((31, 40), np.uint8)).save(root / "masks/c1.png")


def unknown_value(root: Path) -> None:
    (root / "dataset.json").write_text('{"labels": {"cell": 1}}')
    pixels = np.ones((32, 40), np.uint8)
    pixels[:2] = 7
    Image.fromarray(pixels).save(root / "masks/c1.png")


def grey(root: Path) -> None:
    Image.fromarray(np.full((32, 40), 9, np.uint8)).save(root / "images/c1.png")


def unknown_colour(root: Path) -> None:
    (root / "dataset.json").write_text('{"colors": {"cell": [255, 0, 0]}}')
    for path in (root / "masks").iterdir():
        pixels = np.zeros((32, 40, 3), np.uint8)
        pixels[:4] = (255, 0, 0) if path.stem != "c1" else (0, 0, 255)
        Image.fromarray(pixels).save(path)


FAULTS = {
    alone: "1 image(s) have no mask: c1",
    other_size: "different grids: [32x40 pixels, spacing 1x1] against [31x40 pixels, spacing 1x1]",
    unknown_value: "label values 7 (80 voxels) are not in the dataset (expected [0, 1])",
    grey: "the image is grey (1 channel) (expected in colour (3 channels))",
    unknown_colour: "colours (0, 0, 255) (160 pixels) are not in the map (expected (0, 0, 0), (255, 0, 0))",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_training_refuses_it_and_the_check_finds_it(root: Path, tmp_path: Path, capsys, fault) -> None:
    fault(root)
    with pytest.raises(SystemExit) as ended:
        main(["train", f"data={root}", f"run_dir={tmp_path / 'run'}", f"cache_dir={tmp_path / 'cache'}", *TINY])
    line = capsys.readouterr().err.splitlines()[-1]
    assert ended.value.code == 3
    assert FAULTS[fault] in line
    assert "c1" in line
    assert "Fix:" in line
    with pytest.raises(SystemExit) as ended:
        main(["check", f"data={root}", "json=true"])
    assert ended.value.code == 3
    assert '"c1"' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("plan.patch_size=[16,16] plan.strides=[[1,1]] model.depth=6", "smaller than the network's divisor"),
        ("data.color=sepia", "color is 'sepia'"),
        ("data.slices=axial", "the images are 2D already"),
        ("plan.normalization=imagnet", "plan.normalization is 'imagnet' (expected zscore, ct, percentile"),
        ("plan.size=[32,32,32]", "plan.size is [32, 32, 32] (expected 2 numbers"),
        ("data.test=x*", "no case matches 'x*'"),
        ("augmentation=flips augmentation.transforms=[{name:Flop}]", "there is no transform 'Flop'"),
        ("target.binary=true target.threshold=2", "threshold is 2"),
    ],
)
def test_settings_that_cannot_be(root: Path, tmp_path: Path, capsys, word: str, message: str) -> None:
    words = [*word.split(), f"run_dir={tmp_path / 'run'}", f"cache_dir={tmp_path / 'cache'}"]
    model = "unetpp" if "depth" in word else "unet"
    tiny = [each for each in TINY if "model" not in each] if "depth" in word else TINY
    with pytest.raises(SystemExit) as ended:
        main(["train", f"data={root}", f"model={model}", "trainer.threads=1", *tiny, *words])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]

"""medseg pretrain: what a run leaves, what it never reads, exact resume, and how a fine-tuning starts from it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from medseg.cli import main
from medseg.compose import compose
from medseg.data.augment2d import seeded
from medseg.data.dataset import open_dataset
from medseg.data.splits import limit_training
from medseg.data.unlabelled import find_images
from medseg.data.views import ViewDataset, view_steps
from medseg.device import without_memory
from medseg.errors import BadDataset, InputRefused, UnreadableFile, UsageError
from medseg.io import load_model, read_json
from medseg.models import create_model
from medseg.training import fit
from medseg.training.pretrain import choose_images, pretrain
from medseg.training.pretrained import load_pretrained, mismatches
from medseg.training.setup import make_profile

MODEL = ["model=unet", "model.base_channels=4", "plan.patch_size=[16,16]", "plan.strides=[[1,1],[2,2],[2,2]]"]
TRAINER = ["trainer.max_epochs=1", "trainer.threads=1", "trainer.progress=false", "trainer.tensorboard=false"]
VIEWS = compose("pretrain", [])["views"]


def pictures(folder: Path, count: int, channels: int = 3, first: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(first)
    for number in range(first, first + count):
        pixels = rng.integers(0, 255, (20, 24, channels), dtype=np.uint8)
        Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(folder / f"p{number:02}.png")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A labelled dataset of 10 pictures, images/ and masks/."""
    root = tmp_path_factory.mktemp("data") / "pictures"
    pictures(root / "images", 10)
    (root / "masks").mkdir()
    for file in (root / "images").iterdir():
        Image.fromarray(np.tri(20, 24, int(file.stem[1:]), np.uint8)).save(root / "masks" / file.name)
    return root


@pytest.fixture(scope="module")
def words(folder, tmp_path_factory) -> list[str]:
    """Settings that pretraining and training share."""
    cache = tmp_path_factory.mktemp("cache")
    return [f"data={folder}", f"cache_dir={cache}", "data.loader_workers=0", *MODEL, *TRAINER]


@pytest.fixture(scope="module")
def pretrained(words, tmp_path_factory) -> Path:
    """A run folder."""
    run = tmp_path_factory.mktemp("run") / "whole"
    pretrain(compose("pretrain", [*words, f"run_dir={run}", "batch_size=4", "trainer.steps_per_epoch=6"]))
    return run


def weights(run: Path) -> bytes:
    return (run / "encoder" / "model.safetensors").read_bytes()


def test_a_run_leaves_an_encoder_that_says_where_it_comes_from(pretrained, folder) -> None:
    state, description = load_model(pretrained / "encoder")
    with without_memory():
        wanted = create_model(**description["model"]).encoder.state_dict()
    assert {name: tensor.shape for name, tensor in state.items()} == {n: t.shape for n, t in wanted.items()}
    facts = description["pretraining"]
    assert (facts["method"], facts["dataset"], facts["steps"]) == ("barlow_twins", folder.name, 6)
    assert not [path for path in (pretrained / "encoder").iterdir() if path.suffix not in (".json", ".safetensors")]


def test_what_a_fold_validates_is_never_read(pretrained, folder, words, tmp_path) -> None:
    seen = load_pretrained(pretrained).cases
    run = tmp_path / "fine"
    fit(compose("train", [*words, f"run_dir={run}", f"pretrained={pretrained}", "trainer.steps_per_epoch=1"]))
    split = read_json(run / "splits_final.json")[0]
    assert sorted(seen) == split["train"]
    assert not set(seen) & set(split["val"])
    others = {file.stem for file in (folder / "images").iterdir()} - set(split["train"])
    assert others == set(split["val"]), "the split leaves cases out: the test is blind"


def test_a_split_file_keeps_its_validation_images_out_of_a_folder(tmp_path) -> None:
    pictures(tmp_path / "all" / "a", 3)
    pictures(tmp_path / "all" / "b" / "deep", 3, first=3)
    splits = [{"train": ["p00", "elsewhere"], "val": ["p01", "p04"]}, {"train": ["p01"], "val": ["p00"]}]
    (tmp_path / "splits.json").write_text(json.dumps(splits))
    more = [f"data={tmp_path / 'all'}", f"data.split_file={tmp_path / 'splits.json'}", "plan.patch_size=[32,32]"]
    for fold, left_out in ((0, {"p01", "p04"}), (1, {"p00"})):
        cfg = compose("pretrain", [*more, f"fold={fold}", "plan.strides=[[1,1],[2,2]]"])
        cases, plan, _ = choose_images(cfg, make_profile(cfg["trainer"]))
        assert {case.id.rpartition("/")[2] for case in cases} == {f"p{n:02}" for n in range(6)} - left_out
        assert (plan.channel_names, plan.patch_size) == (("R", "G", "B"), (32, 32))


def test_numbered_images_that_validate_are_left_out(tmp_path) -> None:
    pictures(tmp_path / "all", 4)
    for file in list((tmp_path / "all").iterdir()):
        file.rename(file.with_name(f"img_00{file.name[1:]}"))
    (tmp_path / "val.txt").write_text("img_0002\nimg_0003.png\n")
    cfg = compose("pretrain", [f"data={tmp_path / 'all'}", f"data.split_file={tmp_path / 'val.txt'}"])
    assert [case.id for case in choose_images(cfg, make_profile(cfg["trainer"]))[0]] == ["img_0000", "img_0001"]


def test_grey_and_colour_images_are_brought_together_by_choice(tmp_path) -> None:
    pictures(tmp_path, 3)
    Image.open(tmp_path / "p00.png").convert("L").save(tmp_path / "p00.png")
    words = [f"data={tmp_path}", "plan.patch_size=[32,32]", "plan.strides=[[1,1],[2,2]]"]
    cfg = compose("pretrain", words)
    with pytest.raises(InputRefused, match=r"has 3 channel.*data.color=rgb"):
        choose_images(cfg, make_profile(cfg["trainer"]))
    cfg = compose("pretrain", [*words, "data.color=rgb"])
    cases, plan, _ = choose_images(cfg, make_profile(cfg["trainer"]))
    views = ViewDataset(cases, plan, cfg["views"], batch_size=3)
    assert [tuple(views[index]["image"].shape) for index in range(3)] == [(2, 3, 32, 32)] * 3


def test_views_that_are_no_square_keep_the_shape_of_things() -> None:
    views = {**VIEWS, "crop": [1, 1]}
    views |= dict.fromkeys(("horizontal_flip", "vertical_flip", "rotation", "jitter", "gray", "blur", "solarize"), 0)
    rows, columns = np.ogrid[:96, :192]
    disc = ((rows - 48) ** 2 + (columns - 96) ** 2 < 900).astype(np.float32)[..., None]
    seen = seeded(view_steps(views, (48, 96), 1), 0)(image=disc)["image"].reshape(48, 96) > 0.5
    assert abs(np.ptp(np.nonzero(seen)[0]) - np.ptp(np.nonzero(seen)[1])) <= 1


STILL = "optimizer.lr=1.0e-60"  # a rate above 0, as it must be, that no float32 feels


def test_fine_tuning_starts_from_exactly_these_weights(pretrained, words, tmp_path, capsys) -> None:
    state, _ = load_model(pretrained / "encoder")
    run = tmp_path / "still"
    still = [STILL, "trainer.steps_per_epoch=2", f"run_dir={run}"]
    fit(compose("train", [*words, *still, f"pretrained={pretrained}"]))
    after, description = load_model(run)
    torch.manual_seed(0)
    fresh = create_model(**description["model"]).encoder.state_dict()
    assert fresh.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(after[f"encoder.{name}"], tensor), name
        assert not torch.equal(fresh[name], tensor), f"{name} is as it was initialised"
    facts = description["training"]["pretrained"]
    assert (facts["tensors"], facts["changed"]) == (len(state), len(state))
    assert f"{len(state)} tensors, {len(state)} differ from the fresh ones" in capsys.readouterr().out


def test_only_the_encoder_differs_from_a_training_from_scratch(pretrained, words, tmp_path) -> None:
    still = [*words, STILL, "trainer.steps_per_epoch=1"]
    states = []
    for name, more in (("scratch", []), ("tuned", [f"pretrained={pretrained / 'encoder'}"])):
        fit(compose("train", [*still, f"run_dir={tmp_path / name}", *more]))
        states.append(load_model(tmp_path / name)[0])
    same = {name for name, tensor in states[0].items() if torch.equal(tensor, states[1][name])}
    assert same == {name for name in states[0] if not name.startswith("encoder.")}


def test_another_architecture_is_refused_with_what_does_not_match(pretrained, words, tmp_path) -> None:
    for more, part in (
        ("model.base_channels=8", r"stages\.0\.0\.conv\.weight is \[4, 3, 3, 3\] \(network \[8, 3, 3, 3\]\)"),
        ("model.blocks_per_stage=3", r"stages\.0\.2\.conv\.weight is missing"),
        ("model.blocks_per_stage=1", r"stages\.0\.1\.conv\.weight is unknown"),
    ):
        with pytest.raises(UsageError, match=part):
            fit(compose("train", [*words, f"run_dir={tmp_path / more}", f"pretrained={pretrained}", more]))


def test_strides_follow_the_pretraining_where_the_plan_would_differ(pretrained, words, tmp_path) -> None:
    other = [word for word in words if not word.startswith("plan.")]
    run = tmp_path / "plan"
    fit(compose("train", [*other, f"run_dir={run}", f"pretrained={pretrained}", "trainer.steps_per_epoch=1"]))
    assert load_model(run)[1]["model"]["strides"] == [[1, 1], [2, 2], [2, 2]]


def test_a_model_that_is_no_encoder_is_refused(words, tmp_path) -> None:
    run = tmp_path / "scratch"
    fit(compose("train", [*words, f"run_dir={run}", "trainer.steps_per_epoch=1"]))
    with pytest.raises(UnreadableFile, match="not a pretrained encoder"):
        load_pretrained(run)
    for name in ("nowhere", "nowhere.pth"):
        with pytest.raises(UnreadableFile, match="is not a model folder"):
            load_pretrained(tmp_path / name)


def test_pretraining_on_validation_images_is_told(pretrained, capsys) -> None:
    load_pretrained(pretrained).warn_of_overlap(["unseen"])
    assert not capsys.readouterr().out
    first = load_pretrained(pretrained).cases[0]
    load_pretrained(pretrained).warn_of_overlap([first, "unseen"])
    assert f"has seen 1 of the 2 validation images, e.g. {first}" in capsys.readouterr().out


def test_resume_after_a_kill_is_bit_exact(words, pretrained, tmp_path) -> None:
    run = tmp_path / "killed"
    more = [*words, f"run_dir={run}", "batch_size=4", "trainer.steps_per_epoch=6"]
    process = subprocess.Popen(
        [sys.executable, "-m", "medseg.cli", "pretrain", *more, "trainer.checkpoint_minutes=0.00001"]
    )
    while not (run / "checkpoints" / "previous.ckpt").exists():
        assert process.poll() is None, "pretraining ended early"
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    pretrain(compose("pretrain", [*more, "resume=true"]))
    assert weights(run) == weights(pretrained)


def test_fewer_than_two_images_exit_3(tmp_path, capsys) -> None:
    pictures(tmp_path / "one", 1)
    pictures(tmp_path / "one" / "masks", 3)
    with pytest.raises(SystemExit) as ended:
        main(["pretrain", f"data={tmp_path / 'one'}", f"run_dir={tmp_path / 'run'}"])
    assert ended.value.code == 3
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1
    assert "1 images to pretrain on (expected at least 2)" in told[0]
    with pytest.raises(BadDataset, match="0 images"):
        find_images(tmp_path / "run")


def test_images_that_do_not_fit_together_are_refused(tmp_path) -> None:
    pictures(tmp_path / "mixed", 2)
    pictures(tmp_path / "mixed", 1, channels=1, first=2)
    cfg = compose("pretrain", [f"data={tmp_path / 'mixed'}", f"run_dir={tmp_path / 'run'}"])
    with pytest.raises(InputRefused, match=r"p02\.png: has 1 channel\(s\) \(p00\.png has 3\)"):
        pretrain(cfg)
    (tmp_path / "mixed" / "p02.png").write_bytes(b"no picture")
    with pytest.raises(UnreadableFile, match="p02"):
        pretrain(cfg)


@pytest.mark.parametrize(
    ("more", "part"),
    [
        (["model=unetpp_nnunet"], r"model 'unetpp_nnunet' has no encoder of its own\. Fix: choose e\.g\. .*unet"),
        (["fold=all"], "fold is 'all' .expected a whole number"),
        (["batch_size=1"], "batch_size is 1 .expected a whole number, 2 to"),
        (["+views.crp=1"], "did you mean 'crop'"),
    ],
)
def test_settings_that_cannot_work_are_refused(words, tmp_path, more, part) -> None:
    kept = [word for word in words if not (word.startswith("model") and more[0].startswith("model"))]
    with pytest.raises(UsageError, match=part):
        pretrain(compose("pretrain", [*kept, f"run_dir={tmp_path / 'run'}", *more]))


def test_volumes_are_refused(tiny_phantoms, tmp_path) -> None:
    with pytest.raises(UsageError, match="2D images"):
        pretrain(compose("pretrain", [f"data={tiny_phantoms}", f"run_dir={tmp_path / 'run'}"]))


def test_views_depend_on_seed_and_index_alone_and_no_batch_repeats_an_image(folder) -> None:
    cases = list(open_dataset(folder).training)
    cfg = compose("pretrain", [f"data={folder}", "plan.patch_size=[16,16]", "plan.strides=[[1,1],[2,2]]"])
    _, plan, _ = choose_images(cfg, make_profile(cfg["trainer"]))
    first, again, other = (ViewDataset(cases, plan, VIEWS, batch_size=4, seed=seed) for seed in (0, 0, 1))
    again[3]
    sample = first[7]
    assert sample["image"].shape == (2, 3, 16, 16)
    assert torch.equal(again[7]["image"], sample["image"])
    assert not torch.equal(other[7]["image"], sample["image"])
    assert not torch.equal(sample["image"][0], sample["image"][1]), "both views are the same"
    for batch in range(6):
        assert len({first[4 * batch + place]["case"] for place in range(4)}) == 4
    assert {first[index]["case"] for index in range(100)} == {case.id for case in cases}


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("views", ["barlow_swin", "strong"])
def test_every_named_pipeline_takes_any_number_of_channels(channels: int, views: str) -> None:
    settings = {**compose("pretrain", [f"views={views}"])["views"], "jitter": 1.0, "blur": 1.0, "solarize": 1.0}
    steps = view_steps({**settings, "gray": 1.0}, (16, 12), channels)
    image = np.random.default_rng(0).random((20, 24, channels), dtype=np.float32)
    changed = steps(image=image)["image"]
    assert changed.reshape(16, 12, channels).dtype == np.float32
    assert 0 <= changed.min() <= changed.max() <= 1


def test_a_part_of_the_training_cases_is_seeded_and_nested() -> None:
    split = {"train": [f"c{n:02}" for n in range(40)], "val": ["v"]}
    few, more = (limit_training(split, share, seed=3) for share in (0.05, 0.1))
    assert (len(few["train"]), len(more["train"]), few["val"]) == (2, 4, ["v"])
    assert set(few["train"]) < set(more["train"]) < set(split["train"])
    assert limit_training(split, 4, seed=3) == more
    assert limit_training(split, 4, seed=4) != more
    assert limit_training(split, None, seed=3) == split
    for wrong in (0, 41, 1.5, 0.0, True, "x"):
        with pytest.raises(UsageError, match=r"data\.limit_train is"):
            limit_training(split, wrong, seed=3)  # type: ignore[arg-type]


def test_mismatches_name_every_difference() -> None:
    given = {"a": torch.zeros(2), "b": torch.zeros(1)}
    wanted = {"a": torch.zeros(3), "c": torch.zeros(1)}
    assert mismatches(given, wanted) == ["c is missing", "b is unknown", "a is [2] (network [3])"]


def test_a_folder_is_scaled_as_its_dataset_and_leaves_test_images_out(folder, words) -> None:
    profile = make_profile(compose("pretrain", words)["trainer"])
    plans = [
        choose_images(compose("pretrain", [f"data={where}", *words[1:]]), profile)[1]
        for where in (folder, folder / "images")
    ]
    assert plans[0].normalization == plans[1].normalization
    apart = [f"data={folder / 'images'}", *words[1:], "data.test=p0[0-7]"]
    assert [case.id for case in choose_images(compose("pretrain", apart), profile)[0]] == ["p08", "p09"]
    with pytest.raises(UsageError, match="no case matches"):
        choose_images(compose("pretrain", [*apart, "data.test=q*"]), profile)
    with pytest.raises(UsageError, match="group_by needs a dataset"):
        choose_images(compose("pretrain", [*apart, "data.group_by=patient"]), profile)


def test_validation_images_with_landmarks_alone_are_not_seen(tmp_path, words) -> None:
    pictures(tmp_path / "images", 10)
    (tmp_path / "landmarks").mkdir()
    for file in (tmp_path / "images").iterdir():
        np.save(tmp_path / "landmarks" / f"{file.stem}.npy", np.float32([[5, 5], [15, 5], [9, 14]]))
    (tmp_path / "landmarks.json").write_text(json.dumps({"structures": {"lung": 3}}))
    cfg = compose("pretrain", [f"data={tmp_path}", *words[1:], "data.folds=5"])
    seen = {case.id for case in choose_images(cfg, make_profile(cfg["trainer"]))[0]}
    assert len(seen) == 8


def test_barlow_swin_may_be_tuned_at_another_size(folder, words, tmp_path) -> None:
    small = ["model=barlow_swin", "model.embed_dim=8", "model.num_heads=2", "model.decoder_channels=[8,8,4,4]"]
    shared = [word for word in words if not word.startswith(("model", "plan"))] + small
    run = pretrain(
        compose(
            "pretrain",
            [
                *shared,
                f"run_dir={tmp_path / 'p'}",
                "plan.patch_size=[32,32]",
                "batch_size=4",
                "trainer.steps_per_epoch=1",
            ],
        )
    ).parent
    more = [f"pretrained={run}", "plan.patch_size=[48,48]", "trainer.steps_per_epoch=1", f"run_dir={tmp_path / 't'}"]
    state, description = load_model(fit(compose("train", [*shared, *more])))
    assert state["encoder.position"].shape == (1, 8, 8, 8)
    assert description["model"]["image_size"] == [32, 32]

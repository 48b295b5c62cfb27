"""2D networks: slices of volumes end to end, pictures of a fixed size, and no copy of a patient on both sides."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from medseg.cli import run
from medseg.compose import compose
from medseg.data.augment import make_augmentation
from medseg.data.dataset import open_dataset
from medseg.data.fingerprint import make_fingerprint
from medseg.data.plan import Plan, make_plan
from medseg.data.prepare import prepare
from medseg.data.sampling import PatchDataset
from medseg.data.splits import make_splits
from medseg.errors import UsageError
from medseg.inference import Predictor
from medseg.io import load_model, read_geometry, read_json, read_labels
from medseg.models.slices import SliceNetwork
from medseg.training import fit

TINY = [
    "model.base_channels=4", "trainer.max_epochs=1", "trainer.steps_per_epoch=2", "trainer.progress=false",
    "trainer.threads=1", "data.loader_workers=0", "trainer.tensorboard=false",
]  # fmt: skip


class Halving(nn.Module):
    """Says in its output which pixels it saw together."""

    divisor = (2, 4)

    def forward(self, image):
        assert image.ndim == 4
        return [image, image[:, :, ::2, ::2]]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_slice_network_takes_the_axis_out_and_puts_it_back(axis):
    network = SliceNetwork(Halving(), axis=axis)
    assert network.divisor[axis] == 1
    assert [n for a, n in enumerate(network.divisor) if a != axis] == [2, 4]
    shape = [2, 3, 8, 12]
    shape.insert(2 + axis, 1)
    image = torch.rand(shape)
    full, half = network(image)
    assert torch.equal(full, image)
    assert half.shape[2 + axis] == 1


@pytest.mark.parametrize(("slices", "axis"), [("axial", 2), ("coronal", 1), ("sagittal", 0), (1, 1)])
def test_the_plan_of_slices(tiny_phantoms, slices, axis):
    fingerprint = make_fingerprint(open_dataset(tiny_phantoms), progress=False)
    plan = make_plan(fingerprint, slices=slices)
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))).to_dict() == plan.to_dict()
    assert (plan.slice_axis, plan.patch_size[axis], plan.spatial_dims) == (axis, 1, 3)
    assert {stage[axis] for stage in plan.strides} == {1}
    assert axis not in plan.mirror_axes
    seen = plan.in_slice()
    assert (seen.spatial_dims, len(seen.patch_size), len(seen.strides[0])) == (2, 2, 2)
    shape = [40, 50, 60]
    grid = plan.grid(shape, [1.0, 2.0, 3.0])
    assert grid[axis] == shape[axis]  # slices stay, whatever their distance
    resized = make_plan(fingerprint, slices=slices, size=[32, 48])
    assert [n for a, n in enumerate(resized.grid(shape, [1, 2, 3])) if a != axis] == [32, 48]
    assert resized.in_slice().patch_size == (32, 48)


def test_slices_need_volumes_and_one_voxel(tiny_phantoms):
    fingerprint = make_fingerprint(open_dataset(tiny_phantoms), progress=False)
    with pytest.raises(UsageError, match="did you mean 'axial'"):
        make_plan(fingerprint, slices="axal")
    with pytest.raises(UsageError, match="over 1 voxel thick on axis 2"):
        make_plan(fingerprint, slices="axial", patch_size=[16, 16, 4], strides=[[1, 1, 1]])
    assert make_plan(fingerprint, slices="axial", patch_size=[16, 32]).patch_size == (16, 32, 1)


def test_volumes_train_a_2d_network_and_come_back_whole(tiny_phantoms, tmp_path):
    words = [f"data={tiny_phantoms}", "data.slices=coronal", "augmentation=default", f"cache_dir={tmp_path / 'cache'}"]
    folder = fit(compose("train", [*words, *TINY, f"run_dir={tmp_path / 'run'}", "model.deep_supervision=true"]))
    state, description = load_model(folder)
    assert description["model"]["spatial_dims"] == 2
    assert {tensor.ndim for tensor in state.values()} <= {0, 1, 4}  # a plain 2D network's weights
    assert not any(name.startswith("network.") for name in state)
    assert read_json(folder / "plan.json")["slice_axis"] == 1
    assert set(read_json(folder / "validation" / "summary.json")["mean"]) >= {"1"}
    image = next((tiny_phantoms / "imagesTs").iterdir())
    segmentation = Predictor.from_pretrained(folder, tta=True).predict(image)
    assert segmentation.geometry.difference(read_geometry(image), 1e-6) is None
    assert segmentation.labels.shape == read_geometry(image).shape


def test_every_slice_is_predicted_as_its_own_image(tiny_phantoms, tmp_path):
    words = [f"data={tiny_phantoms}", "data.slices=axial", f"cache_dir={tmp_path / 'cache'}", "plan.crop_nonzero=false"]
    plain = "plan.normalization=[{scheme: none}]"
    folder = fit(compose("train", [*words, *TINY, plain, f"run_dir={tmp_path / 'run'}"]))
    predictor = Predictor.from_pretrained(folder, postprocess=False)
    image = torch.rand(32, 28, 5).numpy()
    spacing = predictor.plan.spacing
    whole = predictor.predict(image, spacing=spacing, probabilities=True).probabilities
    for k in (0, 4):
        one = predictor.predict(image[..., k : k + 1], spacing=spacing, probabilities=True).probabilities
        np.testing.assert_allclose(whole[..., k : k + 1], one, atol=1e-5)


def pictures(root, count, value, size=(40, 36)):
    """Images of one grey level each, so that a patch tells whose it is."""
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    for number in range(count):
        Image.fromarray(np.full(size, value(number), np.uint8)).save(root / f"images/c{number:02d}.png")
        label = np.zeros(size, np.uint8)
        label[8:20, 8:20] = 1
        Image.fromarray(label).save(root / f"masks/c{number:02d}.png")
    return root


def test_no_augmented_copy_of_a_patient_is_on_both_sides(tmp_path):
    root = pictures(tmp_path / "data", 12, lambda number: 10 * (number // 2) + 100)  # two images of each patient
    rows = "".join(f"c{n:02d},p{n // 2}\n" for n in range(12))
    (root / "metadata.csv").write_text("case,patient\n" + rows)
    dataset = open_dataset(root)
    plan = make_plan(make_fingerprint(dataset, progress=False), normalization="none", patch_size=[32, 32])
    prepared = prepare(dataset, plan, [c.id for c in dataset.training], cache_dir=tmp_path / "cache", progress=False)
    flips = make_augmentation(
        "list", 2, plan, transforms=[{"name": "D4", "p": 1.0}, {"name": "Affine", "scale": [1.2, 1.5]}]
    )
    for split in make_splits(dataset, folds=3, group_by="patient"):
        seen = [set(), set()]
        for found, side in zip(seen, ("train", "val"), strict=True):
            sampler = PatchDataset(prepared, plan, split[side], augment=flips)
            for index in range(40):
                sample = sampler[index]
                found.add(float(sample["image"].max()))  # the grey level: padding is 0
                assert sample["case"] in split[side]
        assert seen[0]
        assert not seen[0] & seen[1]


def test_images_of_a_fixed_size_come_back_in_their_own(tmp_path):
    root = pictures(tmp_path / "data", 6, lambda number: 40 * number)
    (root / "val.txt").write_text("c05\n")
    words = [f"data={root}", "plan.size=[32,64]", "target.binary=true", f"cache_dir={tmp_path / 'cache'}", *TINY]
    folder = fit(
        compose("train", [*words, "plan.normalization=unit", "augmentation=flips", f"run_dir={tmp_path / 'run'}"])
    )
    plan = read_json(folder / "plan.json")
    assert (plan["size"], plan["patch_size"], plan["color"]) == ([32, 64], [32, 64], "keep")
    assert plan["normalization"] == [{"scheme": "unit", "full": 255.0}]
    output = tmp_path / "out"
    assert run(["predict", f"model={folder}", f"input={root}", "cases=c0[45]", f"output={output}", "device=cpu"]) == 0
    assert sorted(path.name for path in output.glob("*.png")) == ["c04.png", "c05.png"]
    assert read_labels(output / "c04.png").spatial_shape == (40, 36)
    (output / "c04.png").unlink()
    assert run(["evaluate", f"predictions={output}", f"references={root}", f"output={tmp_path / 'eval'}"]) == 0
    summary = read_json(tmp_path / "eval" / "summary.json")
    assert len(summary["metric_per_case"]) == 1  # the validation case alone, as val.txt says
    assert set(summary["pooled"]["1"]) >= {"Dice", "Recall"}


@pytest.mark.realdata
def test_skin_lesions_run_through_all_commands(shared_data, tmp_path):
    source, root = shared_data / "isic2017_256", tmp_path / "few"
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
        for path in sorted((source / part).iterdir())[:8]:
            shutil.copy(path, root / part)
    names = sorted(path.stem for path in (root / "images").iterdir())
    (root / "val.txt").write_text("\n".join(names[6:]))
    assert run(["check", f"data={root}"]) == 0
    words = [f"data={root}", "target.binary=true", "augmentation=dermoscopy", "plan.size=[64,64]", "plan.batch_size=2"]
    folder = tmp_path / "run"
    assert run(["train", *words, *TINY, f"cache_dir={tmp_path / 'cache'}", f"run_dir={folder}"]) == 0
    output, found = tmp_path / "out", tmp_path / "eval"
    official = "postprocess=[{operation: opening, label: 1, size: 6}, {operation: fill_holes, label: 1}]"
    words = [f"input={root}", f"output={output}", "threshold=0.43", official]
    assert run(["predict", f"model={folder}", *words]) == 0
    assert read_labels(output / f"{names[0]}.png").spatial_shape == (256, 256)
    words = [f"references={root}", f"output={found}", "metrics=[dice,recall,specificity,accuracy]"]
    assert run(["evaluate", f"predictions={output}", *words]) == 0
    pooled = read_json(found / "summary.json")["pooled"]["1"]
    assert {"Dice", "Recall", "Specificity", "Accuracy"} <= set(pooled)


@pytest.mark.realdata
def test_slices_of_chaos(shared_data, tmp_path):
    source, root = shared_data / "Dataset038_CHAOS_MR", tmp_path / "Dataset038_Few"
    for part in ("imagesTr", "labelsTr"):
        (root / part).mkdir(parents=True)
        for path in sorted((source / part).iterdir())[:3]:
            shutil.copy(path, root / part)
    description = read_json(source / "dataset.json")
    (root / "dataset.json").write_text(json.dumps({**description, "numTraining": 3}))
    words = [f"data={root}", "data.slices=axial", f"cache_dir={tmp_path / 'cache'}", "data.folds=3"]
    folder = fit(
        compose(
            "train", [*words, "plan.patch_size=[64,64]", "plan.spacing=[5,5,7.7]", *TINY, f"run_dir={tmp_path / 'run'}"]
        )
    )
    summary = read_json(folder / "validation" / "summary.json")
    assert set(summary["mean"]) == {"1", "2", "3", "4"}
    assert all("HD95" in organ for organ in summary["mean"].values())
    case = read_json(folder / "splits_final.json")[0]["val"][0]
    predicted = read_geometry(folder / "validation" / f"{case}.nii.gz")
    assert predicted.difference(read_geometry(root / "labelsTr" / f"{case}.nii.gz"), 1e-6) is None

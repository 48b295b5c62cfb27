"""MONAI's own runner executes our bundles; step for step its transforms do what the predictor does."""

from __future__ import annotations

import copy
import itertools
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation

from medseg.data.plan import Plan
from medseg.data.preprocess import preprocess
from medseg.device import choose_profile
from medseg.errors import UnreadableFile, UsageError
from medseg.inference import Predictor
from medseg.inference.bundle_config import inference_config
from medseg.inference.export import export_model
from medseg.inference.export_bundle import metadata
from medseg.inference.member import Member
from medseg.inference.postprocess import postprocess
from medseg.io import Geometry, Volume, read_json, read_labels, read_volume, save_model, write_volume
from medseg.models import create_model
from medseg.targets import ExclusiveClasses, NestedClasses, Regions, Target

LABELS = {"background": 0, "liver": 2, "lesion": 5}
# Permuted, flipped and oblique, and no spacing a multiple of the plan's.
AFFINE = np.eye(4)
AFFINE[:3, :3] = Rotation.from_euler("xyz", (8, -5, 95), degrees=True).as_matrix() * (1.2, -1.0, 2.6)
AFFINE[:3, 3] = 3, -5, 7
CT = {"scheme": "ct", "lower": -200.0, "upper": 300.0, "mean": 40.0, "std": 80.0}


def plan(**changes: Any) -> Plan:
    settings = {
        "dataset": "d", "spatial_dims": 3, "channel_names": ["MR"], "labels": LABELS, "ignore_label": None,
        "spacing": [1.3, 1.1, 2.0], "patch_size": [16, 16, 8], "batch_size": 1, "strides": [[1, 1, 1], [2, 2, 2]],
        "normalization": [{"scheme": "zscore"}], "crop_nonzero": False, "mirror_axes": [], "mirror_swaps": {},
    }  # fmt: skip
    return Plan.from_dict({**settings, **changes})


def member(target: Target | None = None, operations: Sequence[dict[str, Any]] = (), **changes: Any) -> Member:
    target = target or ExclusiveClasses(labels=LABELS)
    return Member(torch.nn.Identity(), plan(**changes), target, choose_profile("cpu", "fp32"), tuple(operations))


def scan(shape: tuple[int, ...], channels: int = 1, seed: int = 0) -> Volume:
    """Smooth voxels with zeros around them, which differ between channels."""
    rng = np.random.default_rng(seed)
    array = ndimage.gaussian_filter(rng.normal(size=(channels, *shape)), (0, 2, 2, 2)) * 2000
    array[:, :2], array[..., -3:] = 0, 0
    for channel in range(channels):
        array[channel, :, : 3 + channel] = 0
    return Volume(array.astype(np.float32), Geometry(shape, AFFINE))


def parsed(config: dict[str, Any], name: str) -> Any:
    """A part of the config, built by MONAI."""
    from monai.bundle import ConfigParser

    parser = ConfigParser({**copy.deepcopy(config), "device": "$torch.device('cpu')"})
    return parser.get_parsed_content(name)


NORMALIZATIONS: dict[str, list[dict[str, Any]]] = {
    "none": [{"scheme": "none"}],
    "zscore": [{"scheme": "zscore", "nonzero": False}],
    "zscore of tissue": [{"scheme": "zscore", "nonzero": True}],
    "ct": [CT],
    "percentile": [{"scheme": "percentile", "lower": 1.0, "upper": 99.0}],
    "two z-scores": [{"scheme": "zscore"}, {"scheme": "zscore"}],
    "two z-scores of tissue": [{"scheme": "zscore", "nonzero": True}, {"scheme": "zscore", "nonzero": True}],
    "two percentiles": [{"scheme": "percentile"}, {"scheme": "percentile"}],
    "ct, z-score, none": [CT, {"scheme": "zscore"}, {"scheme": "none"}],
}


SLICES = {"slice_axis": 1, "patch_size": [16, 1, 8], "strides": [[1, 1, 1], [2, 1, 2]]}
GRIDS: list[dict[str, Any]] = [
    *({"crop_nonzero": crop, "normalization": each} for crop in (False, True) for each in NORMALIZATIONS.values()),
    SLICES,
    {**SLICES, "size": [20, 12]},
    {"size": [20, 24, 12]},
]


@pytest.mark.parametrize("settings", GRIDS)
def test_preprocessing_and_its_inverse_are_ours(tmp_path: Path, settings: dict[str, Any]) -> None:
    schemes = settings.get("normalization", [{"scheme": "zscore"}])
    trained = member(**settings, channel_names=[f"c{i}" for i in range(len(schemes))])
    volume = scan((23, 30, 17), len(schemes))
    write_volume(tmp_path / "a.nii.gz", volume)
    array, done = preprocess(read_volume(tmp_path / "a.nii.gz"), trained.plan)
    config = inference_config(trained)
    transforms = parsed(config, "preprocessing")
    image = transforms({"image": tmp_path / "a.nii.gz"})["image"]
    np.testing.assert_allclose(image.numpy(), array, rtol=1e-4, atol=2e-4)
    back = transforms.inverse({"image": image})["image"]
    assert tuple(back.shape[1:]) == volume.spatial_shape
    np.testing.assert_allclose(back.affine, AFFINE, atol=1e-6)
    assert done.resampled_shape == tuple(image.shape[1:])


def test_channels_come_from_their_files(tmp_path: Path) -> None:
    trained = member(normalization=[CT, {"scheme": "zscore"}], channel_names=["CT", "PET"])
    volume = scan((12, 13, 14), 2)
    for case, channel in itertools.product(("a", "b"), range(2)):
        one = Volume(volume.array[channel : channel + 1], volume.geometry)
        write_volume(tmp_path / f"{case}_000{channel}.nii.gz", one)
    config = {**inference_config(trained), "dataset_dir": str(tmp_path)}
    files = parsed(config, "datalist")
    assert [[Path(file).name for file in case] for case in files] == [
        ["a_0000.nii.gz", "a_0001.nii.gz"],
        ["b_0000.nii.gz", "b_0001.nii.gz"],
    ]
    image = parsed(config, "preprocessing")({"image": files[0]})["image"]
    np.testing.assert_allclose(image.numpy(), preprocess(volume, trained.plan)[0], rtol=1e-4, atol=2e-4)


TUMOUR = {"background": 0, "necrosis": 1, "edema": 2, "enhancing": 4}
TUMOUR_REGIONS = {"whole": [2, 1, 4], "core": [1, 4], "enhancing": [4]}


@pytest.mark.parametrize(
    "target",
    [
        ExclusiveClasses(labels=LABELS),
        ExclusiveClasses(labels={"background": 0, "organ": 7}, binary=True),
        ExclusiveClasses(labels={"background": 0, "organ": 7}, binary=True, threshold=0.8),
        Regions(labels=TUMOUR, regions=TUMOUR_REGIONS),
        NestedClasses(labels=TUMOUR, regions=TUMOUR_REGIONS),
    ],
    ids=["softmax", "binary", "threshold", "regions", "nested"],
)
def test_probabilities_are_decoded_as_ours(target: ExclusiveClasses | Regions | NestedClasses) -> None:
    from monai.data import MetaTensor

    torch.manual_seed(0)
    config = inference_config(member(target, labels=target.labels))
    steps = [
        t for t in parsed(config, "postprocessing").transforms if type(t).__name__ not in ("Invertd", "SaveImaged")
    ]
    logits = torch.randn(1, target.out_channels, 5, 6, 7)
    data: dict[str, Any] = {"pred": MetaTensor(logits[0])}
    for step in steps:
        data = step(data)
    expected = target.decode(target.activate(logits))
    assert len(expected.unique()) == len(target.labels)
    assert torch.equal(data["pred"].as_tensor()[0].to(expected.dtype), expected[0])


OPERATIONS = [
    {"operation": "largest_component", "label": 2},
    {"operation": "fill_holes", "label": 2},
    {"operation": "minimum_size", "label": 5, "ml": 0.02},
]


@pytest.mark.parametrize("chosen", [[0], [1], [2], [2, 0, 1]])
def test_postprocessing_is_ours(chosen: list[int]) -> None:
    from monai.data import MetaTensor

    operations = [OPERATIONS[i] for i in chosen]
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(20, 21, 22)), 1.2)
    labels = np.select([noise > 0.08, noise < -0.08], [2, 5], 0).astype(np.uint8)
    labels[4:11, 4:11, 4:11] = 2
    labels[6, 6, 6:8] = 0, 5  # of a hole only the background is filled
    config = inference_config(member(operations=operations))
    steps = parsed(config, "postprocessing").transforms[-1 - len(operations) : -1]
    data: dict[str, Any] = {"pred": MetaTensor(torch.from_numpy(labels)[None].float(), affine=np.diag([1, 1.5, 2, 1]))}
    for step in steps:
        data = step(data)
    expected = postprocess(labels, operations, (1, 1.5, 2))
    assert not np.array_equal(expected, labels), "the operations should change something"
    np.testing.assert_array_equal(data["pred"].numpy()[0], expected)


@pytest.mark.parametrize(
    ("build", "feature"),
    [
        (lambda: member(spatial_dims=2, spacing=[1, 1], patch_size=[8, 8], strides=[[1, 1], [2, 2]]), "2D models"),
        (
            lambda: member(channel_names=["a", "b"], normalization=[CT, {"scheme": "percentile"}]),
            "normalization ct with percentile",
        ),
        (
            lambda: member(channel_names=["a", "b"], normalization=[CT, {"scheme": "zscore", "nonzero": True}]),
            "normalization ct with tissue",
        ),
        (lambda: member(operations=[{"operation": "new", "label": 2}]), "post-processing 'new'"),
    ],
)
def test_what_cannot_be_expressed_is_named(build: Callable[[], Member], feature: str) -> None:
    with pytest.raises(UsageError, match=f"cannot hold {feature}"):
        inference_config(build())


@pytest.mark.parametrize(
    "changes",
    [
        {"normalization": [{**CT, "lower": "__import__('os').mkdir('canary')"}]},
        {"normalization": [{**CT, "mean": "$__import__('os').mkdir('canary')"}]},
        {"operations": [{"operation": "fill_holes", "label": "__import__('os').mkdir('canary')"}]},
        {"operations": [{"operation": "minimum_size", "label": 2, "ml": "1) or print(1"}]},
    ],
)
def test_code_in_a_model_folder_does_not_enter_the_bundle(changes: dict[str, Any]) -> None:
    with pytest.raises(UnreadableFile, match="expected a number"):
        inference_config(member(**changes))


def test_names_do_not_become_expressions() -> None:
    evil = {"$__import__('os').mkdir('canary')": 0, "@bundle_root": 2, "%/etc/passwd": 5}
    trained = member(ExclusiveClasses(labels=evil), labels=evil, channel_names=["$1/0"], dataset="%%$open('canary')")
    found = metadata(trained, {"model": {"name": "unet"}})

    def strings(data: Any) -> list[str]:
        if isinstance(data, dict):
            return [text for value in data.values() for text in strings(value)]
        return [text for value in data for text in strings(value)] if isinstance(data, list) else [str(data)]

    assert not [text for text in strings(found) if text[:1] in "$@%" and text]
    assert found["data_source"] == "open('canary')"


def taught(model: dict[str, Any]) -> torch.nn.Module:
    """A network that has learnt in two seconds to sort voxels by their intensity: its classes have clear edges."""
    torch.manual_seed(0)
    network = create_model(**model)
    volume = torch.from_numpy(preprocess(scan((60, 60, 60), seed=1), plan())[0])
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for step in range(120):
        images = volume[None, :, step % 20 : step % 20 + 16, 20:36, step % 60 : step % 60 + 8]
        target = (images[:, 0] > -0.6).long() + (images[:, 0] > 0.3)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(images), target).backward()
        optimizer.step()
    return network


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle, its model and two images: windows of the first lie where ours lie, those of the second do not."""
    root = tmp_path_factory.mktemp("bundle")
    model = {"name": "unet_classic", "spatial_dims": 3, "in_channels": 1, "out_channels": 3, "base_channels": 8}
    model |= {"strides": [[1, 1, 1], [2, 2, 2]], "dropout": 0.0}
    state = taught(model).state_dict()
    operations = [{"operation": "minimum_size", "label": 2, "ml": 0.01}]
    save_model(
        root / "model",
        state,
        {
            "model": model, "plan": plan(crop_nonzero=True).to_dict(), "postprocessing": operations,
            "target": ExclusiveClasses(labels=LABELS).to_dict(), "metrics": {"Dice": 0.9, "HD95": float("nan")},
        },
    )  # fmt: skip
    write_volume(root / "images" / "same.nii.gz", scan((15, 13, 8)))
    write_volume(root / "images" / "other.nii.gz", scan((33, 41, 19)))
    export_model(root / "model", root / "exported", "monai")
    return root


def monai_starts(size: int, patch: int, overlap: float) -> list[int]:
    """MONAI's windows: one step after the other, the last moved back into the image; ours are spread evenly."""
    step = int(patch * (1 - overlap))
    return [min(start, size - patch) for start in range(0, max(size - patch, 0) + step, step)] if size > patch else [0]


def test_monai_runs_the_bundle_and_finds_our_labels(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The very same voxels where the windows lie alike.

    Elsewhere a voxel is the mean of other windows, and those on the edge of a class may fall on the other side: with
    MONAI's windows in our predictor they do not.
    """
    pytest.importorskip("ignite")
    pytest.importorskip("fire")
    words = ["--config_file", "configs/inference.json", "--dataset_dir", "../images", "--output_dir", "../found"]
    environment = {**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", *words],
        cwd=bundle / "exported", env=environment, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    predictor = Predictor.from_pretrained(bundle / "model", device="cpu", precision="fp32")

    def dice(name: str) -> list[float]:
        ours = predictor.predict(bundle / "images" / f"{name}.nii.gz")
        theirs = read_labels(bundle / "found" / f"{name}_seg.nii.gz")
        assert ours.geometry.difference(theirs.geometry, 1e-4) is None
        pairs = [(ours.labels == value, theirs.array[0] == value) for value in LABELS.values()]
        return [2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in pairs]

    assert dice("same") == [1, 1, 1]
    assert np.mean(dice("other")) >= 0.98
    monkeypatch.setattr("medseg.inference.sliding_window.window_starts", monai_starts)
    assert min(dice("other")) >= 0.9999


def test_monai_finds_all_that_a_bundle_must_have(bundle: Path) -> None:
    pytest.importorskip("ignite")
    from monai.bundle import ConfigWorkflow

    root = bundle / "exported"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        workflow = ConfigWorkflow(
            str(root / "configs" / "inference.json"),
            logging_file=False,
            workflow_type="infer",
            bundle_root=str(root),
            dataset_dir=str(bundle / "images"),
        )
        workflow.initialize()
        assert not workflow.check_properties()
    assert workflow.channel_def == {"0": "background", "1": "liver", "2": "lesion"}
    assert workflow.network_def(torch.zeros(2, 1, 16, 16, 8)).shape == (2, 3, 16, 16, 8)
    files = sorted(str(path.relative_to(root)) for path in root.rglob("[!.]*") if path.is_file())  # beside our ledgers
    assert files == ["LICENSE", "configs/inference.json", "configs/metadata.json", "docs/README.md", "models/model.ts"]


def test_the_metadata_have_all_keys_of_the_schema(bundle: Path) -> None:
    found = read_json(bundle / "exported" / "configs" / "metadata.json")
    required = {"schema", "version", "monai_version", "pytorch_version", "numpy_version", "required_packages_version"}
    assert required | {"task", "description", "authors", "copyright", "network_data_format"} <= set(found)
    assert found["eval_metrics"] == {"Dice": 0.9}
    tensors = found["network_data_format"]
    for tensor, channels in ((tensors["inputs"]["image"], 1), (tensors["outputs"]["pred"], 3)):
        keys = {"type", "format", "num_channels", "spatial_shape", "dtype", "value_range", "is_patch_data"}
        assert keys | {"channel_def"} <= set(tensor)
        assert tensor["num_channels"] == len(tensor["channel_def"]) == channels
        assert tensor["spatial_shape"] == [16, 16, 8]

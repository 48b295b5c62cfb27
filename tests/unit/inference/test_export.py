"""An exported ONNX folder is a model folder: the predictor runs it, gives the same labels, refuses what is not it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medseg.cli import main
from medseg.data.plan import Plan
from medseg.errors import UnreadableFile, UsageError
from medseg.inference import Predictor
from medseg.inference.export import export_model
from medseg.inference.onnx_network import OnnxNetwork
from medseg.io import load_onnx, read_json, save_model, write_json
from medseg.io.ledger import LEDGER
from medseg.models import create_model
from medseg.targets import ExclusiveClasses

pytest.importorskip("onnxruntime")
LABELS = {"background": 0, "left": 2, "right": 5}


def write_model(folder: Path, seed: int = 0, slices: bool = False) -> Path:
    torch.manual_seed(seed)
    strides = [[1, 1, 1], [2, 2, 1 if slices else 2]]
    changes: dict[str, Any] = {"slice_axis": 2, "patch_size": [16, 16, 1], "size": [24, 20]} if slices else {}
    plan = Plan.from_dict(
        {
            "dataset": "d", "spatial_dims": 3, "channel_names": ["MR"], "labels": LABELS, "ignore_label": None,
            "spacing": [1.0, 1.0, 1.5], "patch_size": [16, 16, 8], "batch_size": 1, "strides": strides,
            "normalization": [{"scheme": "zscore"}], "crop_nonzero": False, "mirror_axes": [0],
            "mirror_swaps": {"0": [[2, 5]]}, **changes,
        }
    )  # fmt: skip
    dims = 2 if slices else 3
    model = {"name": "unet", "spatial_dims": dims, "in_channels": 1, "out_channels": 3, "base_channels": 4}
    model["strides"] = [stage[:dims] for stage in strides]
    network = create_model(**model)
    operations = [{"operation": "largest_component", "label": 2}]
    description = {"model": model, "plan": plan.to_dict(), "postprocessing": operations}
    save_model(folder, network.state_dict(), {**description, "target": ExclusiveClasses(labels=LABELS).to_dict()})
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("trained") / "model")


@pytest.fixture(scope="module")
def exported(model: Path) -> Path:
    (folder,) = export_model(model, model.parent / "onnx")
    return folder


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(20, 17, 18)).astype(np.float32)


@pytest.mark.parametrize("settings", [{}, {"tta": True, "window_batch": 3}])
def test_the_predictor_gives_the_same_with_either(model: Path, exported: Path, image: np.ndarray, settings) -> None:
    expected, found = (
        Predictor.from_pretrained(folder, precision="fp32", device="cpu", **settings).predict(
            image, spacing=(1, 1, 2), probabilities=True
        )
        for folder in (model, exported)
    )
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-4)
    assert (found.labels == expected.labels).mean() > 0.999
    assert found.memory["predicted"] == expected.memory["predicted"]


def test_a_network_of_slices_gives_the_same(tmp_path: Path, image: np.ndarray) -> None:
    trained = write_model(tmp_path / "trained", slices=True)
    (folder,) = export_model(trained, tmp_path / "onnx")
    expected, found = (
        Predictor.from_pretrained(each, precision="fp32", device="cpu").predict(
            image, spacing=(1, 1, 2), probabilities=True
        )
        for each in (trained, folder)
    )
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-4)
    assert len(np.unique(expected.labels)) > 1


def test_no_torch_network_is_built(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**arguments: object) -> None:
        raise AssertionError("built a network")

    monkeypatch.setattr("medseg.inference.member.create_model", refuse)
    predictor = Predictor.from_pretrained(exported, device="cpu", threads=1)
    assert str(predictor.profile) == "cpu, fp32, contiguous, 1 threads (ONNX Runtime, CPUExecutionProvider)"
    network = predictor.members[0].network
    assert isinstance(network, OnnxNetwork)
    assert network._session.get_session_options().intra_op_num_threads == 1


def test_the_description_goes_along(model: Path, exported: Path) -> None:
    before, after = read_json(model / "model.json"), read_json(exported / "model.json")
    assert {key: after[key] for key in before if key != "weights_sha256"} == {
        key: before[key] for key in before if key != "weights_sha256"
    }
    assert after["onnx"]["opset"] == 18
    assert after["onnx"]["largest_difference"] <= 1e-4
    assert {path.name for path in exported.iterdir()} == {"model.json", "model.onnx", LEDGER}


def test_folds_stay_an_ensemble(tmp_path: Path, image: np.ndarray) -> None:
    for fold in (0, 1):
        write_model(tmp_path / "run" / f"fold_{fold}", seed=fold)
    folders = export_model(tmp_path / "run", tmp_path / "out")
    assert [folder.name for folder in folders] == ["fold_0", "fold_1"]
    predictor = Predictor.from_pretrained([tmp_path / "out", tmp_path / "run" / "fold_0"], device="cpu")
    assert len(predictor.members) == 3
    assert predictor.predict(image, spacing=(1, 1, 1)).labels.shape == image.shape


def test_a_network_of_another_size_than_described_is_refused(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes((exported / "model.onnx").read_bytes())
    description = read_json(exported / "model.json")
    description["plan"]["patch_size"] = [8, 8, 8]
    write_json(tmp_path / "model.json", description)
    with pytest.raises(UnreadableFile, match=r"\[1, 16, 16, 8\]"):
        Predictor.from_pretrained(tmp_path, device="cpu")


def test_what_onnx_runtime_cannot_run_is_refused(exported: Path) -> None:
    content = load_onnx(exported)[0].replace(b"InstanceNormalization", b"InstanceNormalizatioX")
    with pytest.raises(UnreadableFile, match="ONNX Runtime cannot run") as caught:
        OnnxNetwork(content, device=torch.device("cpu"), threads=1)
    assert "\n" not in str(caught.value)


def test_a_gpu_without_its_provider_is_said(exported: Path, caplog: pytest.LogCaptureFixture) -> None:
    content, _ = load_onnx(exported)
    network = OnnxNetwork(content, device=torch.device("mps"), threads=1)
    assert "no provider for mps" in caplog.text
    assert network.profile.device.type == "cpu"


@pytest.mark.parametrize("format", ["onnx", "monai"])
def test_a_wrong_export_is_not_written(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format) -> None:
    def off(function: Callable) -> Callable:
        return lambda *args, **kwargs: lambda images: function(*args, **kwargs)(images) + 1e-2

    monkeypatch.setattr("medseg.inference.export.OnnxNetwork", off(OnnxNetwork))
    monkeypatch.setattr("torch.jit.trace", off(torch.jit.trace))
    with pytest.raises(UsageError, match=r"differs by 0\.0\d+ of the largest logit"):
        export_model(model, tmp_path / "out", format)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_exported(model: Path, exported: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="exported already"):
        export_model(exported, tmp_path)
    with pytest.raises(UsageError, match="is an input"):
        export_model(model, model)
    with pytest.raises(UsageError, match="did you mean 'monai'"):
        export_model(model, tmp_path, "mona")


def test_weights_beyond_two_gibibytes_are_refused(model: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("medseg.inference.export.LARGEST_ONNX", 1000)
    with pytest.raises(UsageError, match="ONNX holds 2 in one file"):
        export_model(model, tmp_path)


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_the_extra_is_named_where_it_is_missing(exported: Path, monkeypatch: pytest.MonkeyPatch, package) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=r'pip install "medseg\[onnx\]"'):
        Predictor.from_pretrained(exported, device="cpu")


def test_the_extra_is_named_for_the_export_too(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx_ir.passes.common", None)
    with pytest.raises(UsageError, match=r'pip install "medseg\[onnx\]"'):
        export_model(model, tmp_path)


def test_the_command(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["export", f"model={model}", f"output={tmp_path / 'out'}"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"medseg: {tmp_path / 'out'} written, its logits are those of {model}\n"
    assert (tmp_path / "out" / "model.onnx").is_file()

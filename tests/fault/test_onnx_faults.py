"""Hostile and damaged ONNX model folders: refused before ONNX Runtime sees them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from medseg.errors import UnreadableFile, UnsafeArtefact, UsageError
from medseg.io import holds_onnx, load_onnx, read_json, save_model, save_onnx

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper  # noqa: E402


def network(weight: TensorProto | None = None, nodes: list | None = None, domain: str = "") -> onnx.ModelProto:
    """y = x + w."""
    value = helper.make_tensor_value_info
    weight = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0]) if weight is None else weight
    nodes = [helper.make_node("Add", ["x", "w"], ["y"])] if nodes is None else nodes
    io = [value("x", TensorProto.FLOAT, [1])], [value("y", TensorProto.FLOAT, [1])]
    graph = helper.make_graph(nodes, "g", *io, initializer=[weight])
    opsets = [helper.make_opsetid("", 18), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=opsets)


def elsewhere(location: str) -> TensorProto:
    """A tensor whose numbers lie in another file."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    return tensor


def test_a_folder_comes_back(tmp_path: Path) -> None:
    content = network().SerializeToString()
    save_onnx(tmp_path, content, {"plan": {"a": 1}})
    assert holds_onnx(tmp_path)
    assert load_onnx(tmp_path) == (content, {"plan": {"a": 1}})
    assert read_json(tmp_path / "model.json")["weights_sha256"] == hashlib.sha256(content).hexdigest()


def test_a_flipped_byte_is_found(tmp_path: Path) -> None:
    save_onnx(tmp_path, network().SerializeToString(), {})
    content = bytearray((tmp_path / "model.onnx").read_bytes())
    content[-1] ^= 1
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(UnsafeArtefact, match="SHA-256") as caught:
        load_onnx(tmp_path)
    assert caught.value.exit_code == 5


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "weights.bin"])
def test_weights_in_other_files_are_refused(tmp_path: Path, location: str) -> None:
    save_onnx(tmp_path, network(elsewhere(location)).SerializeToString(), {})
    with pytest.raises(UnsafeArtefact, match="in another file"):
        load_onnx(tmp_path)


def constant(location: str) -> list:
    return [helper.make_node("Constant", [], ["w2"], value=elsewhere(location))]


def branches(location: str) -> list:
    graph = helper.make_graph(constant(location), "branch", [], [])
    return [helper.make_node("If", ["c"], ["w2"], then_branch=graph, else_branch=graph)]


@pytest.mark.parametrize("hide", [constant, branches])
def test_weights_of_other_files_are_found_within_nodes(tmp_path: Path, hide: Callable[[str], list]) -> None:
    save_onnx(tmp_path, network(nodes=hide("../secret")).SerializeToString(), {})
    with pytest.raises(UnsafeArtefact, match=r"'\.\./secret'"):
        load_onnx(tmp_path)


def test_weights_of_other_files_are_found_within_functions(tmp_path: Path) -> None:
    model = network()
    model.functions.append(helper.make_function("", "F", [], ["w2"], constant("../secret"), model.opset_import))
    save_onnx(tmp_path, model.SerializeToString(), {})
    with pytest.raises(UnsafeArtefact, match="in another file"):
        load_onnx(tmp_path)


def test_operators_that_need_a_library_are_refused(tmp_path: Path) -> None:
    save_onnx(tmp_path, network(domain="com.example").SerializeToString(), {})
    with pytest.raises(UnsafeArtefact, match=r"'com\.example'"):
        load_onnx(tmp_path)


def test_what_is_no_onnx(tmp_path: Path) -> None:
    save_onnx(tmp_path, b"\xffnothing", {})
    with pytest.raises(UnreadableFile, match="not an ONNX model"):
        load_onnx(tmp_path)


def test_a_trained_model_keeps_its_folder(tmp_path: Path) -> None:
    save_model(tmp_path, {}, {})
    with pytest.raises(UsageError, match="holds a trained model"):
        save_onnx(tmp_path, b"", {})
    assert not holds_onnx(tmp_path)

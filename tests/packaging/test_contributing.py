"""CONTRIBUTING.md is right: its model keeps the contract, its config composes, and nothing else needs to be edited."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from medseg.compose import compose
from medseg.errors import UsageError
from medseg.models import MODELS, create_model
from medseg.models.table import describe
from medseg.testing import check_model

GUIDE = (Path(__file__).resolve().parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)
    assert found
    return found[1]


@pytest.fixture
def tiny_net(tmp_path, monkeypatch):
    """The guide's file, imported; the registry forgets it afterwards, for the sweeps of other tests."""
    path = tmp_path / "tiny_net.py"
    path.write_text(block("python").replace('register("tiny_net")', 'register("guide_tiny_net")'))
    MODELS.names()
    monkeypatch.setattr(MODELS, "_factories", dict(MODELS._factories))
    spec = importlib.util.spec_from_file_location("guide_tiny_net", path)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    return "guide_tiny_net"


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_its_model_keeps_the_contract(tiny_net, spatial_dims):
    model = create_model(tiny_net, spatial_dims=spatial_dims, in_channels=2, out_channels=3, width=4)
    check_model(model, spatial_dims=spatial_dims, in_channels=2, out_channels=3)
    assert describe(tiny_net).source == "CONTRIBUTING.md"


def test_its_config_holds_arguments_of_its_model(tiny_net, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "tiny_net.yaml").write_text(block("yaml"))
    settings = compose("train", ["model=tiny_net", "model.width=8"], str(tmp_path))["model"]
    assert settings == {"name": "tiny_net", "width": 8, "layers": 3}
    assert set(settings) - {"name"} <= MODELS.arguments(tiny_net)
    with pytest.raises(UsageError, match="has no argument 'depht'"):
        create_model(tiny_net, depht=1)


def test_its_model_is_found_as_a_plugin(tmp_path):
    (tmp_path / "tiny_net.py").write_text(block("python"))
    words = [sys.executable, "-m", "medseg.cli", "models", "pattern=tiny*", "plugins=[tiny_net]"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "tiny_net" in done.stdout


def test_its_model_passes_the_style_checks(tmp_path):
    path = tmp_path / "tiny_net.py"
    path.write_text(block("python"))
    settings = str(Path(__file__).resolve().parents[2] / "pyproject.toml")
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--config", settings, str(path)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr

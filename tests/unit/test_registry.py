"""Names in, parts out: discovery by file, one owner per name, and the nearest right name for a wrong one."""

from __future__ import annotations

import importlib.metadata
import sys
from types import SimpleNamespace

import pytest

from medseg.blocks.skip import MERGES
from medseg.errors import UsageError
from medseg.evaluation.metrics import METRICS
from medseg.losses import LOSSES
from medseg.models import MODELS
from medseg.registry import Registry
from medseg.targets import TARGETS


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of one module that registers one part with the registry that the package holds."""
    folder = tmp_path / "toy_parts"
    folder.mkdir()
    (folder / "__init__.py").write_text(
        "from medseg.registry import Registry\nPARTS = Registry('part', 'toy_parts')\nloaded = []\n"
    )
    (folder / "cube.py").write_text(
        "import toy_parts\ntoy_parts.loaded.append('cube')\n\n"
        "@toy_parts.PARTS.register('cube')\ndef cube(*, side=1.0, colour='red'):\n    return (side, colour)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("toy_parts")
    for name in [name for name in sys.modules if name.split(".")[0] == "toy_parts"]:
        del sys.modules[name]


def test_a_part_is_found_because_its_file_is_there_and_not_before_it_is_asked_for(package):
    assert package.loaded == []
    assert package.PARTS.names() == ["cube"]
    assert package.loaded == ["cube"]
    assert package.PARTS.build("cube", side=2.0) == (2.0, "red")
    assert package.PARTS.arguments("cube") == {"side", "colour"}


def test_wrong_names_and_arguments_name_the_nearest(package):
    with pytest.raises(UsageError, match=r"unknown part 'cubes': did you mean 'cube'\? \(known: cube\)"):
        package.PARTS.build("cubes")
    with pytest.raises(UsageError, match=r"part 'cube' has no argument 'color': did you mean 'colour'\?"):
        package.PARTS.build("cube", color="blue")


def test_a_name_has_one_owner(package):
    owner = package.PARTS.get("cube")
    assert package.PARTS.register("cube")(owner) is owner
    with pytest.raises(UsageError, match="'cube' is registered twice"):
        package.PARTS.register("cube")(dict)
    assert package.PARTS.get("cube") is owner


def test_other_distributions_add_theirs_by_entry_point(package, monkeypatch):
    asked = []

    def entry_points(*, group):
        asked.append(group)
        return [SimpleNamespace(name="ball", load=lambda: lambda *, radius: radius)]

    monkeypatch.setattr("medseg.registry.entry_points", entry_points)
    assert package.PARTS.names() == ["ball", "cube"]
    assert package.PARTS.build("ball", radius=3) == 3
    assert asked == ["toy_parts"]


def test_the_real_entry_point_group_is_named_like_the_package():
    assert not importlib.metadata.entry_points(group="medseg.models")


@pytest.mark.parametrize("registry", [MODELS, TARGETS, LOSSES, METRICS, MERGES], ids=lambda registry: registry.kind)
def test_every_registered_factory_is_documented_and_keyword_only(registry: Registry):
    assert registry.names()
    for name in registry.names():
        factory = registry.get(name)
        assert (getattr(factory, "__doc__", None) or "").strip(), f"{registry.kind} {name} has no docstring"
        assert not {"args", "kwargs"} & registry.arguments(name), f"{registry.kind} {name} swallows arguments"

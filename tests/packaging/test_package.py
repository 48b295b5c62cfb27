"""What is installed is what git holds: package list, wheel, and configs that compose away from the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MAPPED = {"medseg": "medseg", "configs": "medseg/configs", "kernels": "medseg/kernels"}  # in git: in the wheel


def run(*words: str, cwd: Path, **environment: str) -> str:
    """Output of a command that must succeed."""
    done = subprocess.run(
        words, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tracked() -> set[str]:
    """Files under the shipped folders as git knows them, by their place in the wheel."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    names = run("git", "ls-files", *MAPPED, cwd=ROOT).splitlines()
    parts = [(name.partition("/")[0], name.partition("/")[2]) for name in names if (ROOT / name).exists()]
    return {f"{MAPPED[top]}/{rest}" for top, rest in parts}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built without network from a copy of the shipped files, so that the checkout stays clean."""
    source, output = tmp_path_factory.mktemp("source") / "with a space", tmp_path_factory.mktemp("wheel")
    source.mkdir()
    names = run("git", "ls-files", *MAPPED, "pyproject.toml", "README.md", "LICENSE", cwd=ROOT).splitlines()
    for name in names:
        if (ROOT / name).exists():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", str(output), str(source), cwd=output)
    return next(output.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The wheel, installed into a folder of its own."""
    target = tmp_path_factory.mktemp("site") / "packages"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--disable-pip-version-check"]
    run(*pip, "--target", str(target), str(wheel), cwd=target.parent)
    return target


def test_the_package_list_is_the_folders():
    folders = {"medseg.configs", "medseg.kernels"}
    folders |= {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "medseg").rglob("__init__.py")}
    assert sorted(SETTINGS["tool"]["setuptools"]["packages"]) == sorted(folders)


def test_every_folder_with_modules_is_a_package():
    for path in (ROOT / "medseg").rglob("*.py"):
        assert (path.parent / "__init__.py").exists(), f"{path.parent} has no __init__.py and would not be shipped"


def test_the_wheel_holds_what_git_holds(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == tracked()


def test_the_wheel_carries_licence_and_entry_point(wheel):
    archive = zipfile.ZipFile(wheel)
    text = {name.partition(".dist-info/")[2]: name for name in archive.namelist() if ".dist-info/" in name}
    assert b"Apache License" in archive.read(text["licenses/LICENSE"])
    assert b"medseg = medseg.cli:main" in archive.read(text["entry_points.txt"])


def test_an_installed_medseg_composes_and_lists_from_anywhere(installed, tmp_path):
    code = "import medseg, medseg.kernels, medseg.cli; print(medseg.__file__); medseg.cli.main(['train', '--cfg'])"
    printed = run(sys.executable, "-P", "-c", code, cwd=tmp_path, PYTHONPATH=str(installed))
    where, _, config = printed.partition("\n")
    assert Path(where).is_relative_to(installed)
    assert '"name": "phantom"' in config
    assert not list(tmp_path.iterdir()), "composing wrote something"


def test_top_level_folders_cannot_be_imported_by_accident():
    done = subprocess.run([sys.executable, "-c", "import kernels"], cwd=ROOT, capture_output=True, text=True)
    assert "import medseg.kernels instead of kernels" in done.stderr


@pytest.mark.parametrize(
    "code",
    [
        "import medseg",
        "import medseg.cli, contextlib, io\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit): medseg.cli.main(['--help'])",
        "import medseg.data.dataset, medseg.data.splits, medseg.data.check",
    ],
    ids=["import", "help", "data"],
)
def test_what_must_be_instant_imports_nothing_slow(code):
    slow = ["torch", "monai", "timm", "pytorch_lightning", "albumentations"]
    slow += ["hydra", "numpy"] if "data" not in code else []
    code += f"\nimport sys; print(*[name for name in {slow} if name in sys.modules])"
    assert run(sys.executable, "-c", code, cwd=ROOT).strip() == ""


def test_one_version():
    import medseg

    version = SETTINGS["project"]["version"]
    assert medseg.__version__ == version
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")

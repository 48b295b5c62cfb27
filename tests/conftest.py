"""Shared fixtures: where the real data lies, and a tiny dataset for end-to-end tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real datasets beside the checkout; tests that need it skip where it is absent."""
    for folder in (os.environ.get("MEDSEG_DATA"), ROOT.parent / "shared" / "data"):
        if folder and Path(folder).is_dir():
            return Path(folder)
    pytest.skip("no real data: set MEDSEG_DATA or put it under ../shared/data")


@pytest.fixture(scope="session")
def tiny_phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 5 training and 2 test phantoms, small enough to train on in seconds."""
    from medseg.data.phantom import write_phantoms

    folder = tmp_path_factory.mktemp("data") / "Dataset900_Tiny"
    write_phantoms(folder, cases=5, test_cases=2, shape=(32, 28, 24))
    return folder

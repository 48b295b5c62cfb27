"""Downloads whose size and SHA-256 are known; the hostile and cut ones are in tests/fault/test_artefacts.py."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from medseg.errors import ResourceError, UsageError
from medseg.io import download

CONTENT = bytes(range(256)) * 100
DIGEST = hashlib.sha256(CONTENT).hexdigest()


def test_a_file_address(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(CONTENT)
    url = (tmp_path / "source").as_uri()
    path = download(url, tmp_path / "deep" / "a.bin", size=len(CONTENT), sha256=DIGEST.upper(), progress=False)
    assert path.read_bytes() == CONTENT
    assert list(path.parent.iterdir()) == [path]


def test_nothing_is_fetched_if_the_right_file_is_there(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(CONTENT)
    missing = (tmp_path / "missing").as_uri()
    assert download(missing, tmp_path / "a.bin", size=len(CONTENT), sha256=DIGEST) == tmp_path / "a.bin"


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/a", "data:,a", "/etc/passwd", "javascript:1"])
def test_other_addresses_are_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(UsageError, match="expected http, https or file"):
        download(url, tmp_path / "a", size=1, sha256="0")


def test_a_missing_source(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="stopped at 0 of 5 bytes"):
        download((tmp_path / "missing").as_uri(), tmp_path / "a", size=5, sha256="0", progress=False)
    assert list(tmp_path.iterdir()) == []

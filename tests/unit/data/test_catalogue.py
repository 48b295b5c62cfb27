"""The catalogue: where datasets are looked for, and downloads from a server of our own, without a network."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from medseg.data import catalogue
from medseg.data.catalogue import CATALOGUE, find_dataset, list_datasets, resolve_dataset
from medseg.errors import BadDataset, ResourceError, UnsafeArtefact, UsageError
from medseg.io import download


def decathlon_archive(*, name: str = "Task04_Hippocampus") -> bytes:
    """A tar as published: one folder, and the ``._`` files of macOS."""
    description = {
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "Anterior", "2": "Posterior"},
        "training": [{"image": "./imagesTr/h_001.nii.gz", "label": "./labelsTr/h_001.nii.gz"}],
    }
    files = {"dataset.json": json.dumps(description).encode(), "._dataset.json": b"\0\5\x16\7"}
    files |= {"imagesTr/h_001.nii.gz": b"image" * 5000, "labelsTr/h_001.nii.gz": b"label"}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for member, content in files.items():
            info = tarfile.TarInfo(f"{name}/{member}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


class Server(ThreadingHTTPServer):
    """Serves ``content`` with byte ranges, once only as far as ``cut_at``."""

    content = decathlon_archive()
    cut_at: int | None = None

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str, str | None]] = []
        self.url = f"http://127.0.0.1:{self.server_port}/Task04_Hippocampus.tar"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        self.begin(0)

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        self.begin(start)
        cut, self.server.cut_at = self.server.cut_at, None
        self.wfile.write(self.server.content[start:cut])

    def begin(self, start: int) -> None:
        self.server.requests.append((self.command, self.headers.get("Range")))
        size = len(self.server.content)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(size - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture(autouse=True)
def empty_machine(tmp_path, monkeypatch) -> Path:
    """No data folder but those that a test makes below the temporary folder."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("MEDSEG_DATA", raising=False)
    monkeypatch.chdir(home)
    monkeypatch.setattr(catalogue, "__file__", str(tmp_path / "lib/medseg/data/catalogue.py"))
    return tmp_path


@pytest.fixture
def published(server, monkeypatch) -> Server:
    digest = hashlib.md5(server.content).hexdigest()
    monkeypatch.setitem(CATALOGUE, "hippocampus", replace(CATALOGUE["hippocampus"], url=server.url, md5=digest))
    return server


def test_downloads_unpacks_and_shows_the_licence(published, tmp_path, capsys):
    dataset = resolve_dataset({"name": "hippocampus", "path": None})
    assert dataset.root == tmp_path / "cache/medseg/Task04_Hippocampus"
    assert dataset.labels == {"background": 0, "Anterior": 1, "Posterior": 2}
    assert dataset.training[0].images[0].read_bytes() == b"image" * 5000
    assert "licence CC-BY-SA 4.0" in capsys.readouterr().err
    assert sorted(path.name for path in dataset.root.parent.iterdir()) == ["Task04_Hippocampus"]
    count = len(published.requests)
    assert find_dataset("hippocampus") == dataset.root
    assert len(published.requests) == count


def test_goes_on_where_it_was_cut(published, tmp_path):
    published.cut_at = 10_000
    with pytest.raises(ResourceError, match="stopped at 10000 of"):
        find_dataset("hippocampus")
    assert (tmp_path / "cache/medseg/Task04_Hippocampus.tar.part").stat().st_size == 10_000
    assert (find_dataset("hippocampus") / "dataset.json").is_file()
    assert published.requests[-1] == ("GET", "bytes=10000-")


def test_a_tampered_archive_is_refused_and_removed(published, tmp_path):
    published.content = published.content.replace(b"image", b"imagf", 1)
    with pytest.raises(UnsafeArtefact, match="MD5") as caught:
        find_dataset("hippocampus")
    assert caught.value.exit_code == 5
    assert list((tmp_path / "cache/medseg").iterdir()) == []


def test_an_archive_of_something_else_leaves_nothing(published, monkeypatch, tmp_path):
    buffer = io.BytesIO()
    tarfile.open(fileobj=buffer, mode="w").close()
    published.content = buffer.getvalue()
    digest = hashlib.md5(published.content).hexdigest()
    monkeypatch.setitem(CATALOGUE, "hippocampus", replace(CATALOGUE["hippocampus"], url=published.url, md5=digest))
    with pytest.raises(BadDataset, match=r"no dataset\.json"):
        find_dataset("hippocampus")
    assert not (tmp_path / "cache/medseg/Task04_Hippocampus").exists()


def test_sha256_is_used_where_it_is_known(server, tmp_path):
    digest = hashlib.sha256(server.content).hexdigest()
    path = download(server.url, tmp_path / "a.tar", size=len(server.content), sha256=digest, progress=False)
    assert path.read_bytes() == server.content
    with pytest.raises(UnsafeArtefact, match="SHA-256"):
        download(server.url, tmp_path / "b.tar", sha256="0" * 64, progress=False)


def test_no_download_without_a_digest(tmp_path):
    with pytest.raises(UsageError, match="no digest"):
        download("http://127.0.0.1:9/a.tar", tmp_path / "a.tar")


def test_no_network_is_one_line(monkeypatch, server):
    server.server_close()
    monkeypatch.setitem(CATALOGUE, "hippocampus", replace(CATALOGUE["hippocampus"], url="http://127.0.0.1:9/a.tar"))
    with pytest.raises(ResourceError, match="Connection refused"):
        find_dataset("hippocampus")


def make(root: Path) -> Path:
    root.mkdir(parents=True)
    (root / "dataset.json").write_text("{}")
    return root


def test_places_are_searched_in_order(empty_machine, monkeypatch):
    base = empty_machine
    places = [
        make(base / "cache/medseg/Task04_Hippocampus"),
        make(base / "shared/data/Dataset004_Hippocampus"),
        make(base / "mine/hippocampus"),
    ]
    monkeypatch.setenv("MEDSEG_DATA", str(base / "mine"))
    for place in reversed(places):
        assert find_dataset("hippocampus") == place
        (place / "dataset.json").unlink()


def test_beside_a_checkout(empty_machine):
    place = make(empty_machine / "shared/data/Dataset004_Hippocampus")  # lib/medseg is the checkout here
    assert find_dataset("hippocampus") == place


def test_unknown_names(tmp_path):
    with pytest.raises(UsageError, match="did you mean 'hippocampus'"):
        find_dataset("hipocampus")
    with pytest.raises(UsageError, match="data=phantom or data=hippocampus"):
        resolve_dataset({"name": None, "path": None})
    with pytest.raises(BadDataset, match="no such folder"):
        resolve_dataset({"name": "x", "path": str(tmp_path / "nowhere")})
    assert list_datasets() == ["phantom", "hippocampus"]


def test_phantoms_are_generated_once(monkeypatch, tmp_path):
    from medseg.data import phantom

    calls = []
    original = phantom.write_phantoms

    def few(folder: Path) -> object:
        calls.append(folder)
        return original(folder, cases=1, test_cases=1, shape=(12, 12, 12))

    monkeypatch.setattr(phantom, "write_phantoms", few)
    first = resolve_dataset({"name": "phantom"})
    assert first.synthetic
    assert resolve_dataset({"name": "phantom"}) == first
    assert len(calls) == 1
    assert [path.name for path in (tmp_path / "cache/medseg").iterdir()] == ["phantom-v1"]


def test_a_cache_that_cannot_be_written(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ResourceError, match="XDG_CACHE_HOME"):
        find_dataset("phantom")


def test_every_entry_is_complete():
    for name, entry in CATALOGUE.items():
        assert entry.name == name
        assert entry.licence
        assert entry.citation
        assert entry.sha256 or entry.md5
        assert entry.url.startswith("https://")

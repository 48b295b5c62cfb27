"""Hostile and damaged artefacts: models, checkpoints, archives, downloads. Refused, and no code of theirs runs."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import signal
import stat
import subprocess
import sys
import tarfile
import textwrap
import time
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch

from medseg.errors import MedsegError, ResourceError, UnreadableFile, UnsafeArtefact, UsageError
from medseg.io import (
    download,
    extract,
    load_array,
    load_checkpoint,
    load_model,
    read_json,
    save_checkpoint,
    save_model,
    write_json,
)


class Canary:
    """Unpickling this makes a folder: if the folder is there, foreign code ran."""

    def __init__(self, nest: Path) -> None:
        self.nest = nest

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.nest),)


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Canary]:
    bird = Canary(tmp_path / "canary")
    pickle.loads(pickle.dumps(bird))  # it does sing where nothing is refused
    bird.nest.rmdir()
    yield bird
    assert not bird.nest.exists()


def refused(kind: type[MedsegError], said: str, call: Callable[[], object]) -> None:
    with pytest.raises(kind, match=said or None) as caught:
        call()
    assert "\n" not in str(caught.value)


# Models ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save_model(tmp_path / "model", {"a": torch.arange(6.0)}, {"model": {"name": "unet"}})
    return tmp_path / "model"


def describe(model: Path, /, **changes: object) -> None:
    write_json(model / "model.json", {**read_json(model / "model.json"), **changes})


@pytest.mark.parametrize("ending", [".pt", ".pth", ".ckpt", ".pkl", ".bin"])
def test_a_pickle_is_no_model(tmp_path: Path, canary: Canary, ending: str) -> None:
    path = tmp_path / f"a{ending}"
    torch.save(canary, path)
    refused(UnsafeArtefact, "is a pickle", lambda: load_model(path))
    assert UnsafeArtefact.exit_code == 5


@pytest.mark.parametrize("legacy", [True, False])
def test_a_pickle_named_like_safetensors_is_no_model(model: Path, canary: Canary, legacy: bool) -> None:
    torch.save(canary, model / "model.safetensors", _use_new_zipfile_serialization=not legacy)
    refused(UnsafeArtefact, "SHA-256", lambda: load_model(model))
    describe(model, weights_sha256=hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest())
    refused(UnsafeArtefact, "named like safetensors", lambda: load_model(model))


def test_a_flipped_byte_of_the_weights_is_found(model: Path) -> None:
    data = bytearray((model / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (model / "model.safetensors").write_bytes(data)
    refused(UnsafeArtefact, "SHA-256", lambda: load_model(model))


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_half_a_model_is_refused(model: Path, name: str) -> None:
    (model / name).unlink()
    refused(UnreadableFile, f"lacks {name}", lambda: load_model(model))


def test_no_model_at_all(tmp_path: Path) -> None:
    refused(UnreadableFile, "not a model folder", lambda: load_model(tmp_path / "missing"))


def test_a_description_that_names_code_is_refused(model: Path) -> None:
    for hidden in ({"_target_": "os.system"}, {"plan": [{"deep": {"_target_": "builtins.eval"}}]}):
        describe(model, model=hidden)
        refused(UnsafeArtefact, "_target_", lambda: load_model(model))


@pytest.mark.parametrize(
    ("changes", "kind", "said"),
    [
        ({"format": 2}, UsageError, "newer than this medseg"),
        ({"format": 0}, UnreadableFile, "format is 0"),
        ({"format": "1"}, UnreadableFile, "format is '1'"),
        ({"weights_sha256": None}, UnreadableFile, "weights_sha256"),
    ],
)
def test_descriptions_that_cannot_be_used(model: Path, changes: dict, kind: type[MedsegError], said: str) -> None:
    describe(model, **changes)
    refused(kind, said, lambda: load_model(model))


def test_a_description_that_is_no_json(model: Path) -> None:
    (model / "model.json").write_text("{")
    refused(UnreadableFile, "line 1, column 2", lambda: load_model(model))
    (model / "model.json").write_text("[]")
    refused(UnreadableFile, "weights_sha256", lambda: load_model(model))


@pytest.mark.parametrize(
    "weights", [b"", b"\xff" * 8, (2**40).to_bytes(8, "little") + b"{}", b"\x02" + bytes(7) + b"{}x"]
)
def test_weights_that_are_no_safetensors(model: Path, weights: bytes) -> None:
    (model / "model.safetensors").write_bytes(weights)
    describe(model, weights_sha256=hashlib.sha256(weights).hexdigest())
    refused(UnreadableFile, "not a safetensors file", lambda: load_model(model))


# Checkpoints ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("legacy", [True, False])
def test_a_checkpoint_with_code_is_refused(tmp_path: Path, canary: Canary, legacy: bool) -> None:
    path = tmp_path / "last.ckpt"
    torch.save({"model": torch.rand(3), "extra": canary}, path, _use_new_zipfile_serialization=not legacy)
    refused(UnsafeArtefact, "could run code", lambda: load_checkpoint(path))


def test_a_bare_pickle_is_refused(tmp_path: Path, canary: Canary) -> None:
    (tmp_path / "last.ckpt").write_bytes(pickle.dumps(canary))
    refused(UnsafeArtefact, "could run code", lambda: load_checkpoint(tmp_path / "last.ckpt"))


def test_objects_in_a_checkpoint_are_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "last.ckpt", {"path": tmp_path})
    refused(UnsafeArtefact, "more than tensors and plain data", lambda: load_checkpoint(tmp_path / "last.ckpt"))


def test_every_cut_and_flip_of_a_checkpoint_is_found(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    save_checkpoint(path, {"a": torch.arange(100.0), "epoch": 3})
    whole = path.read_bytes()
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        refused(UnreadableFile, "truncated or damaged", lambda: load_checkpoint(path))
    start = whole.index(np.arange(100, dtype=np.float32).tobytes())
    for position in range(start, start + 400, 41):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
        refused(UnreadableFile, "truncated or damaged", lambda: load_checkpoint(path))


def test_a_missing_checkpoint(tmp_path: Path) -> None:
    refused(UnreadableFile, "cannot be read", lambda: load_checkpoint(tmp_path / "last.ckpt"))


def test_pickled_arrays_are_refused(tmp_path: Path, canary: Canary) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.array([canary], dtype=object), allow_pickle=True)
    for mmap in (True, False):
        with pytest.raises(UnsafeArtefact, match="pickled objects"):
            load_array(path, mmap=mmap)
    path.write_bytes(pickle.dumps(canary))
    refused(UnreadableFile, "not a .npy array", lambda: load_array(path))


SAVING = """
    import sys, torch
    from medseg.io import save_checkpoint, save_model
    for n in range(10**9):
        state = {"a": torch.full((200_000,), float(n)), "n": n}
        save_checkpoint(sys.argv[1] + "/last.ckpt", state)
        print(n, flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_killed_writer_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(SAVING), str(tmp_path)]
    rng = np.random.default_rng(0)
    for _ in range(3):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            time.sleep(float(rng.uniform(0, 0.05)))
            writer.send_signal(signal.SIGKILL)
        state = load_checkpoint(tmp_path / "last.ckpt")
        assert state["a"].unique().tolist() == [state["n"]]


# Archives -------------------------------------------------------------------------------------------------------------


def zip_with(path: Path, *members: tuple[str, bytes], mode: int = 0) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, content)
    return path


def tar_with(path: Path, name: str, kind: bytes = tarfile.REGTYPE, link: str = "", content: bytes = b"x") -> Path:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        archive.addfile(tarfile.TarInfo("honest.txt"), None)
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, link
        info.size = len(content) if kind == tarfile.REGTYPE else 0
        archive.addfile(info, io.BytesIO(content) if kind == tarfile.REGTYPE else None)
    return path


def tar_with_giant_metadata(path: Path) -> Path:
    info = tarfile.TarInfo("a")
    info.pax_headers = {"comment": "x" * (3 << 20)}
    with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(info, None)
    return path


HOSTILE: dict[str, Callable[[Path], Path]] = {
    "zip parent": lambda f: zip_with(f / "a.zip", ("ok", b"x"), ("../escaped", b"x")),
    "zip deep parent": lambda f: zip_with(f / "a.zip", ("a/b/../../../escaped", b"x")),
    "zip absolute": lambda f: zip_with(f / "a.zip", (str(f / "escaped"), b"x")),
    "zip backslash": lambda f: zip_with(f / "a.zip", ("..\\escaped", b"x")),
    "zip drive": lambda f: zip_with(f / "a.zip", ("C:escaped", b"x")),
    "zip link": lambda f: zip_with(f / "a.zip", ("link", b"/etc/passwd"), mode=stat.S_IFLNK | 0o777),
    "zip device": lambda f: zip_with(f / "a.zip", ("null", b""), mode=stat.S_IFCHR | 0o666),
    "zip twice": lambda f: zip_with(f / "a.zip", ("a", b"1"), ("./a", b"2")),
    "zip below a file": lambda f: zip_with(f / "a.zip", ("a", b"1"), ("a/b", b"2")),
    "zip bomb": lambda f: zip_with(f / "a.zip", ("a", bytes(3 << 20))),
    "zip many": lambda f: zip_with(f / "a.zip", *[(f"{n}", b"") for n in range(60)]),
    "tar parent": lambda f: tar_with(f / "a.tar", "../escaped"),
    "tar absolute": lambda f: tar_with(f / "a.tar", str(f / "escaped")),
    "tar symbolic link": lambda f: tar_with(f / "a.tar", "link", tarfile.SYMTYPE, "../outside"),
    "tar hard link": lambda f: tar_with(f / "a.tar.gz", "link", tarfile.LNKTYPE, "../outside/secret"),
    "tar device": lambda f: tar_with(f / "a.tar", "null", tarfile.CHRTYPE),
    "tar pipe": lambda f: tar_with(f / "a.tar", "pipe", tarfile.FIFOTYPE),
    "tar twice": lambda f: tar_with(f / "a.tar", "honest.txt"),
    "tar bomb": lambda f: tar_with(f / "a.tar.gz", "a", content=bytes(3 << 20)),
    "tar metadata bomb": lambda f: tar_with_giant_metadata(f / "a.tar.gz"),
}


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_archives_leave_nothing(tmp_path: Path, kind: str) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("secret")
    archive = HOSTILE[kind](tmp_path)
    before = tree(tmp_path)
    refused(UnsafeArtefact, "", lambda: extract(archive, tmp_path / "work" / "out", max_bytes=2 << 20, max_members=50))
    assert tree(tmp_path) == before
    assert list((tmp_path / "work").iterdir()) == []


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.tar.bz2", "a.tar.xz"])
def test_damaged_archives_leave_nothing(tmp_path: Path, name: str) -> None:
    noise = np.random.default_rng(0).bytes(30_000)
    archive = tmp_path / name
    if name == "a.zip":
        zip_with(archive, ("a", noise))
    else:
        with tarfile.open(archive, f"w:{archive.suffix[1:].replace('tar', '')}") as file:
            info = tarfile.TarInfo("a")
            info.size = len(noise)
            file.addfile(info, io.BytesIO(noise))
    whole = archive.read_bytes()
    damaged = [whole[: len(whole) // 2], b"", b"no archive at all"]
    if name != "a.tar":  # a bare tar has no checksum of its content
        damaged.append(whole[:20_000] + bytes([whole[20_000] ^ 1]) + whole[20_001:])
    for content in damaged:
        archive.write_bytes(content)
        refused(UnreadableFile, "", lambda: extract(archive, tmp_path / "work" / "out"))
        assert list((tmp_path / "work").iterdir()) == []


# Downloads ------------------------------------------------------------------------------------------------------------

CONTENT = np.random.default_rng(0).bytes(700_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves one file. Its faults: bytes to send before the line is cut, ranges ignored, other content, a redirect."""

    daemon_threads = True
    content, cut, ranges, redirect = CONTENT, None, True, ""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/data.bin"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.asked.append(wanted)
        if self.server.redirect:
            self.send_response(302)
            self.send_header("Location", self.server.redirect)
            self.end_headers()
            return
        if "missing" in self.path:
            self.send_error(404)
            return
        content, start = self.server.content, 0
        if wanted and self.server.ranges:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start:][: self.server.cut])

    def log_message(self, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield running
        running.shutdown()


def fetch(server: Server, path: Path, url: str = "") -> Path:
    return download(url or server.url, path, size=len(CONTENT), sha256=DIGEST, progress=False)


def test_a_whole_download(server: Server, tmp_path: Path) -> None:
    assert fetch(server, tmp_path / "a.bin").read_bytes() == CONTENT
    assert os.listdir(tmp_path) == ["a.bin"]
    fetch(server, tmp_path / "a.bin")
    assert server.asked == [None]


def test_a_cut_download_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.cut = 300_000
    for have in (300_000, 600_000):
        refused(ResourceError, f"stopped at {have} of 700000 bytes", lambda: fetch(server, tmp_path / "a.bin"))
        assert not (tmp_path / "a.bin").exists()
    server.cut = None
    assert fetch(server, tmp_path / "a.bin").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=300000-", "bytes=600000-"]
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_server_without_ranges_is_asked_for_the_whole_again(server: Server, tmp_path: Path) -> None:
    server.cut, server.ranges = 300_000, False
    refused(ResourceError, "stopped", lambda: fetch(server, tmp_path / "a.bin"))
    server.cut = None
    assert fetch(server, tmp_path / "a.bin").read_bytes() == CONTENT


def test_a_tampered_download_is_refused_and_removed(server: Server, tmp_path: Path) -> None:
    server.content = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
    refused(UnsafeArtefact, "has SHA-256", lambda: fetch(server, tmp_path / "a.bin"))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("change", [1000, -1000])
def test_a_download_of_another_size_is_refused_before_it_comes(server: Server, tmp_path: Path, change: int) -> None:
    server.content = (CONTENT + bytes(1000))[: len(CONTENT) + change]
    refused(UnsafeArtefact, f"offers {len(CONTENT) + change} bytes", lambda: fetch(server, tmp_path / "a.bin"))
    assert os.listdir(tmp_path) == []


def test_a_wrong_beginning_is_found_and_the_next_try_begins_anew(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.bin.part").write_bytes(bytes(1000))
    refused(UnsafeArtefact, "SHA-256", lambda: fetch(server, tmp_path / "a.bin"))
    assert fetch(server, tmp_path / "a.bin").read_bytes() == CONTENT


def test_a_part_that_is_too_long_is_not_used(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.bin.part").write_bytes(CONTENT + b"more")
    assert fetch(server, tmp_path / "a.bin").read_bytes() == CONTENT


def test_a_whole_part_needs_no_server(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.bin.part").write_bytes(CONTENT)
    assert fetch(server, tmp_path / "a.bin").read_bytes() == CONTENT
    assert server.asked == []


def test_a_damaged_file_at_the_place_is_replaced(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(bytes(len(CONTENT)))
    assert fetch(server, tmp_path / "a.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/a", "data:text/plain,a"])
def test_redirects_to_other_schemes_are_not_followed(server: Server, tmp_path: Path, target: str) -> None:
    server.redirect = target
    refused(ResourceError, "", lambda: fetch(server, tmp_path / "a.bin"))
    assert os.listdir(tmp_path) == []


def test_a_missing_page_and_a_missing_server(server: Server, tmp_path: Path) -> None:
    missing = server.url.replace("data", "missing")
    refused(ResourceError, "stopped at 0", lambda: fetch(server, tmp_path / "a.bin", missing))
    refused(ResourceError, "stopped at 0", lambda: fetch(server, tmp_path / "a.bin", "http://127.0.0.1:9/a"))
    assert os.listdir(tmp_path) == []


def test_json_of_a_model_stays_plain(model: Path) -> None:
    assert json.loads((model / "model.json").read_text())["model"] == {"name": "unet"}

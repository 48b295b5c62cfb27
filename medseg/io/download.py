"""Download a file whose digest is known beforehand; an interrupted download goes on where it stopped."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from medseg.errors import ResourceError, UnsafeArtefact, UsageError
from medseg.io.atomic import sync

_CHUNK = 1 << 18
_TIMEOUT_SECONDS = 30


def download(
    url: str,
    path: str | Path,
    *,
    sha256: str | None = None,
    md5: str | None = None,
    size: int | None = None,
    progress: bool = True,
) -> Path:
    """Fetch ``url`` to ``path``; nothing is done if the right file is there already.

    Args:
        url: http, https or file.
        path: the file; meanwhile ``path`` + ".part" holds what has come.
        sha256: hexadecimal digest.
        md5: the digest used where the publisher states no SHA-256. It detects a damaged or exchanged file as long as
            nobody forges one on purpose.
        size: bytes; None: as the server says, which only bounds the download, as the digest decides.
        progress: show a bar.

    Returns:
        The path.

    Raises:
        UnsafeArtefact: size or digest are not those given; the wrong file is removed.
        ResourceError: no connection, a cut connection (run again to go on), a server that tells no size, or a disk
            that refuses.
        UsageError: no digest, or another kind of address.
    """
    path = Path(path)
    part = path.with_name(path.name + ".part")
    if urlsplit(url).scheme not in ("http", "https", "file"):
        raise UsageError(f"address '{url}' (expected http, https or file)")
    if not (sha256 or md5):
        raise UsageError(f"no digest of {url} is known, so nothing could tell whether it is genuine")
    kind, digest = ("SHA-256", str(sha256)) if sha256 else ("MD5", str(md5))
    if path.is_file() and size in (None, path.stat().st_size) and _digest(path, kind) == digest.lower():
        return path
    try:
        size = size or _size_on_server(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        _fetch(url, part, size, progress)
        _check(url, part, size, kind, digest.lower())
        sync(part)
        os.replace(part, path)
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        raise _stopped(url, part, size or 0, str(getattr(error, "reason", error))) from None
    except OSError as error:
        raise ResourceError(f"cannot be written: {error.strerror or error}", path=part, fix="free space") from None
    return path


def _size_on_server(url: str) -> int:
    request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": "medseg"})
    with _opener(url).open(request, timeout=_TIMEOUT_SECONDS) as response:
        promised = response.headers.get("Content-Length") or ""
    if not promised.isdigit():
        raise ResourceError(f"the server of {url} does not tell the size of the file", fix="download it by hand")
    return int(promised)


def _fetch(url: str, part: Path, size: int, progress: bool) -> None:
    """Bring ``part`` from what it has to ``size`` bytes, or as far as the connection holds."""
    have = part.stat().st_size if part.is_file() else 0
    if have == size:
        return
    start = have if have < size else 0
    headers = {"User-Agent": "medseg", **({"Range": f"bytes={start}-"} if start else {})}
    with _opener(url).open(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_SECONDS) as response:
        if not _continues_at(response, start):
            start = 0  # the server sends the whole file: begin again
        _check_promise(response, url, size - start)
        with part.open("r+b" if start else "wb") as file, _bar(part, size, start, progress) as advance:
            file.seek(start)
            _copy(response, file, size - start, advance)


def _opener(url: str) -> urllib.request.OpenerDirector:
    """Only the handlers for the scheme that was asked for: no redirect leads to ftp, data or a local file."""
    opener = urllib.request.OpenerDirector()
    kinds: list[type[urllib.request.BaseHandler]] = [urllib.request.FileHandler]
    if urlsplit(url).scheme != "file":
        kinds = [urllib.request.ProxyHandler, urllib.request.HTTPHandler, urllib.request.HTTPSHandler]
        kinds += [urllib.request.HTTPRedirectHandler, urllib.request.HTTPErrorProcessor]
        kinds += [urllib.request.HTTPDefaultErrorHandler]
    for kind in kinds:
        opener.add_handler(kind())
    return opener


def _continues_at(response: Any, start: int) -> bool:
    return bool(start) and str(response.headers.get("Content-Range", "")).startswith(f"bytes {start}-")


def _check_promise(response: Any, url: str, expected: int) -> None:
    promised = response.headers.get("Content-Length")
    if promised is not None and promised.isdigit() and int(promised) != expected:
        problem = f"the server of {url} offers {promised} bytes (expected {expected})"
        raise UnsafeArtefact(problem, fix="the published file has changed; look for a newer medseg")


def _copy(response: Any, file: IO[bytes], left: int, advance: Callable[[int], object]) -> None:
    while left and (block := response.read(min(_CHUNK, left))):
        file.write(block)
        advance(len(block))
        left -= len(block)


@contextlib.contextmanager
def _bar(part: Path, size: int, start: int, show: bool) -> Iterator[Callable[[int], object]]:
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, TransferSpeedColumn(), TimeRemainingColumn(), disable=not show) as bar:
        task = bar.add_task(part.stem, total=size, completed=start)
        yield lambda count: bar.advance(task, count)


def _check(url: str, part: Path, size: int, kind: str, digest: str) -> None:
    have = part.stat().st_size
    if have < size:
        raise _stopped(url, part, size, "the connection was cut")
    found = _digest(part, kind)
    if found != digest:
        part.unlink()
        problem = f"what came from {url} has {kind} {found[:12]}... (expected {digest[:12]}...)"
        raise UnsafeArtefact(problem, path=part, fix="try again; if it stays, the published file has changed")


def _digest(path: Path, kind: str) -> str:
    start = hashlib.sha256 if kind == "SHA-256" else partial(hashlib.md5, usedforsecurity=False)
    with path.open("rb") as file:
        return hashlib.file_digest(file, start).hexdigest()


def _stopped(url: str, part: Path, size: int, reason: str) -> ResourceError:
    have = part.stat().st_size if part.is_file() else 0
    problem = f"download of {url} stopped at {have} of {size} bytes: {reason}"
    kept = "What has come is kept." if have else ""
    return ResourceError(problem, path=part, fix="check the network and run it again; it goes on there", written=kept)

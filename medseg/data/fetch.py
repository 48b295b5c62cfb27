"""Download an archive of the catalogue, whose publisher may state an MD5 only and no size."""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from pathlib import Path

from medseg.errors import ResourceError, UnsafeArtefact, UsageError
from medseg.io import download
from medseg.io.download import _fetch, _opener, _stopped

TIMEOUT_SECONDS = 30
_NETWORK = (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError)


def fetch(
    url: str,
    path: str | Path,
    *,
    size: int | None = None,
    sha256: str | None = None,
    md5: str | None = None,
    progress: bool = True,
) -> Path:
    """Fetch ``url`` to ``path``, going on where an interrupted download stopped; a digest is required.

    Args:
        url: http, https or file.
        path: the file; meanwhile ``path`` + ".part" holds what has come.
        size: bytes; None: as the server says, which only bounds the download, as the digest decides.
        sha256: hexadecimal digest.
        md5: the digest used if there is no SHA-256.
        progress: show a bar.

    Raises:
        UsageError: no digest.
        UnsafeArtefact: another digest; the file is removed.
        ResourceError: no connection, or a cut one (what has come is kept), or a server that tells no size.
    """
    path = Path(path)
    if not (sha256 or md5):
        raise UsageError(f"no digest of {url} is known, so nothing could tell whether it is genuine")
    try:
        size = size or _size_on_server(url)
        if sha256:
            return download(url, path, size=size, sha256=sha256, progress=progress)
        return _fetch_by_md5(url, path, size, str(md5), progress)
    except _NETWORK as error:
        reason = str(getattr(error, "reason", error))
        raise _stopped(url, path.with_name(path.name + ".part"), size or 0, reason) from None


def _fetch_by_md5(url: str, path: Path, size: int, md5: str, progress: bool) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    _fetch(url, part, size, progress)
    if part.stat().st_size < size:
        raise _stopped(url, part, size, "the connection was cut")
    with part.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != md5.lower():
        part.unlink()
        fix = "try again; if it stays, the published file has changed"
        raise UnsafeArtefact(f"what came from {url} has MD5 {found} (expected {md5})", path=part, fix=fix)
    os.replace(part, path)
    return path


def _size_on_server(url: str) -> int:
    request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": "medseg"})
    with _opener(url).open(request, timeout=TIMEOUT_SECONDS) as response:
        promised = response.headers.get("Content-Length") or ""
    if not promised.isdigit():
        raise ResourceError(f"the server of {url} does not tell the size of the file", fix="download it by hand")
    return int(promised)

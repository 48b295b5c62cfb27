"""Unpack .zip and .tar archives: the only extractor; hostile ones are refused, and nothing is left of them."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import secrets
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from medseg.errors import ResourceError, UnreadableFile, UnsafeArtefact, UsageError

MAX_BYTES = 200 * 1024**3
MAX_MEMBERS = 200_000
_CHUNK = 1 << 20
_DAMAGE = (
    zipfile.BadZipFile,
    NotImplementedError,
    tarfile.TarError,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    gzip.BadGzipFile,
)
_OPENERS = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ", lzma.open))

Member = tuple[str, IO[bytes] | None]  # name; None: a folder


def extract(
    archive: str | Path, folder: str | Path, *, max_bytes: int = MAX_BYTES, max_members: int = MAX_MEMBERS
) -> Path:
    """Unpack all of an archive into a new folder, or nothing.

    Args:
        archive: .zip, .tar, .tar.gz, .tar.bz2 or .tar.xz, told by its content.
        folder: must not exist, or be empty.
        max_bytes: of all members unpacked, counted while unpacking.
        max_members: files and folders.

    Returns:
        The folder.

    Raises:
        UnsafeArtefact: a path that leaves the folder, a link, a device, a name twice, or too much.
        UnreadableFile: missing or damaged.
        UsageError: ``folder`` has content.
        ResourceError: it cannot be written.
    """
    archive, folder = Path(archive), Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError("exists and is not empty", path=folder, fix="choose another folder or remove it")
    if not archive.is_file():
        raise UnreadableFile("archive is missing", path=archive)
    temporary = folder.parent / f".{folder.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
    try:
        temporary.mkdir(parents=True)
        _unpack(archive, temporary, max_bytes, max_members)
        if folder.exists():
            folder.rmdir()
        os.replace(temporary, folder)
    except _DAMAGE as error:
        raise UnreadableFile(f"is truncated or damaged: {error}", path=archive, fix="download it again") from None
    except OSError as error:
        if error.errno is None:  # bz2's word for damage
            raise UnreadableFile(f"is damaged: {error}", path=archive, fix="download it again") from None
        raise ResourceError(f"cannot be unpacked: {error.strerror or error}", path=folder, fix="free space") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _unpack(archive: Path, folder: Path, max_bytes: int, max_members: int) -> None:
    left = max_bytes
    for number, (name, content) in enumerate(_members(archive), start=1):
        if number > max_members:
            raise UnsafeArtefact(f"has more than {max_members} members", path=archive)
        target = folder / _safe_name(name, archive)
        try:
            (target.parent if content else target).mkdir(parents=True, exist_ok=True)
            left -= _copy(content, target, left, archive) if content else 0
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            raise UnsafeArtefact(f"holds '{name}' twice, or below a file", path=archive) from None


def _copy(content: IO[bytes], target: Path, left: int, archive: Path) -> int:
    written = 0
    with target.open("xb") as file:
        while block := content.read(_CHUNK):
            written += len(block)
            if written > left:
                raise UnsafeArtefact("unpacks to more bytes than allowed", path=archive, fix="check where it is from")
            file.write(block)
    return written


def _safe_name(name: str, archive: Path) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or "\0" in name:
        raise UnsafeArtefact(f"member '{name}' would leave its folder", path=archive, fix="do not use this archive")
    return path


def _members(archive: Path) -> Iterator[Member]:
    return _zip_members(archive) if zipfile.is_zipfile(archive) else _tar_members(archive)


def _zip_members(archive: Path) -> Iterator[Member]:
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise UnsafeArtefact(f"member '{info.filename}' is a link or device", path=archive)
            if info.flag_bits & 1:
                raise UnreadableFile(f"member '{info.filename}' is encrypted", path=archive)
            if info.is_dir():
                yield info.filename, None
            else:
                with file.open(info) as content:
                    yield info.filename, content


def _tar_members(archive: Path) -> Iterator[Member]:
    with archive.open("rb") as start:
        magic = start.read(5)
    opener: Any = next((opener for known, opener in _OPENERS if magic.startswith(known)), open)
    with opener(archive, "rb") as stream, tarfile.TarFile(fileobj=cast(Any, _Metered(stream, archive))) as file:
        for info in file:
            if not (info.isreg() or info.isdir()):
                raise UnsafeArtefact(f"member '{info.name}' is a link or device", path=archive)
            yield info.name, file.extractfile(info)  # None for a folder
        stream.read(_CHUNK)  # past the padding to the end, where the checksum of a compressed stream is compared


class _Metered:
    """A stream that refuses giant reads: a hostile tar header asks for gigabytes of metadata in one piece."""

    def __init__(self, stream: IO[bytes], archive: Path) -> None:
        self.stream, self.archive = stream, archive

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _CHUNK:
            raise UnsafeArtefact(f"asks for {size} bytes of metadata at once", path=self.archive)
        return self.stream.read(size)

    def seek(self, position: int, whence: int = 0) -> int:
        return self.stream.seek(position, whence)

    def tell(self) -> int:
        return self.stream.tell()

"""Text beside the images: lists and tables, and JSON: dataset.json, plans, splits, summaries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from medseg.errors import UnreadableFile

DEEPEST = 100  # objects and lists within each other: far more than files have, far less than code that descends bears


def read_text(path: str | Path) -> str:
    """Read a text file; a byte order mark is dropped, line ends become ``\\n``.

    Raises:
        UnreadableFile: missing, no permission, or not UTF-8.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        problem = f"cannot be read: {error.strerror or error}"
        raise UnreadableFile(problem, path=path, fix="check the path and its permissions") from None
    except UnicodeDecodeError as error:
        raise UnreadableFile(f"byte {error.start} is not UTF-8", path=path, fix="save it as UTF-8") from None


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        UnreadableFile: missing, not UTF-8, not JSON (the line and column are named), or an object with a key twice.
    """
    try:
        text = read_text(path)
        data = json.loads(text, object_pairs_hook=_each_once)
        _check_depth(data)
        if "\\ud" in text.lower():  # an escape may be half a character, or a byte of a name that is not UTF-8
            json.dumps(data, ensure_ascii=False).encode(errors="surrogateescape")
        return data
    except json.JSONDecodeError as error:
        problem = f"is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        raise UnreadableFile(problem, path=path, fix="correct that place") from None
    except UnicodeEncodeError:
        raise UnreadableFile("holds half a character, as \\ud800", path=path, fix="save it as UTF-8") from None
    except ValueError as error:  # of our own, or a number of thousands of digits
        raise UnreadableFile(str(error).partition(";")[0], path=path, fix="correct it") from None
    except RecursionError:
        raise UnreadableFile("is nested too deeply to be one of our files", path=path, fix="copy it again") from None


def _check_depth(data: Any) -> None:
    level = [data] if isinstance(data, dict | list) else []
    for _ in range(DEEPEST):
        holders = [value.values() if isinstance(value, dict) else value for value in level]
        level = [item for holder in holders for item in holder if isinstance(item, dict | list)]
        if not level:
            return
    raise RecursionError


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"has the key '{next(key for key in keys if keys.count(key) > 1)}' twice in one object")
    return found

"""JSON beside the images: dataset.json, plans, splits, summaries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from medseg.errors import UnreadableFile


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        UnreadableFile: missing, not UTF-8, or not JSON; the line and column are named.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UnreadableFile(f"cannot be read: {error.strerror}", path=path) from None
    except UnicodeDecodeError as error:
        raise UnreadableFile(f"byte {error.start} is not UTF-8", path=path, fix="save it as UTF-8") from None
    except json.JSONDecodeError as error:
        problem = f"is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        raise UnreadableFile(problem, path=path, fix="correct that place") from None
    except RecursionError:
        raise UnreadableFile("is nested too deeply to be one of our files", path=path) from None

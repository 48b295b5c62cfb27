"""One exception tree; each class carries the exit code that the command line returns.

0 done, 1 our bug, 2 usage or config, 3 input refused, 4 resources, 5 unsafe or tampered artefact,
6 partial (some cases failed, the rest written), 130/143 interrupted and resumable.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path

from medseg.text import visible


class MedsegError(Exception):
    """An error that a user can cause, told in one line: case, file, field and value, what is expected, what to do.

    Args:
        problem: field, value and expectation, e.g. ``"spacing_mm[2] is 0.0 (must be finite and > 0)"``.
        case: identifier of the case, if there is one.
        path: the file at fault, if there is one.
        fix: what the user can do, without a full stop.
        written: what is on disk now, said only by the code that owns the writes; by default nothing is claimed.
    """

    exit_code = 1

    def __init__(
        self,
        problem: str,
        *,
        case: str | None = None,
        path: str | Path | None = None,
        fix: str | None = None,
        written: str = "",
    ) -> None:
        self.problem, self.case, self.path, self.fix, self.written = problem, case, path, fix, written
        super().__init__(str(self))

    def __str__(self) -> str:
        where = ", ".join(part for part in (f"case {self.case}" if self.case else "", str(self.path or "")) if part)
        fix = f" Fix: {self.fix}." if self.fix else ""
        problem = self.problem if self.problem.endswith("?") else f"{self.problem.rstrip('.')}."
        line = f"{where + ': ' if where else ''}{problem}{fix} {self.written}"
        return visible(" ".join(line.split()))

    def __reduce__(self) -> tuple[object, ...]:
        """Keep every field when a worker process hands the error to its parent."""
        return _rebuild, (type(self), self.problem, self.case, self.path, self.fix, self.written)


def _rebuild(kind, problem, case, path, fix, written):  # type: ignore[no-untyped-def]
    return kind(problem, case=case, path=path, fix=fix, written=written)


class UsageError(MedsegError):
    """A wrong verb, key, name or combination of settings."""

    exit_code = 2


class InputRefused(MedsegError):
    """Data that must not be used as it is."""

    exit_code = 3


class UnreadableFile(InputRefused):
    """A file that is missing, truncated, corrupt or of an unknown format."""


class BadGeometry(InputRefused):
    """Zero spacing, a singular affine, or an image and a label on different grids."""


class BadVoxels(InputRefused):
    """NaN, infinite or otherwise unusable intensities."""


class BadLabels(InputRefused):
    """Label values that are not integers or that the dataset does not know."""


class BadDataset(InputRefused):
    """A folder or dataset description that cannot be used."""


class ResourceError(MedsegError):
    """Not enough memory or disk, a dead or hung worker, a file system that refuses to write."""

    exit_code = 4


class UnsafeArtefact(MedsegError):
    """A pickle, a tampered download, a path that escapes its folder: refused, never loaded."""

    exit_code = 5


class PartialFailure(MedsegError):
    """Some cases failed and are named; the rest is written."""

    exit_code = 6


class Interrupted(MedsegError):
    """SIGTERM: the step was finished and the state saved; run again with ``resume=true``."""

    exit_code = 143


def nearest(name: object, known: Iterable[object]) -> str:
    """Say which known name was probably meant, e.g. ``"did you mean 'unetpp'? (known: unet, unetpp)"``.

    A slip of the keys, or the beginning of a name, is one; another number is not: case c04 is no c00.
    """
    names, text = sorted(str(one) for one in known), str(name)
    close = _close(text, names)
    return (f"did you mean '{close[0]}'? " if close else "") + f"(known: {', '.join(names)})"


def meant(name: str, known: Iterable[str]) -> str:
    """Say which id was probably meant, else how ids look: those of a dataset are too many to list."""
    ids = sorted(known)
    close = _close(name, ids)
    return f"did you mean '{close[0]}'?" if close else f"ids are like {', '.join(ids[:3])}"


def _close(text: str, names: Sequence[str]) -> list[str]:
    close = get_close_matches(text, names, n=3, cutoff=0.6)
    close += [one for one in names if len(text) > 2 and one.lower().startswith(text.lower())]
    return [one for one in close if not _other_number(text, one)]


def _other_number(a: str, b: str) -> bool:
    return re.sub(r"\d", "#", a) == re.sub(r"\d", "#", b)


def some(names: Sequence[str], most: int = 5) -> str:
    """The first names and the number of the others, e.g. ``"case1, case2 and 7 more"``."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest

"""SIGTERM as an exception: what is open is closed, what is done can be said. Trainings catch the signal themselves."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from medseg.errors import Interrupted


class Terminated(BaseException):
    """SIGTERM came; like KeyboardInterrupt no error that an ``except Exception`` may take for one of its own."""


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """Raise `Terminated` in the main thread at the first SIGTERM; more of them do not disturb the cleaning up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(signum: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def interrupted(stop: BaseException, problem: str, *, fix: str, written: str) -> Interrupted:
    """The error of a command that `Terminated` or KeyboardInterrupt ended, with exit code 143 or 130."""
    name, code = ("SIGTERM", 143) if isinstance(stop, Terminated) else ("SIGINT", 130)
    error = Interrupted(f"{name}: {problem}", fix=fix, written=written)
    error.exit_code = code
    return error

"""SIGTERM and Ctrl-C let the step at hand finish; the second Ctrl-C stops at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from medseg.errors import Interrupted


class StopRequest:
    """Whether a signal asked to stop, and which."""

    signum: int | None = None

    def error(self) -> Interrupted:
        """The exception that ends the run, with exit code 130 or 143."""
        assert self.signum is not None
        name = signal.Signals(self.signum).name
        error = Interrupted(f"{name}: the step was finished", fix="go on with resume=true", written="State was saved.")
        error.exit_code = 128 + self.signum
        return error


@contextmanager
def catch_stop_signals() -> Iterator[StopRequest]:
    """Note the first SIGINT or SIGTERM instead of dying from it. Outside the main thread nothing is caught."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def note(signum: int, frame: FrameType | None) -> None:
        if request.signum is not None:
            raise KeyboardInterrupt
        request.signum = signum

    previous = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)

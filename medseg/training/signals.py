"""SIGTERM and Ctrl-C let the step at hand finish; the second Ctrl-C stops at once."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from medseg.errors import Interrupted

STOPPING = (signal.SIGINT, signal.SIGTERM)


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

    def listen(self) -> None:
        """From now on note the first SIGINT or SIGTERM instead of dying from it, in the main thread of a process."""
        if threading.current_thread() is threading.main_thread():
            for signum in STOPPING:
                signal.signal(signum, self._note)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None:
            if signum == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.signum = signum
        for child in multiprocessing.active_children():  # the processes of one training; data workers do not mind
            child.terminate()


@contextmanager
def catch_stop_signals(request: StopRequest) -> Iterator[None]:
    """Let a request note signals, and give them back in the end. Outside the main thread nothing is caught."""
    before = {signum: signal.getsignal(signum) for signum in STOPPING}
    request.listen()
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for signum, handler in before.items():
                signal.signal(signum, handler)


def ignore_stop_signals() -> None:
    """For processes that serve another one: a signal to the whole group shall not end them before its step is done."""
    for signum in STOPPING:
        signal.signal(signum, signal.SIG_IGN)

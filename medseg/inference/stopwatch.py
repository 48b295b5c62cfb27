"""Where the time of a case goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Stopwatch:
    """Seconds by step; what an inner step takes is not counted for the outer one.

    Attributes:
        seconds: step -> seconds.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inner = 0.0

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        """Count what happens within the block for ``step``."""
        outer, self._inner, start = self._inner, 0.0, time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.seconds[step] = self.seconds.get(step, 0.0) + spent - self._inner
            self._inner = outer + spent

    def timed(self, step: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its calls counted for ``step``."""

        def call(*args: Any, **kwargs: Any) -> Any:
            with self(step):
                return function(*args, **kwargs)

        return call

"""Steps within steps are counted once."""

import time

from medseg.inference.stopwatch import Stopwatch


def test_inner_steps_are_not_counted_twice(monkeypatch):
    now = iter([0.0, 1.0, 4.0, 10.0, 10.0, 12.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    clock = Stopwatch()
    with clock("outer"), clock("inner"):
        pass
    clock.timed("outer", lambda: None)()
    assert clock.seconds == {"inner": 3.0, "outer": 7.0 + 2.0}

"""A plug-in for tests: the wall clock of a run is CLOCK_SHIFT seconds ahead."""

import os
import time

_time, _time_ns = time.time, time.time_ns


def _shift() -> int:
    return int(os.environ.get("CLOCK_SHIFT", "0"))


time.time = lambda: _time() + _shift()
time.time_ns = lambda: _time_ns() + _shift() * 10**9

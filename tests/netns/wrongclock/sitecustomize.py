"""A wall clock that a test sets, for a real process: Python imports this before anything else.

The file that LAB_CLOCK names holds the seconds by which the clock is wrong, and may change at any
time. Only the clock that people set is touched; CLOCK_BOOTTIME and CLOCK_MONOTONIC are the
kernel's, as they are after a real step. (Linux has no namespaces for this clock, and a preloaded
libfaketime would bend the other clocks as well.)
"""

import os
import time

_path = os.environ["LAB_CLOCK"]
_true_time, _true_time_ns = time.time, time.time_ns


def _wrong_by() -> int:
    with open(_path, encoding="ascii") as file:
        return int(file.read())


time.time = lambda: _true_time() + _wrong_by()
time.time_ns = lambda: _true_time_ns() + _wrong_by() * 1_000_000_000

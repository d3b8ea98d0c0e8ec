"""Time: the machine's monotonic clock, or a virtual one that only sleeping moves (simulator only)."""

from __future__ import annotations

import threading
import time
from typing import Protocol


class Clock(Protocol):
    """Monotonic seconds."""

    def now_s(self) -> float:
        """Return the time in seconds; never goes back."""
        ...

    def sleep_s(self, seconds: float) -> None:
        """Let that much time pass."""
        ...


class RealClock:
    """The machine's monotonic clock."""

    def now_s(self) -> float:
        """Return the time in seconds."""
        return time.monotonic()

    def sleep_s(self, seconds: float) -> None:
        """Block for that long."""
        if seconds > 0:
            time.sleep(seconds)


class VirtualClock:
    """A clock that stands still except when somebody sleeps; thread-safe."""

    def __init__(self) -> None:
        self._now_s = 0.0
        self._lock = threading.Lock()

    def now_s(self) -> float:
        """Return the time in seconds."""
        with self._lock:
            return self._now_s

    def sleep_s(self, seconds: float) -> None:
        """Advance the clock; returns at once."""
        if seconds > 0:
            with self._lock:
                self._now_s += seconds

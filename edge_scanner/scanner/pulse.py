"""Whether every busy thread makes progress: what the watchdog asks before it is fed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Pulse:
    """Each busy thread says by when its next step will be done; thread-safe.

    A thread that waits for another one rests: the other one is watched.

    Parameters
    ----------
    step_s : float
        How long an ordinary step may take.
    now_s : callable
        Monotonic real seconds.
    """

    def __init__(self, step_s: float, now_s: Callable[[], float] = time.monotonic) -> None:
        self._step_s = step_s
        self._now_s = now_s
        self._lock = threading.Lock()
        self._due_s: dict[str, float] = {}

    def step(self, within_s: float | None = None) -> None:
        """Say that the calling thread has made progress and will again within that time."""
        due_s = self._now_s() + (self._step_s if within_s is None else within_s)
        with self._lock:
            self._due_s[threading.current_thread().name] = due_s

    def rest(self) -> None:
        """Say that the calling thread waits, or has ended."""
        with self._lock:
            self._due_s.pop(threading.current_thread().name, None)

    def late(self) -> list[str]:
        """Return the names of the threads that are busy and overdue."""
        now_s = self._now_s()
        with self._lock:
            return sorted(name for name, due_s in self._due_s.items() if due_s < now_s)

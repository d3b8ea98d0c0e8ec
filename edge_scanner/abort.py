"""One `Abort` a scan: the first failure is kept as the cause, and every blocked wait wakes."""

from __future__ import annotations

import threading
from collections.abc import Callable

from edge_scanner.errors import AbortedError


class Abort:
    """A latch that ends a scan; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cause: BaseException | None = None
        self._set = False
        self._wakers: list[Callable[[], None]] = []

    def __bool__(self) -> bool:
        return self._set

    @property
    def cause(self) -> BaseException | None:
        """The first failure; None when nothing failed or when the scan was cancelled."""
        return self._cause

    def set(self, cause: BaseException | None = None) -> None:
        """End the scan; only the first call's cause is kept (None: cancelled)."""
        with self._lock:
            if self._set:
                return
            self._cause, self._set = cause, True
            wakers = list(self._wakers)
        for wake in wakers:
            wake()

    def on_set(self, wake: Callable[[], None]) -> None:
        """Have `wake` called when the scan ends; at once if it has."""
        with self._lock:
            if not self._set:
                self._wakers.append(wake)
                return
        wake()

    def check(self) -> None:
        """Raise `AbortedError` once the scan has been ended."""
        if self._set:
            raise AbortedError("The scan was ended.")

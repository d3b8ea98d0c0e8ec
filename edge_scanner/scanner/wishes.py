"""What the control thread wishes of the work under way; the work looks at its next boundary."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Wishes:
    """Pause, cancel and end, behind one condition; thread-safe.

    `cancelled`: end this work, keep what was done. `ending`: the daemon ends.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.paused = self.cancelled = self.ending = False

    def set(self, *, paused: bool | None = None, cancelled: bool | None = None, ending: bool | None = None) -> None:
        """Change some of them and wake whoever waits."""
        with self.changed:
            self.paused = self.paused if paused is None else paused
            self.cancelled = self.cancelled if cancelled is None else cancelled
            self.ending = self.ending if ending is None else ending
            self.changed.notify_all()

    def wait_for(self, reached: Callable[[], bool], every_s: float | None = None) -> None:
        """Block until it is reached, looking at each change and, where given, every so many seconds."""
        with self.changed:
            while not reached():
                self.changed.wait(timeout=every_s)

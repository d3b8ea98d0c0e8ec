"""A pseudo-terminal under a fixed name that can be pulled out and put back like a USB adapter."""

from __future__ import annotations

import contextlib
import os
import tty
from pathlib import Path


class Terminal:
    """The device's end of a line; the host opens `link`, which stays the same over replugging.

    The far end is held open here too, so that the host may come and go.
    """

    def __init__(self, link: Path) -> None:
        self._link = link
        self._near: int | None = None
        self._far: int | None = None

    @property
    def fileno(self) -> int | None:
        """The descriptor to poll; None while unplugged."""
        return self._near

    def plug(self) -> None:
        """Appear."""
        if self._near is not None:
            return
        self._near, self._far = os.openpty()
        tty.setraw(self._far)
        os.set_blocking(self._near, False)
        new = self._link.with_name(self._link.name + ".new")
        new.unlink(missing_ok=True)
        new.symlink_to(os.ttyname(self._far))
        new.rename(self._link)

    def unplug(self) -> None:
        """Vanish."""
        self._link.unlink(missing_ok=True)
        for end in (self._near, self._far):
            if end is not None:
                os.close(end)
        self._near = self._far = None

    def read(self) -> bytes:
        """Return what the host has sent."""
        if self._near is None:
            return b""
        try:
            return os.read(self._near, 4096)
        except (BlockingIOError, OSError):
            return b""

    def write(self, data: bytes) -> None:
        """Send to the host; what a host that does not read has no room for is lost."""
        if self._near is not None and data:
            with contextlib.suppress(BlockingIOError, OSError):
                os.write(self._near, data)

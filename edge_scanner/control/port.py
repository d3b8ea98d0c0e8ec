"""What the control server asks of the scanner."""

from __future__ import annotations

from typing import Any, Protocol

from edge_scanner.plan import ScanRequest
from edge_scanner.state import State


class ScannerPort(Protocol):
    """The scanner as the control thread sees it.

    Every method returns at once: work goes on elsewhere. Refusals are `ScannerError`s whose `code` is one of the
    protocol's. The server has checked lease and state before it calls; the scanner checks the state again under its
    own lock, since it may have moved on. Two promises make waiting clients safe: a command's first state (`HOMING`,
    `PREPARING`, `EXPORTING`...) is visible before its method returns, and an outcome is visible in `scans` before
    the state leaves the busy ones. Events are published after the change that they tell of. All results are plain
    JSON types without NaN.
    """

    def state(self) -> State:
        """Return the present state; called about twenty times a second."""
        ...

    def hello(self) -> dict[str, Any]:
        """Return versions, capabilities and execution providers; the server adds what it knows itself."""
        ...

    def status(self) -> dict[str, Any]:
        """Return the snapshot that `status` answers with; the server adds `seq`, `session` and `lease`."""
        ...

    def scans(self) -> list[dict[str, Any]]:
        """Return `scan_id state outcome tiles done started` of every scan on the disk."""
        ...

    def preview(self) -> bytes | None:
        """Return the latest frame as JPEG; None before the first."""
        ...

    def home(self) -> None:
        """Start homing."""
        ...

    def scan(self, request: ScanRequest) -> str:
        """Start or go on with a scan and return its id.

        Raises
        ------
        ScannerError
            `position.unknown`, `limits.exceeded`, `not_found`, `disk.low`, `plan.differs`, `device`.
        """
        ...

    def pause(self) -> None:
        """Ask the running scan to pause after the tile in hand."""
        ...

    def resume(self) -> None:
        """Let a paused scan go on."""
        ...

    def cancel(self) -> None:
        """Ask the work under way to end; what was done is kept."""
        ...

    def stop(self) -> None:
        """Emergency stop: halt the stage now, in the calling thread, and latch. Never waits for another lock."""
        ...

    def reset(self) -> None:
        """Leave FAULT for IDLE with the position unknown."""
        ...

    def export(self, scan_id: str) -> None:
        """Start exporting a finished scan; `not_found` for an unknown one."""
        ...

    def shutdown(self) -> None:
        """Ask the daemon to end; the state becomes STOPPED when it has."""
        ...

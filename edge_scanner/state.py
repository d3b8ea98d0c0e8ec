"""The daemon's states, the scan's outcomes, and which command is legal where: one table."""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """What the daemon is doing."""

    STARTING = "STARTING"
    IDLE = "IDLE"
    HOMING = "HOMING"
    PREPARING = "PREPARING"
    SCANNING = "SCANNING"
    PAUSED = "PAUSED"
    FINISHING = "FINISHING"
    EXPORTING = "EXPORTING"
    FAULT = "FAULT"
    STOPPED = "STOPPED"


class Outcome(StrEnum):
    """How a scan ended; separate from the state."""

    COMPLETED = "completed"
    CANCELLED = "cancelled"
    FAILED = "failed"


BUSY = frozenset({State.HOMING, State.PREPARING, State.SCANNING, State.PAUSED, State.FINISHING, State.EXPORTING})
"""States in which work is under way that `cancel` ends."""

ANY = frozenset(State) - {State.STOPPED}

LEGAL: dict[str, frozenset[State]] = {
    "hello": ANY,
    "status": ANY,
    "scans": ANY,
    "preview": ANY,
    "lease.release": ANY,
    "stop": ANY,
    "shutdown": ANY,
    "home": frozenset({State.IDLE}),
    "scan": frozenset({State.IDLE}),
    "export": frozenset({State.IDLE}),
    "pause": frozenset({State.SCANNING}),
    "resume": frozenset({State.PAUSED}),
    "cancel": BUSY,
    "reset": frozenset({State.FAULT}),
}
"""Command -> the states in which it is legal."""

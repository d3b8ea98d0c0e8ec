"""The state machine: the present state, the outcome of the last scan, the latched fault."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from edge_scanner.errors import ScannerError, StateError
from edge_scanner.state import LEGAL, Outcome, State

Publish = Callable[[str, Mapping[str, Any]], object]


class Machine:
    """State, outcome and fault behind one lock; publishes `state` and `fault` events after each change.

    Parameters
    ----------
    publish : callable
        `publish(topic, fields)`; never blocks.
    """

    def __init__(self, publish: Publish) -> None:
        self._publish = publish
        self._lock = threading.RLock()
        self._state = State.STARTING
        self._outcome: Outcome | None = None
        self._fault: dict[str, str] | None = None
        self._scan_id: str | None = None

    @property
    def state(self) -> State:
        """The present state."""
        return self._state

    def snapshot(self) -> dict[str, Any]:
        """Return `state`, `outcome`, `scan_id` and `fault` as they belong together."""
        with self._lock:
            return {
                "state": self._state.value,
                "outcome": None if self._outcome is None else self._outcome.value,
                "scan_id": self._scan_id,
                "fault": None if self._fault is None else dict(self._fault),
            }

    def begin(self, command: str, state: State, scan_id: str | None = None) -> None:
        """Enter a busy state for a command.

        Raises
        ------
        StateError
            When the command is not legal in the present state, which then does not change.
        """
        with self._lock:
            if self._state not in LEGAL[command]:
                legal = ", ".join(sorted(LEGAL[command]))
                raise StateError(f"{command} is not possible in state {self._state}.", f"It is in: {legal}.")
            if scan_id is not None:
                self._scan_id, self._outcome = scan_id, None
            self._enter(state)

    def advance(self, state: State, *, only_from: State | None = None) -> bool:
        """Go on to the next state of the work under way; a latched fault stays. Tell whether it was entered."""
        with self._lock:
            if self._state in (State.FAULT, State.STOPPED) or (only_from and self._state is not only_from):
                return False
            if self._state is not state:
                self._enter(state)
            return True

    def end_scan(self, outcome: Outcome) -> None:
        """Set the outcome; the state follows by `advance`."""
        with self._lock:
            self._outcome = outcome

    def fail(self, error: BaseException) -> None:
        """Latch a fault; the first one stays until `clear`, except that an emergency stop replaces any other."""
        known = error if isinstance(error, ScannerError) else None
        fault = {
            "code": known.code if known else "internal",
            "message": known.message if known else f"{type(error).__name__}: {error}",
            "advice": (known.advice if known else "") or "Send reset, then home.",
        }
        with self._lock:
            if self._state is State.STOPPED or (self._fault and fault["code"] != "emergency_stop"):
                return
            self._fault = fault
            self._enter(State.FAULT)
            self._publish("fault", {**fault, "scan_id": self._scan_id})

    def clear(self) -> None:
        """Leave FAULT for IDLE."""
        with self._lock:
            if self._state is State.FAULT:
                self._fault = None
                self._enter(State.IDLE)

    def stopped(self) -> None:
        """Enter the last state."""
        with self._lock:
            self._enter(State.STOPPED)

    def _enter(self, state: State) -> None:
        self._state = state
        outcome = None if self._outcome is None else self._outcome.value
        self._publish("state", {"state": state.value, "outcome": outcome, "scan_id": self._scan_id})

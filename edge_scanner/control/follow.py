"""What a client needs to follow the daemon: events, their order, the verbs, and the errors it may meet."""

from __future__ import annotations

import json
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from edge_scanner.control.messages import LEASED, PROTOCOL_VERSION
from edge_scanner.errors import ScannerError, UsageError
from edge_scanner.state import BUSY, State

SNAPSHOT = "snapshot"
"""Topic of an `Event` that the client makes from `status`: at the start, after a gap and after silence."""

ENDED = {"state": State.STOPPED.value}
"""What `shutdown` gives where the daemon was gone before its last reply could be read: libzmq drops that."""

WORKING = BUSY | {State.STARTING}


TRIES = 3
"""How often a request is sent within its time-out."""
POLL_S = 1.0
RELEASE_S = 1.0


class RemoteError(ScannerError):
    """The daemon refused a request; `code`, `message` and `advice` are the daemon's."""


class NoAnswerError(ScannerError):
    """No daemon answered in time; whether it carried the request out is not known."""

    def __init__(self, endpoint: str, timeout_s: float, why: tuple[str, str]) -> None:
        cause, advice = why
        super().__init__(f"No daemon answers at {endpoint} (waited {timeout_s:g} s). {cause}", advice)


@dataclass(frozen=True, slots=True)
class Event:
    """One event, or a snapshot of the status in its place.

    Parameters
    ----------
    topic : str
        `state progress tile chunk fault log heartbeat`, or `snapshot`.
    seq : int
        Running number within the session.
    session : str
        Names the run of the daemon.
    fields : mapping
        Everything that came with it; of a snapshot the result of `status`.
    """

    topic: str
    seq: int
    session: str
    fields: Mapping[str, Any]

    @classmethod
    def decode(cls, topic: bytes, body: bytes) -> Event:
        """Read an event's two frames."""
        fields = json.loads(body)
        return cls(topic.decode(), fields["seq"], fields["session"], fields)

    @classmethod
    def snapshot(cls, status: Mapping[str, Any]) -> Event:
        """Return a status as an event."""
        return cls(SNAPSHOT, status["seq"], status["session"], status)


class Sequence:
    """Tells whether events are missing, given the snapshot that they follow on."""

    def __init__(self, start: Event) -> None:
        self.last = start

    def is_old(self, event: Event) -> bool:
        """Tell whether a snapshot that was seen already includes the event."""
        return event.session == self.last.session and event.seq <= self.last.seq

    def follows(self, event: Event) -> bool:
        """Tell whether the event is the very next one."""
        return event.session == self.last.session and event.seq == self.last.seq + 1

    def advance(self, event: Event) -> Event:
        """Go on from that event or snapshot, and return it."""
        self.last = event
        return event


def encode_request(cmd: str, args: Mapping[str, object], client: str) -> tuple[str, bytes]:
    """Return a new id and the request that bears it.

    Raises
    ------
    UsageError
        When the arguments cannot be written as JSON (NaN, infinity, no plain type).
    """
    request_id = uuid.uuid4().hex
    request = {"v": PROTOCOL_VERSION, "id": request_id, "cmd": cmd, "args": args, "client": client}
    try:
        return request_id, json.dumps(request, allow_nan=False, separators=(",", ":")).encode("ascii")
    except (TypeError, ValueError) as error:
        raise UsageError(f"The arguments of {cmd} cannot be sent ({error}).") from error


def result_of(reply: Mapping[str, Any]) -> Any:
    """Return the result of a reply.

    Raises
    ------
    RemoteError
        When the daemon refused.
    """
    if reply["ok"]:
        return reply["result"]
    error = reply["error"]
    raise RemoteError(error["message"], error["advice"], code=error["code"])


def new_name() -> str:
    """Return a client name that nobody else has."""
    return f"client-{uuid.uuid4().hex[:12]}"


Answer = TypeVar("Answer")


class Verbs(ABC, Generic[Answer]):
    """The commands as methods; each returns the result, or in `AsyncClient` an awaitable of it."""

    @abstractmethod
    def request(self, cmd: str, /, **args: object) -> Answer:
        """Send a command and return its result."""

    def hello(self) -> Answer:
        """Versions, capabilities, providers."""
        return self.request("hello")

    def status(self) -> Answer:
        """Snapshot of the daemon."""
        return self.request("status")

    def scans(self) -> Answer:
        """Every scan on the daemon's disk."""
        return self.request("scans")

    def preview(self) -> Answer:
        """Latest frame, `{"jpeg": base64}`."""
        return self.request("preview")

    def home(self) -> Answer:
        """Start homing."""
        return self.request("home")

    def scan(self, **args: object) -> Answer:
        """Start a scan: `x_mm y_mm width_mm height_mm`, or `plan`, or `resume`; the result has `scan_id`."""
        return self.request("scan", **args)

    def pause(self) -> Answer:
        """Pause the running scan."""
        return self.request("pause")

    def resume(self) -> Answer:
        """Let a paused scan go on."""
        return self.request("resume")

    def cancel(self) -> Answer:
        """End the work under way."""
        return self.request("cancel")

    def stop(self) -> Answer:
        """Emergency stop, latched until `reset` and `home`."""
        return self.request("stop")

    def reset(self) -> Answer:
        """Leave FAULT; the position is unknown afterwards."""
        return self.request("reset")

    def export(self, scan_id: str) -> Answer:
        """Start exporting a finished scan."""
        return self.request("export", scan_id=scan_id)

    def lease_release(self) -> Answer:
        """Let other clients take control."""
        return self.request("lease.release")

    def shutdown(self) -> Answer:
        """End the daemon."""
        return self.request("shutdown")


def leased_after(cmd: str, before: bool) -> bool:
    """Tell whether this client has the lease once `cmd` was carried out."""
    if cmd in ("lease.release", "shutdown"):
        return False
    return before or cmd in LEASED


class Turns:
    """When a waiting client asks for the status: at changes of state, and each second whatever it hears."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._deadline_s = time.monotonic() + timeout_s
        self._next_s = 0.0
        self.silence_s = min(POLL_S, timeout_s)

    def is_due(self, event: Event) -> bool:
        """Tell whether to ask now."""
        now_s = time.monotonic()
        if event.topic not in ("state", "fault") and now_s < self._next_s:
            return False
        self._next_s = now_s + POLL_S
        return True

    def check(self) -> None:
        """Raise when the waiting has lasted too long."""
        if time.monotonic() >= self._deadline_s:
            raise ScannerError(f"The daemon still works after {self._timeout_s:g} s.", "Wait longer, or cancel.")


def is_working(status: dict[str, Any]) -> bool:
    """Tell whether a status says that work is under way."""
    return status["state"] in WORKING


def with_outcome(status: dict[str, Any], scans: list[dict[str, Any]], scan_id: str) -> dict[str, Any]:
    """Return a status whose `outcome` is that of a scan."""
    return {**status, "outcome": next((scan["outcome"] for scan in scans if scan["scan_id"] == scan_id), None)}

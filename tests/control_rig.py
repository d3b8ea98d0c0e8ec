"""A small scanner with a real state machine, and a server around it in a thread, for the tests of the control layer."""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zmq

from edge_scanner.config import ControlConfig
from edge_scanner.control.events import EventBus
from edge_scanner.control.server import ControlServer
from edge_scanner.devices.clock import Clock
from edge_scanner.errors import (
    DeviceError,
    DiskLowError,
    EmergencyStopError,
    LimitsError,
    NotFoundError,
    PositionUnknownError,
    ScannerError,
    StateError,
)
from edge_scanner.plan import ScanRequest
from edge_scanner.state import BUSY, LEGAL, State

PATIENT_S = 60.0
"""For what must come: a busy machine makes it late, and only a fault that late."""


class SmallScanner:
    """Implements `ScannerPort`; work lasts until `finish` is called. `calls` lists what was really done."""

    def __init__(self, bus: EventBus) -> None:
        self.bus = bus
        self.calls: list[str] = []
        self.homed = False
        self.fault: dict[str, str] | None = None
        self.known: dict[str, dict[str, Any]] = {}
        self.running: str | None = None
        self.jpeg: bytes | None = None
        self.trouble: Exception | None = None
        self._state = State.IDLE
        self._lock = threading.RLock()

    def state(self) -> State:
        return self._state

    def snapshot(self) -> tuple[object, ...]:
        """Everything that a refused message must leave as it is."""
        with self._lock:
            return self._state, self.homed, self.running, tuple(self.calls), tuple(self.known)

    def enter(self, state: State) -> None:
        """Change the state and tell it."""
        with self._lock:
            self._state = state
            self.bus.publish("state", {"state": state})

    def finish(self, outcome: str = "completed") -> None:
        """End the work under way."""
        with self._lock:
            if self._state is State.HOMING:
                self.homed = True
            if self.running is not None:
                self.known[self.running].update(state=outcome, outcome=outcome)
                self.running = None
            self.enter(State.IDLE)

    def hello(self) -> dict[str, Any]:
        return {"version": "0", "providers": []}

    def status(self) -> dict[str, Any]:
        with self._lock:
            return {"state": self._state, "outcome": None, "scan_id": self.running, "fault": self.fault}

    def scans(self) -> list[dict[str, Any]]:
        with self._lock:
            return [dict(scan) for scan in self.known.values()]

    def preview(self) -> bytes | None:
        return self.jpeg

    def home(self) -> None:
        self._do("home", State.HOMING)

    def scan(self, request: ScanRequest) -> str:
        if self.trouble is not None:
            raise self.trouble
        with self._lock:
            if request.resume is not None:
                if request.resume not in self.known:
                    raise NotFoundError(f"There is no scan {request.resume}.")
                if request.resume == "other":
                    raise ScannerError("The plan is another one.", code="plan.differs")
                scan_id = request.resume
            else:
                if self.fault is not None:
                    raise EmergencyStopError("The emergency stop is latched.")
                if not self.homed:
                    raise PositionUnknownError("The stage is not homed.", "Home first.")
                if request.region is not None and request.region.x_mm > 100:
                    raise LimitsError("The region lies beyond the stage.")
                if request.region is not None and request.region.width_mm > 50:
                    raise DiskLowError("That needs more room than there is.")
                scan_id = f"scan-{len(self.known)}"
            self.known[scan_id] = {
                "scan_id": scan_id, "state": "SCANNING", "outcome": None, "tiles": 4, "done": 0, "started": 0.0,
            }  # fmt: skip
            self.running = scan_id
            self._do("scan", State.SCANNING)
            return scan_id

    def pause(self) -> None:
        self._do("pause", State.PAUSED)

    def resume(self) -> None:
        self._do("resume", State.SCANNING)

    def cancel(self) -> None:
        self._do("cancel", None)
        self.finish("cancelled")

    def stop(self) -> None:
        with self._lock:
            self.calls.append("stop")
            self.homed = False
            self.fault = {"code": "emergency_stop", "message": "Stopped.", "advice": "Reset, then home."}
            self.enter(State.FAULT)

    def reset(self) -> None:
        self._do("reset", State.IDLE)
        self.fault = None

    def export(self, scan_id: str) -> None:
        if scan_id not in self.known:
            raise NotFoundError(f"There is no scan {scan_id}.")
        self._do("export", State.EXPORTING)

    def shutdown(self) -> None:
        self._do("shutdown", State.STOPPED)

    def _do(self, name: str, state: State | None) -> None:
        with self._lock:
            if self._state not in LEGAL[name]:
                raise StateError(f"{name} came too late.")
            if isinstance(self.trouble, DeviceError):
                raise self.trouble
            self.calls.append(name)
            if state is not None:
                self.enter(state)


class Served:
    """A server in its thread, with its scanner."""

    def __init__(self, folder: Path, clock: Clock | None = None, **control: Any) -> None:
        self.config = ControlConfig(
            **{"endpoint": f"ipc://{folder}/c.ipc", "events": f"ipc://{folder}/e.ipc", "heartbeat_s": 0.2} | control
        )
        self.bus = EventBus()
        self.scanner = SmallScanner(self.bus)
        self._clock = clock
        self._ready = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def _serve(self) -> None:
        with ControlServer(self.config, self.scanner, self.bus, self._clock) as server:
            self.endpoint, self.events = server.endpoint, server.events_endpoint
            self._ready.set()
            while not self._ended.is_set() and self.scanner.state() is not State.STOPPED:
                server.serve_once(20)

    def __enter__(self) -> Served:
        self._thread.start()
        assert self._ready.wait(PATIENT_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(PATIENT_S)
        assert not self._thread.is_alive()


@contextlib.contextmanager
def raw_socket(served: Served, kind: int = zmq.DEALER) -> Iterator[zmq.Socket[bytes]]:
    """A bare client socket: nothing between the test and the wire."""
    context = zmq.Context()
    opened = context.socket(kind)
    opened.setsockopt(zmq.RCVTIMEO, int(PATIENT_S * 1000))
    opened.connect(served.config.endpoint)
    try:
        yield opened
    finally:
        context.destroy(linger=0)


def request(cmd: str, args: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """An envelope with a fresh id."""
    return {"v": 1, "id": uuid.uuid4().hex, "cmd": cmd, "args": args or {}, **more}


REGION = {"x_mm": 0.0, "y_mm": 0, "width_mm": 2.5, "height_mm": 1}
WORKING = BUSY

"""The control server: commands in by ROUTER, events out by PUB, all in the caller's thread."""

from __future__ import annotations

import base64
import json
import logging
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq

from edge_scanner.config import ControlConfig
from edge_scanner.control import endpoint as endpoints
from edge_scanner.control import messages
from edge_scanner.control.events import EventBus
from edge_scanner.control.gate import Gate
from edge_scanner.control.keys import Keyring
from edge_scanner.control.lease import Lease
from edge_scanner.control.messages import Command
from edge_scanner.control.port import ScannerPort
from edge_scanner.control.replies import Replies
from edge_scanner.control.trail import Trail
from edge_scanner.devices.clock import Clock, RealClock
from edge_scanner.errors import NotFoundError, ScannerError, StateError, UsageError
from edge_scanner.state import BUSY, LEGAL, State

POLL_MS = 50
BATCH = 256
"""Messages read ahead of those being answered, and answered between two ticks."""
READ_AHEAD_BYTES = 8 << 20
REMEMBERED = 4096
REMEMBERED_BYTES = 8 << 20
STOP_BYTES = 4096
"""A longer message is not looked at for the stop's fast path."""
LAST_WORDS_MS = 2000
REVOKED_S = 1.0
"""How often the keys of those who are connected are looked at again."""

_log = logging.getLogger(__name__)


class ControlServer:
    """Answers commands and sends events; never waits for work.

    A context manager: entering binds, leaving unbinds. Everything but `EventBus.publish` belongs to one thread.

    Memory bound: 8 MiB of requests read ahead, 4096 replies to actions, 8 MiB of other replies, and what libzmq
    holds: 256 requests of at most `max_message_kb` for each client, 1000 events for each subscriber.

    Parameters
    ----------
    config : ControlConfig
        `[control]`.
    scanner : ScannerPort
    bus : EventBus
        Where all threads publish; the server closes it.
    clock : Clock, optional
        Of leases and heartbeats; the machine's by default.
    """

    def __init__(self, config: ControlConfig, scanner: ScannerPort, bus: EventBus, clock: Clock | None = None) -> None:
        self._config = config
        self._scanner = scanner
        self._bus = bus
        self._clock = clock or RealClock()
        self._lease = Lease(self._clock, config.lease_s)
        self._actions = Replies(REMEMBERED, REMEMBERED_BYTES)
        self._others = Replies(REMEMBERED, REMEMBERED_BYTES)
        self._pending: deque[list[bytes]] = deque()
        self.trail = Trail()
        self._faulty = False
        self._next_heartbeat_s = self._next_look_s = self._clock.now_s()

    def __enter__(self) -> ControlServer:
        wanted = [self._config.endpoint, self._config.events]
        guarded = self._config.keys and any(one.startswith("tcp://") for one in wanted)
        self._gate = Gate(Keyring(Path(self._config.keys))) if guarded else None
        for one in wanted:
            endpoints.check(one, curve=self._gate is not None)
            endpoints.prepare(one)
        self._open(*wanted)
        try:
            if self._gate is not None:
                for bound, kind in ((self.endpoint, zmq.DEALER), (self.events_endpoint, zmq.SUB)):
                    if bound.startswith("tcp://"):
                        self._gate.prove(bound, kind)
        except BaseException:
            self._context.destroy(linger=0)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._send_events()
        self._context.destroy(linger=LAST_WORDS_MS)
        self._bus.close()

    @property
    def endpoint(self) -> str:
        """Where commands are answered, wildcards resolved."""
        return str(self._commands.getsockopt_string(zmq.LAST_ENDPOINT))

    @property
    def events_endpoint(self) -> str:
        """Where events are sent, wildcards resolved."""
        return str(self._events.getsockopt_string(zmq.LAST_ENDPOINT))

    def serve_forever(self, tick: Callable[[], None]) -> None:
        """Serve until the scanner is STOPPED; call `tick` about twenty times a second."""
        while self._scanner.state() is not State.STOPPED:
            self.serve_once(POLL_MS)
            tick()

    def serve_once(self, timeout_ms: int) -> None:
        """Wait at most that long for something to do, and do it: at most `BATCH` requests, all events."""
        self._poller.poll(timeout_ms)
        self._admit()
        self._heartbeat()
        self._send_events()
        for _ in range(BATCH):
            self._read_ahead()
            if not self._pending:
                break
            self._answer(self._pending.popleft())
            self._send_events()
        self._explain()

    def _open(self, commands: str, events: str) -> None:
        self._context = zmq.Context()
        self._poller = zmq.Poller()
        try:
            if self._gate is not None:
                self._poller.register(self._gate.open(self._context), zmq.POLLIN)
            self._commands = self._socket(zmq.ROUTER, commands)
            self._events = self._socket(zmq.PUB, events)
        except BaseException:
            self._context.destroy(linger=0)
            raise
        self._poller.register(self._commands, zmq.POLLIN)
        self._poller.register(self._bus.fileno(), zmq.POLLIN)

    def _admit(self) -> None:
        """Let new clients in; after a revocation connect everyone anew, since libzmq cannot end one connection."""
        if self._gate is None:
            return
        self._gate.answer()
        now_s = self._clock.now_s()
        if now_s < self._next_look_s:
            return
        self._next_look_s = now_s + REVOKED_S
        if self._gate.has_revoked():
            _log.warning("A key was revoked; every client connects anew.")
            bound = self.endpoint, self.events_endpoint
            self._pending.clear()  # whoever asked asks again, under the same id
            self._context.destroy(linger=0)
            self._open(*bound)

    def _socket(self, kind: int, endpoint: str) -> zmq.Socket[bytes]:
        opened = self._context.socket(kind)
        opened.setsockopt(zmq.LINGER, 0)
        opened.setsockopt(zmq.SNDTIMEO, 0)
        opened.setsockopt(zmq.MAXMSGSIZE, int(self._config.max_message_kb * 1024))
        opened.setsockopt(zmq.RCVHWM, BATCH)
        opened.setsockopt(zmq.HEARTBEAT_IVL, 2000)
        opened.setsockopt(zmq.HEARTBEAT_TIMEOUT, 6000)
        opened.setsockopt(zmq.HEARTBEAT_TTL, 6000)
        if self._gate is not None and endpoint.startswith("tcp://"):
            self._gate.guard(opened)
        try:
            opened.bind(endpoint)
        except zmq.ZMQError as error:
            raise UsageError(f"The endpoint {endpoint} cannot be bound ({error}).", "Choose another one.") from error
        endpoints.grant(endpoint)
        return opened

    def _explain(self) -> None:
        """Log what was asked before a fault, once for each."""
        faulty = self._scanner.state() is State.FAULT
        if faulty and not self._faulty:
            _log.error("A fault; the last requests were %s", json.dumps(self.trail.dump()))
        self._faulty = faulty

    def _heartbeat(self) -> None:
        now_s = self._clock.now_s()
        if now_s >= self._next_heartbeat_s:
            self._next_heartbeat_s = now_s + self._config.heartbeat_s
            self._bus.publish("heartbeat", {"state": self._scanner.state()})

    def _send_events(self) -> None:
        for frames in self._bus.take():
            self._events.send_multipart(frames)  # PUB drops for a slow subscriber, it never blocks

    def _read_ahead(self) -> None:
        """Take what has arrived; answer an emergency stop on the spot, before anything that came earlier."""
        held = sum(len(frames[-1]) for frames in self._pending)
        while len(self._pending) < BATCH and held < READ_AHEAD_BYTES:
            try:
                frames = self._commands.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            if _is_stop(frames[-1]):
                self._answer(frames)
            else:
                self._pending.append(frames)
                held += len(frames[-1])

    def _answer(self, frames: list[bytes]) -> None:
        sender, *rest = frames
        delimiter = [b""] if len(rest) > 1 and rest[0] == b"" else []
        body = rest[-1] if len(rest) == 1 + len(delimiter) else b""
        try:
            self._commands.send_multipart([sender, *delimiter, self._reply(sender, body)])
        except zmq.Again:
            _log.warning("A client does not read its replies; one was dropped.")

    def _reply(self, sender: bytes, body: bytes) -> bytes:
        try:
            raw = messages.read(body)
        except ScannerError as error:
            self.trail.note(_name(None, sender), {}, error.code, error.message)
            return messages.error_reply(None, error)
        client = _name(raw.get("client"), sender)
        self._lease.heard(client)
        request_id = messages.readable_id(raw)
        if request_id is None:
            return self._refusal(raw, client)
        if first := self._actions.get(request_id) or self._others.get(request_id):
            return first
        reply = self._carry_out(raw, request_id, client)
        action = str(raw.get("cmd")) in messages.ACTIONS  # it may be anything
        (self._actions if action else self._others).put(request_id, reply)
        return reply

    def _refusal(self, raw: dict[str, Any], client: str) -> bytes:
        try:
            messages.understand(raw)
        except ScannerError as error:
            self.trail.note(client, raw, error.code, error.message)
            return messages.error_reply(None, error)
        raise AssertionError("a request without an id was understood")

    def _carry_out(self, raw: dict[str, Any], request_id: str, client: str) -> bytes:
        try:
            command = messages.understand(raw)
            state = self._scanner.state()
            if command.name in messages.LEASED:
                self._lease.check(client)
            if state not in LEGAL[command.name]:
                raise _illegal(command.name, state)
            result = self._perform(command, client)
            if command.name in messages.LEASED:
                self._lease.take(client)
            self.trail.note(client, raw, "ok")
            return messages.ok_reply(request_id, result)
        except ScannerError as error:
            self.trail.note(client, raw, error.code, error.message)
            return messages.error_reply(request_id, error)
        except Exception as error:  # noqa: BLE001  the server must outlive a fault of the scanner
            _log.exception("A command failed.")
            self.trail.note(client, raw, "internal")
            cause = ScannerError(f"The daemon failed with {type(error).__name__}.", "Its log says more.")
            return messages.error_reply(request_id, cause)

    def _perform(self, command: Command, client: str) -> object:
        match command.name:
            case "hello":
                return self._hello()
            case "status":
                return self._status()
            case "scans":
                return self._scanner.scans()
            case "preview":
                return self._preview()
            case "lease.release":
                return {"released": self._lease.release(client)}
            case "scan":
                assert command.scan is not None
                return {"scan_id": self._scanner.scan(command.scan)}
            case "export":
                self._scanner.export(command.scan_id)
            case name:
                {
                    "home": self._scanner.home,
                    "pause": self._scanner.pause,
                    "resume": self._scanner.resume,
                    "cancel": self._scanner.cancel,
                    "stop": self._scanner.stop,
                    "reset": self._scanner.reset,
                    "shutdown": self._scanner.shutdown,
                }[name]()
        return {"state": self._scanner.state()}

    def _hello(self) -> dict[str, Any]:
        return {
            **self._scanner.hello(),
            "protocol": {"min": messages.PROTOCOL_VERSION, "max": messages.PROTOCOL_VERSION},
            "commands": list(messages.ARGUMENTS),
            "state": self._scanner.state(),
            "session": self._bus.session,
            "events": self.events_endpoint,
            "lease_s": self._config.lease_s,
            "heartbeat_s": self._config.heartbeat_s,
        }

    def _status(self) -> dict[str, Any]:
        seq = self._bus.seq  # before the snapshot: what happens meanwhile is told again, never lost
        lease = self._lease.as_json()
        return {**self._scanner.status(), "seq": seq, "session": self._bus.session, "lease": lease}

    def _preview(self) -> dict[str, str]:
        jpeg = self._scanner.preview()
        if jpeg is None:
            raise NotFoundError("There is no frame yet.", "Ask again after the first exposure.")
        return {"jpeg": base64.b64encode(jpeg).decode("ascii")}


def _name(client: object, sender: bytes) -> str:
    return client if isinstance(client, str) and client else f"peer-{sender.hex()}"


def _is_stop(body: bytes) -> bool:
    if len(body) > STOP_BYTES or b"stop" not in body:
        return False
    try:
        return messages.read(body).get("cmd") == "stop"
    except ScannerError:
        return False


def _illegal(command: str, state: State) -> StateError:
    legal = " ".join(sorted(LEGAL[command]))
    advice = "Ask for the status to see what it is doing."
    if state is State.FAULT:
        advice = "Send reset, then home."
    elif state in BUSY and State.IDLE in LEGAL[command]:
        advice = "Wait until the work under way has ended, or send cancel."
    return StateError(f"{command} is not legal in state {state}, only in {legal}.", advice)

"""The client's sockets, and what became of their connection."""

from __future__ import annotations

import contextlib
from typing import Any
from urllib.parse import urlsplit

import zmq
from zmq.utils.monitor import parse_monitor_message

from edge_scanner.control.keys import Credentials
from edge_scanner.errors import UsageError

_WATCHED = (
    zmq.EVENT_CONNECTED
    | zmq.EVENT_CLOSED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
_WHY = {
    zmq.EVENT_CONNECTED: (
        "Something listens there, but does not speak to this client.",
        "Check that the endpoint is the daemon's, and whether it asks for keys (--server-key, --key).",
    ),
    zmq.EVENT_HANDSHAKE_SUCCEEDED: ("It is connected, but silent.", "Look at the daemon's log."),
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: (
        "It does not allow this client's key.",
        "Have the key allowed on the daemon's machine: edge-scanner keys allow NAME KEY.",
    ),
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: (
        "Keys are used on one side only, or what listens there is no daemon.",
        "Give --server-key and --key where the daemon has keys, and neither where it has none.",
    ),
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: (
        "It hung up: the server key is not this daemon's, or keys are used on one side only.",
        "Get the daemon's present server.key; give none where the daemon has no keys.",
    ),
}
_ONE_SIDED = _WHY[zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL]
_DOWN = (
    "Nothing listens there.",
    "Check that it runs, that the endpoint is right, and that you may write to its socket.",
)


class Door:
    """Remembers how the last attempt to connect ended, which the socket itself does not tell.

    Parameters
    ----------
    socket : zmq.Socket
        Not connected yet; of a plain or an asyncio context.
    has_keys : bool
        Whether it comes with keys.
    """

    def __init__(self, socket: Any, has_keys: bool) -> None:
        self._socket = socket
        self._has_keys = has_keys
        address = f"inproc://door-{id(socket)}"
        socket.monitor(address, _WATCHED)
        self._told: zmq.Socket[bytes] = zmq.Context.shadow(socket.context.underlying).socket(zmq.PAIR)
        self._told.setsockopt(zmq.LINGER, 0)
        self._told.connect(address)
        self._last: zmq.Event | None = None

    def why(self) -> tuple[str, str]:
        """Return cause and advice for a daemon that does not answer."""
        while self._told.poll(0):
            event = zmq.Event(int(parse_monitor_message(self._told.recv_multipart())["event"]))
            if event == zmq.EVENT_CLOSED:  # could not even connect
                self._last = None
            elif event == zmq.EVENT_DISCONNECTED:
                self._last = None if self._last == zmq.EVENT_HANDSHAKE_SUCCEEDED else self._last
            elif event != zmq.EVENT_CONNECTED or self._last is None:
                self._last = event
        if self._last is None:
            return _DOWN
        # A daemon that wants keys hangs up on one who shows none; whether its greeting is read before is a race.
        hung_up = self._last == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
        return _ONE_SIDED if hung_up and not self._has_keys else _WHY[self._last]

    @property
    def is_down(self) -> bool:
        """Whether nothing listens there."""
        return self.why() == _DOWN

    def knock(self, endpoint: str) -> None:
        """Connect anew if the last attempt was refused: libzmq gives up then, though the key may be allowed by now."""
        self.why()
        if self._last == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            with contextlib.suppress(zmq.ZMQError):
                self._socket.disconnect(endpoint)
            self._socket.connect(endpoint)

    def close(self) -> None:
        """Stop watching; before the context ends."""
        self._told.close(linger=0)


def dealer(context: Any, endpoint: str, credentials: Credentials | None = None) -> tuple[Any, Door]:
    """Return a DEALER socket for commands, which queues nothing while nobody answers, and its door.

    Raises
    ------
    UsageError
        When the endpoint cannot be used as written.
    """
    opened = _opened(context, zmq.DEALER, credentials)
    opened.setsockopt(zmq.IMMEDIATE, 1)
    door = Door(opened, credentials is not None)
    try:
        return _connected(opened, endpoint), door
    except UsageError:
        door.close()
        raise


def subscriber(context: Any, endpoint: str, credentials: Credentials | None = None) -> Any:
    """Return a SUB socket for all events; see `dealer`."""
    opened = _opened(context, zmq.SUB, credentials)  # IMMEDIATE would keep its subscription from ever being sent
    opened.setsockopt(zmq.SUBSCRIBE, b"")
    return _connected(opened, endpoint)


def reachable(events: str, endpoint: str) -> str:
    """Return where events are reached, given where commands are: a wildcard address becomes the daemon's own."""
    if not (events.startswith("tcp://") and endpoint.startswith("tcp://")):
        return events
    host, _, port = events.removeprefix("tcp://").rpartition(":")
    if host not in ("0.0.0.0", "[::]", "*"):
        return events
    return f"tcp://{urlsplit(endpoint).netloc.rpartition(':')[0]}:{port}"


def _opened(context: Any, kind: int, credentials: Credentials | None) -> Any:
    opened = context.socket(kind)
    opened.setsockopt(zmq.LINGER, 0)
    opened.setsockopt(zmq.RECONNECT_IVL, 50)
    opened.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
    opened.setsockopt(zmq.HEARTBEAT_IVL, 2000)
    opened.setsockopt(zmq.HEARTBEAT_TIMEOUT, 6000)
    if credentials is not None:
        opened.setsockopt(zmq.CURVE_SERVERKEY, credentials.server)
        opened.setsockopt(zmq.CURVE_PUBLICKEY, credentials.own.public)
        opened.setsockopt(zmq.CURVE_SECRETKEY, credentials.own.secret)
    return opened


def _connected(opened: Any, endpoint: str) -> Any:
    try:
        opened.connect(endpoint)
    except zmq.ZMQError as error:
        opened.close(linger=0)
        raise UsageError(f"The endpoint {endpoint!r} cannot be used ({error}).") from error
    return opened

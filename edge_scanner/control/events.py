"""Events on their way from any thread to the control thread, which alone owns the PUB socket."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping

from edge_scanner.control.messages import PROTOCOL_VERSION

TOPICS = frozenset({"state", "progress", "tile", "chunk", "fault", "log", "heartbeat"})
RESERVED = frozenset({"v", "seq", "t", "session"})


class EventBus:
    """Numbered events from any thread, taken by one.

    Memory bound: `bound` events wait at most; beyond, the oldest is dropped, since publishing never blocks a scan.
    A dropped event leaves a gap in `seq`, which is how a client learns of it.

    Parameters
    ----------
    bound : int
        Events that may wait.
    wall_s : callable
        Wall time in seconds, the `t` of an event.

    Attributes
    ----------
    session : str
        Names this run of the daemon: numbers of different sessions do not compare.
    """

    def __init__(self, bound: int = 4096, wall_s: Callable[[], float] = time.time) -> None:
        self.session = uuid.uuid4().hex[:8]
        self._wall_s = wall_s
        self._lock = threading.Lock()
        self._seq = 0
        self._waiting: deque[tuple[bytes, bytes]] = deque(maxlen=bound)
        self._bell, self._ringer = socket.socketpair()
        self._bell.setblocking(False)
        self._ringer.setblocking(False)

    @property
    def seq(self) -> int:
        """Number of the last event; 0 before the first."""
        with self._lock:
            return self._seq

    def publish(self, topic: str, fields: Mapping[str, object]) -> int:
        """Leave a numbered event for the control thread; thread-safe, never blocks.

        Parameters
        ----------
        topic : str
            One of `TOPICS`.
        fields : mapping
            Plain JSON types without NaN; not `v`, `seq`, `t` or `session`, which are set here.

        Returns
        -------
        int
            The event's `seq`.

        Raises
        ------
        ValueError
            Unknown topic, a reserved field, or fields that are no JSON.
        """
        if topic not in TOPICS:
            raise ValueError(f"{topic!r} is not a topic")
        if clash := RESERVED & fields.keys():
            raise ValueError(f"{sorted(clash)[0]!r} is set by the bus")
        text = json.dumps(dict(fields), allow_nan=False, separators=(",", ":"))[1:-1]
        with self._lock:
            self._seq += 1
            head = {"v": PROTOCOL_VERSION, "seq": self._seq, "t": self._wall_s(), "session": self.session}
            body = json.dumps(head, separators=(",", ":"))[:-1] + ("," + text if text else "") + "}"
            if not self._waiting:
                self._ring()
            self._waiting.append((topic.encode(), body.encode()))
            return self._seq

    def take(self) -> list[tuple[bytes, bytes]]:
        """Return the waiting events as (topic, body), oldest first, and forget them."""
        with self._lock:
            taken = list(self._waiting)
            self._waiting.clear()
            if taken:
                self._silence()
        return taken

    def fileno(self) -> int:
        """File descriptor that is readable while events wait."""
        return self._bell.fileno()

    def close(self) -> None:
        """Close the descriptors; events published later are lost."""
        with self._lock:
            self._bell.close()
            self._ringer.close()

    def _ring(self) -> None:
        with contextlib.suppress(OSError):  # closed, or so loud already that it takes no more
            self._ringer.send(b"!")

    def _silence(self) -> None:
        with contextlib.suppress(OSError):  # closed
            self._bell.recv(4096)

"""The client's sockets."""

from __future__ import annotations

from typing import Any

import zmq

from edge_scanner.errors import UsageError


def dealer(context: Any, endpoint: str) -> Any:
    """Return a DEALER socket for commands; it queues nothing while nobody answers.

    Raises
    ------
    UsageError
        When the endpoint cannot be used as written.
    """
    return _connected(context, zmq.DEALER, endpoint)


def subscriber(context: Any, endpoint: str) -> Any:
    """Return a SUB socket for all events; see `dealer`."""
    opened = _connected(context, zmq.SUB, endpoint)
    opened.setsockopt(zmq.SUBSCRIBE, b"")
    return opened


def _connected(context: Any, kind: int, endpoint: str) -> Any:
    opened = context.socket(kind)
    opened.setsockopt(zmq.LINGER, 0)
    opened.setsockopt(zmq.IMMEDIATE, 1)
    opened.setsockopt(zmq.RECONNECT_IVL, 50)
    opened.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
    opened.setsockopt(zmq.HEARTBEAT_IVL, 2000)
    opened.setsockopt(zmq.HEARTBEAT_TIMEOUT, 6000)
    try:
        opened.connect(endpoint)
    except zmq.ZMQError as error:
        opened.close(linger=0)
        raise UsageError(f"The endpoint {endpoint!r} cannot be used ({error}).") from error
    return opened

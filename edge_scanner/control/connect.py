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
    opened = _opened(context, zmq.DEALER)
    opened.setsockopt(zmq.IMMEDIATE, 1)
    return _connected(opened, endpoint)


def subscriber(context: Any, endpoint: str) -> Any:
    """Return a SUB socket for all events; see `dealer`."""
    opened = _opened(context, zmq.SUB)  # IMMEDIATE would keep its subscription from ever being sent
    opened.setsockopt(zmq.SUBSCRIBE, b"")
    return _connected(opened, endpoint)


def _opened(context: Any, kind: int) -> Any:
    opened = context.socket(kind)
    opened.setsockopt(zmq.LINGER, 0)
    opened.setsockopt(zmq.RECONNECT_IVL, 50)
    opened.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
    opened.setsockopt(zmq.HEARTBEAT_IVL, 2000)
    opened.setsockopt(zmq.HEARTBEAT_TIMEOUT, 6000)
    return opened


def _connected(opened: Any, endpoint: str) -> Any:
    try:
        opened.connect(endpoint)
    except zmq.ZMQError as error:
        opened.close(linger=0)
        raise UsageError(f"The endpoint {endpoint!r} cannot be used ({error}).") from error
    return opened

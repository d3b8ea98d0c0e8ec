"""Replies that were given, so that a request that is sent again is not carried out again."""

from __future__ import annotations

from collections import OrderedDict


class Replies:
    """The last replies by request id.

    Memory bound: `count` replies and `max_bytes` of them; the oldest go first.
    """

    def __init__(self, count: int, max_bytes: int) -> None:
        self._count = count
        self._max_bytes = max_bytes
        self._bytes = 0
        self._replies: OrderedDict[str, bytes] = OrderedDict()

    def get(self, request_id: str) -> bytes | None:
        """Return the first reply to that id, None when there was none or it is forgotten."""
        return self._replies.get(request_id)

    def put(self, request_id: str, reply: bytes) -> None:
        """Remember the reply to an id that `get` does not know."""
        self._replies[request_id] = reply
        self._bytes += len(reply)
        while len(self._replies) > self._count or self._bytes > self._max_bytes:
            _, oldest = self._replies.popitem(last=False)
            self._bytes -= len(oldest)

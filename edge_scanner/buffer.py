"""The bounded deque between two threads: full makes the producer wait, nothing is dropped."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

from edge_scanner.abort import Abort


class Sized(Protocol):
    """Something that knows how many bytes it holds."""

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        ...


T = TypeVar("T", bound=Sized)


class TileBuffer(Generic[T]):
    """A deque bounded in bytes behind one condition.

    Bound: at most `max_bytes`, or one item where a single one is larger. Every blocked call wakes on `Abort` and then
    raises `AbortedError`.

    Parameters
    ----------
    max_bytes : int
    abort : Abort
    """

    def __init__(self, max_bytes: int, abort: Abort) -> None:
        self._items: deque[T] = deque()
        self._max_bytes = max_bytes
        self._abort = abort
        self._changed = threading.Condition()
        self._closed = False
        self._bytes = 0
        self._high_bytes = 0
        self._stall_s = 0.0
        abort.on_set(self._wake)

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        return self._bytes

    @property
    def high_water_bytes(self) -> int:
        """Most bytes ever held."""
        return self._high_bytes

    @property
    def stall_s(self) -> float:
        """Real seconds that `append` has waited for room."""
        return self._stall_s

    def __len__(self) -> int:
        with self._changed:
            return len(self._items)

    def __getitem__(self, index: int) -> T:
        """Return an item without taking it; negative indices count from the newest."""
        with self._changed:
            return self._items[index]

    def append(self, item: T) -> None:
        """Add at the right; blocks while the item does not fit.

        Raises
        ------
        AbortedError
            When the scan ended; the item was not added.
        """
        with self._changed:
            if self._closed:
                raise ValueError("append to a closed buffer")
            if not self._fits(item):
                began = time.monotonic()
                self._changed.wait_for(lambda: bool(self._abort) or self._fits(item))
                self._stall_s += time.monotonic() - began
            self._abort.check()
            self._items.append(item)
            self._bytes += item.nbytes
            self._high_bytes = max(self._high_bytes, self._bytes)
            self._changed.notify_all()

    def popleft(self) -> T:
        """Take the oldest; blocks while empty.

        Raises
        ------
        IndexError
            When the buffer is closed and empty.
        AbortedError
            When the scan ended.
        """
        with self._changed:
            self._changed.wait_for(lambda: bool(self._abort) or self._closed or bool(self._items))
            self._abort.check()
            return self._take()

    def trim(self, count: int) -> None:
        """Drop the `count` oldest items, whose reader got them by index; wakes the producer."""
        with self._changed:
            for _ in range(min(count, len(self._items))):
                self._take()

    def close(self) -> None:
        """Say that nothing more will be appended; readers drain what is left."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def __iter__(self) -> Iterator[T]:
        """Take items until the buffer is closed and empty."""
        while True:
            try:
                item = self.popleft()
            except IndexError:
                return
            yield item

    def _fits(self, item: T) -> bool:
        return not self._items or self._bytes + item.nbytes <= self._max_bytes

    def _take(self) -> T:
        item = self._items.popleft()
        self._bytes -= item.nbytes
        self._changed.notify_all()
        return item

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

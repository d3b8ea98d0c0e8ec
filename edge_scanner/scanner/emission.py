"""Chunks in the order in which they are emitted: which of them are appended, and which frames may go with them."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass

from edge_scanner.spool import Spool
from edge_scanner.tile import Chunk


@dataclass(frozen=True, slots=True)
class Numbered:
    """A chunk with its number in the order of emission."""

    number: int
    chunk: Chunk

    @property
    def nbytes(self) -> int:
        """Bytes of pixels held."""
        return self.chunk.nbytes


class Watermark:
    """The number below which every chunk has been appended; chunks may finish out of order."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._below = 0
        self._ahead: set[int] = set()

    def done(self, number: int) -> int:
        """Note a chunk as appended; return the number below which all are."""
        with self._lock:
            self._ahead.add(number)
            while self._below in self._ahead:
                self._ahead.remove(self._below)
                self._below += 1
            return self._below

    @property
    def below(self) -> int:
        """That number."""
        return self._below


class HeldFrames:
    """The spool as the mosaic sees it: a dropped frame stays until the chunks made from it are durable."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._dropped: deque[tuple[int, int]] = deque()
        self.emitted = 0
        self.crop = spool.crop

    def drop(self, index: int) -> None:
        """Note that the mosaic needs a frame no more."""
        self._dropped.append((self.emitted, index))

    def release(self, durable: int) -> None:
        """Drop the frames that only chunks below that number were made from."""
        while self._dropped and self._dropped[0][0] < durable:
            self._spool.drop(self._dropped.popleft()[1])

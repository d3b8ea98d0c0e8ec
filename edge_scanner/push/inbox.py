"""The collector's end of the socket: checks what is offered, takes the pixels, and yields tiles. One thread."""

from __future__ import annotations

import contextlib
import selectors
import socket
import tempfile
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from edge_scanner.abort import Abort
from edge_scanner.errors import ScannerError
from edge_scanner.push import wire
from edge_scanner.push.offers import Offers
from edge_scanner.tile import Pixels, Tile, Verdict

SILENT_S = 10.0
"""How long, once the collector closes, a producer in the middle of a tile may be silent."""

Talk = Generator[Tile | None, None, None]
"""The conversation with one producer: None when it must be waited for, else the tile that it has sent."""


class Inbox:
    """Receives tiles of any number of producers, one thread.

    A producer is answered only after its tile has been taken from `tiles`, so whoever iterates slowly holds all of
    them back. Memory bound: one tile a producer.

    Parameters
    ----------
    offers : Offers
        Judges what is offered.
    abort : Abort
        Ends `tiles` with `AbortedError`.

    Attributes
    ----------
    address : str
        Of the socket, in a folder that only this user may enter.
    """

    def __init__(self, offers: Offers, abort: Abort) -> None:
        self._offers, self._abort = offers, abort
        self._folder = tempfile.TemporaryDirectory(prefix="edge-scanner-push-")
        self.address = str(Path(self._folder.name) / "tiles.sock")
        self._bell, self._ringer = socket.socketpair()
        self._door = socket.socket(socket.AF_UNIX)
        self._door.bind(self.address)
        self._door.listen(128)
        self._selector = selectors.DefaultSelector()
        for listening in (self._door, self._bell):
            listening.setblocking(False)
            self._selector.register(listening, selectors.EVENT_READ)
        self._talks: dict[socket.socket, Talk] = {}
        self._busy: set[socket.socket] = set()
        self._closing = False
        abort.on_set(self._ring)

    def finish(self) -> None:
        """Have `tiles` end as soon as no producer is in the middle of one; any thread."""
        self._closing = True
        self._ring()

    def tiles(self) -> Iterator[Tile]:
        """Yield what is pushed, in the order of arrival, until `finish`.

        Raises
        ------
        AbortedError
        """
        while True:
            timeout_s = None if not self._closing else SILENT_S if self._busy else 0
            events = self._selector.select(timeout_s)
            self._abort.check()
            if not events:
                return
            for key, _ in events:
                if key.fileobj is self._bell:
                    self._bell.recv(64)
                elif key.fileobj is self._door:
                    self._let_in()
                else:
                    yield from self._hear(key.data)

    def close(self, cause: BaseException | None) -> None:
        """Tell the producers what failed, if anything did, and close the socket; the thread of `tiles`, any time."""
        for producer in list(self._talks):
            if cause is not None:
                with contextlib.suppress(OSError):
                    wire.send(producer, wire.failure(cause))
            self._let_go(producer)
        self._selector.close()
        for end in (self._door, self._bell):
            end.close()
        self._folder.cleanup()

    def dispose(self) -> None:
        """Close what is left, once no thread can ring any more."""
        self._ringer.close()

    def _ring(self) -> None:
        with contextlib.suppress(OSError):  # nobody listens any more
            self._ringer.send(b"!")

    def _let_in(self) -> None:
        producer, _ = self._door.accept()
        producer.setblocking(False)
        self._talks[producer] = self._talk(producer)
        self._selector.register(producer, selectors.EVENT_READ, producer)

    def _let_go(self, producer: socket.socket) -> None:
        self._selector.unregister(producer)
        self._talks.pop(producer).close()
        producer.close()

    def _hear(self, producer: socket.socket) -> Iterator[Tile]:
        """Yield the tiles that a producer has sent whole; one that goes, or talks nonsense, is let go."""
        try:
            while (tile := next(self._talks[producer])) is not None:
                yield tile
        except (OSError, ValueError, KeyError, TypeError):
            self._let_go(producer)

    def _talk(self, producer: socket.socket) -> Talk:
        while True:
            (length,) = wire.LENGTH.unpack((yield from _receive(producer, bytearray(wire.LENGTH.size))))
            if length > wire.MAX_MESSAGE_BYTES:
                raise ValueError("not a feed")
            offer = wire.parse(bytes((yield from _receive(producer, bytearray(length)))))
            try:
                tile = self._offers.accept(offer)
            except ScannerError as error:
                wire.send(producer, wire.refusal(error))
                continue
            if tile.verdict is not Verdict.REJECTED:
                wire.send(producer, {})
                tile = replace(tile, pixels=(yield from self._pixels(producer, tile)))
            yield tile
            wire.send(producer, {})

    def _pixels(self, producer: socket.socket, tile: Tile) -> Generator[None, None, Pixels]:
        self._busy.add(producer)
        pixels: Pixels = np.empty(self._offers.shape, self._offers.dtype)
        try:
            yield from _receive(producer, pixels.data.cast("B"))
        except BaseException:
            self._offers.withdraw(tile.index)
            raise
        finally:
            self._busy.discard(producer)
        return pixels


Buffer = TypeVar("Buffer", bytearray, memoryview)


def _receive(connection: socket.socket, buffer: Buffer) -> Generator[None, None, Buffer]:
    """Fill a buffer and return it; yields whenever nothing is there yet."""
    rest = memoryview(buffer)
    while rest:
        try:
            count = connection.recv_into(rest)
        except BlockingIOError:
            yield
            continue
        if not count:
            raise ConnectionError("the producer has gone")
        rest = rest[count:]
    return buffer

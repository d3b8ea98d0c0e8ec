"""The producer's end: offers tiles to the collector, from any process of the same machine and user."""

from __future__ import annotations

import os
import socket
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from edge_scanner.errors import ScannerError
from edge_scanner.push import wire
from edge_scanner.tile import Verdict

_GONE = "The collector takes no more tiles: it has ended."


class Feed:
    """Pushes tiles to a collector; can be pickled and passed to other processes, forked or spawned.

    Every process connects by itself at its first push. One thread at a time; a further thread takes a feed of its own.

    Parameters
    ----------
    address : str
        The collector's socket; get the feed from `Collector.feed`.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._connection: socket.socket | None = None
        self._process = 0

    def __reduce__(self) -> tuple[type[Feed], tuple[str]]:
        return Feed, (self._address,)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def push(
        self,
        target: int | tuple[int, int],
        pixels: ArrayLike | None,
        verdict: Verdict = Verdict.ACCEPTED,
        *,
        z_um: float = 0.0,
    ) -> None:
        """Push the tile of a target; returns when the collector's queue has taken it, so blocks while that is full.

        Parameters
        ----------
        target : int or (int, int)
            Its index in the plan, or its (row, col).
        pixels : array-like, (y, x, c), or None
            Of the plan's tile size and the collector's type; None for a rejected target, which becomes a hole.
        verdict : Verdict
            `blank` is placed by the plan alone.
        z_um : float
            Stage z.

        Raises
        ------
        UsageError
            The tile does not fit or the target is unknown or was pushed before; the collector goes on.
        ScannerError
            The collector has failed (its cause is told) or has ended.
        """
        place = int(target) if isinstance(target, int | np.integer) else [int(n) for n in target]
        self._offer({"target": place, "z_um": float(z_um)}, pixels, verdict)

    def push_at(
        self,
        x_um: float,
        y_um: float,
        pixels: ArrayLike | None,
        verdict: Verdict = Verdict.ACCEPTED,
        *,
        z_um: float = 0.0,
    ) -> None:
        """Push the tile whose centre is at a stage position: that of the nearest target; see `push`.

        Raises
        ------
        UsageError
            Also when the nearest target is further away than three times the stage's error, `stage.error_um`.
        """
        self._offer({"x_um": float(x_um), "y_um": float(y_um), "z_um": float(z_um)}, pixels, verdict)

    def close(self) -> None:
        """Disconnect; a later push connects again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _offer(self, where: dict[str, Any], pixels: ArrayLike | None, verdict: Verdict) -> None:
        array = None if pixels is None else np.ascontiguousarray(pixels)
        shape, dtype = ([], "") if array is None else (list(array.shape), array.dtype.str)
        connection = self._connected()
        try:
            self._tell(connection, {**where, "verdict": str(verdict), "shape": shape, "dtype": dtype})
            if array is not None:
                self._tell(connection, array.data.cast("B"))
        except OSError as error:
            self.close()
            raise ScannerError(_GONE, "Its own process tells why.") from error
        except BaseException as error:
            if not isinstance(error, ScannerError):
                self.close()  # interrupted in the middle of a message
            raise

    @staticmethod
    def _tell(connection: socket.socket, what: dict[str, Any] | memoryview) -> None:
        """Send a message or pixels and wait for the answer, which may come before all is sent: the collector failed."""
        try:
            if isinstance(what, dict):
                wire.send(connection, what)
            else:
                connection.sendall(what)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the last words of the collector can still be read
        (length,) = wire.LENGTH.unpack(_exactly(connection, wire.LENGTH.size))
        wire.check(wire.parse(_exactly(connection, length)))

    def _connected(self) -> socket.socket:
        if self._connection is None or self._process != os.getpid():
            self.close()
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(self._address)
            except OSError as error:
                connection.close()
                raise ScannerError(_GONE, "Push while it is open.") from error
            self._connection, self._process = connection, os.getpid()
        return self._connection


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = connection.recv(count - len(data))
        if not more:
            raise ConnectionError("closed")
        data += more
    return data

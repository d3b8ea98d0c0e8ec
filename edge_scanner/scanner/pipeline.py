"""The threads of one scan, between the same loops that `run_nested` nests.

    scan (the caller) --TileBuffer--> mosaic --chunk buffer--> writers x 2

The first failure is kept as the cause; every blocked wait wakes.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager

from edge_scanner.abort import Abort
from edge_scanner.buffer import TileBuffer
from edge_scanner.errors import AbortedError
from edge_scanner.scanner.build import SlideBuild
from edge_scanner.scanner.emission import Numbered
from edge_scanner.scanner.pulse import Pulse
from edge_scanner.tile import Tile

WRITERS = 2
CHUNK_BUFFER_BYTES = 48 << 20

_log = logging.getLogger(__name__)


class Pipeline:
    """Runs one scan with threads.

    Memory bound: `scan.buffer_mb` of tiles and 48 MB of chunks wait between the threads.

    Parameters
    ----------
    scan : SlideBuild
    abort : Abort
        Ends the scan at once; what was not committed is lost.
    cancelled : callable
        Ends acquisition only: the targets left are taken as rejected, and the mosaic is completed without them.
    on_tile : callable
        Called in the scan thread with each tile.
    pulse : Pulse, optional
        Told of every step, for the watchdog.
    """

    def __init__(
        self,
        scan: SlideBuild,
        abort: Abort,
        *,
        cancelled: Callable[[], bool],
        on_tile: Callable[[Tile], None],
        pulse: Pulse | None = None,
    ) -> None:
        self._scan, self._abort = scan, abort
        self._pulse = pulse or Pulse(math.inf)
        self._cancelled, self._on_tile = cancelled, on_tile
        self.tiles: TileBuffer[Tile] = TileBuffer(int(scan.config.scan.buffer_mb * 1e6), abort)
        self._chunks: TileBuffer[Numbered] = TileBuffer(CHUNK_BUFFER_BYTES, abort)

    def run(self) -> None:
        """Acquire, place and write everything; blocks.

        Raises
        ------
        Exception
            The first failure of any thread.
        AbortedError
            When the scan was aborted without a failure.
        """
        threads = [threading.Thread(target=self._place, name="mosaic")]
        threads += [threading.Thread(target=self._write, name=f"writer-{n}") for n in range(WRITERS)]
        for thread in threads:
            thread.start()
        with self._guard(), closing(self._targets()) as tiles:  # the light is off before anything else is done
            for tile in tiles:
                self._on_tile(tile)
                self._pulse.rest()
                self.tiles.append(tile)
            self.tiles.close()
        for thread in threads:
            thread.join()
        self._pulse.step()
        if self._abort.cause is not None:
            raise self._abort.cause
        self._abort.check()
        self._scan.finish()

    def _targets(self) -> Generator[Tile, None, None]:
        try:
            yield from self._scan.acquire()
        except AbortedError:
            if not self._cancelled():
                raise
            yield from self._scan.skip("cancelled")

    def _place(self) -> None:
        with self._guard():
            for tile in self.tiles:
                self._pass_on(self._scan.place(tile))
            self._pass_on(self._scan.end())
            self._chunks.close()

    def _pass_on(self, chunks: Iterator[Numbered]) -> None:
        self._pulse.step()
        for numbered in chunks:
            self._pulse.rest()
            self._chunks.append(numbered)
            self._pulse.step()
        self._pulse.rest()

    def _write(self) -> None:
        with self._guard():
            for numbered in self._chunks:
                self._pulse.step()
                self._scan.write(numbered)
                self._pulse.rest()

    @contextmanager
    def _guard(self) -> Iterator[None]:
        """Turn a thread's failure into the scan's."""
        try:
            yield
        except AbortedError:
            self._abort.set()
        except BaseException as error:  # noqa: BLE001  every failure of a thread is the scan's
            if self._abort:
                _log.error("While the scan was ending: %s", error)  # the first failure, or the stop, is its cause
            self._abort.set(error)
        finally:
            self._pulse.rest()

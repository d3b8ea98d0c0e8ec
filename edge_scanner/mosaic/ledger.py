"""Which chunks wait for which targets: a chunk is ready once every target that could touch it has been heard of."""

from __future__ import annotations

from collections.abc import Mapping

from edge_scanner.geometry import Box


class Ledger:
    """Counts, for every chunk, the targets that may touch it and have not settled yet.

    Bound: one integer a chunk and one a target.

    Parameters
    ----------
    reach : mapping of int to Box
        Target index -> the mosaic pixels it can possibly cover.
    canvas : Box
    chunk_px : int
    """

    def __init__(self, reach: Mapping[int, Box], canvas: Box, chunk_px: int) -> None:
        self._reach = reach
        self._canvas = canvas
        self._chunk_px = chunk_px
        self._unsettled = set(reach)
        self._waiting: dict[tuple[int, int], int] = {}
        self._needed_by: dict[int, int] = {}
        for index in reach:
            chunks = self.chunks_of(index)
            self._needed_by[index] = len(chunks)
            for chunk in chunks:
                self._waiting[chunk] = self._waiting.get(chunk, 0) + 1

    def untouched(self) -> list[tuple[int, int]]:
        """Return the chunks that no target can reach."""
        rows = -(-self._canvas.height // self._chunk_px)
        cols = -(-self._canvas.width // self._chunk_px)
        return [(r, c) for r in range(rows) for c in range(cols) if (r, c) not in self._waiting]

    def chunks_of(self, index: int) -> list[tuple[int, int]]:
        """Return (row, col) of the chunks that a target can reach, in raster order."""
        return self._chunks_in(self._reach[index])

    def _chunks_in(self, box: Box) -> list[tuple[int, int]]:
        box, t = box.intersect(self._canvas), self._chunk_px
        if box.empty:
            return []
        rows, cols = range(box.y0 // t, (box.y1 - 1) // t + 1), range(box.x0 // t, (box.x1 - 1) // t + 1)
        return [(r, c) for r in rows for c in cols]

    def extend(self, index: int, box: Box) -> list[tuple[int, int]]:
        """Note which box a target really covers; return the chunks beyond its reach that are still to come."""
        foreseen = set(self.chunks_of(index))
        beyond = [chunk for chunk in self._chunks_in(box) if chunk not in foreseen and self._waiting.get(chunk, 0) > 0]
        self._needed_by[index] += len(beyond)
        return beyond

    def settle(self, index: int) -> list[tuple[int, int]]:
        """Note that a target is placed or gone; return the chunks that are ready now.

        Raises
        ------
        KeyError
            When the target is unknown or has settled before.
        """
        self._unsettled.remove(index)
        ready = []
        for chunk in self.chunks_of(index):
            self._waiting[chunk] -= 1
            if self._waiting[chunk] == 0:
                ready.append(chunk)
        return ready

    def done(self, indices: list[int]) -> list[int]:
        """Note that a chunk which those targets can reach is out; return the targets that no chunk needs any more."""
        freed = []
        for index in indices:
            self._needed_by[index] -= 1
            if self._needed_by[index] == 0:
                freed.append(index)
        return freed

    @property
    def complete(self) -> bool:
        """Whether every target has settled."""
        return not self._unsettled

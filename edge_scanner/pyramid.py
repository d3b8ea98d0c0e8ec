"""The 2x2 cascade: a coarser chunk is finished when its four children are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Protocol

import cv2
import numpy as np

from edge_scanner.tile import Chunk, Pixels

Key = tuple[int, int, int]
"""(level, row, col)."""


class Halves(Protocol):
    """Where halved children wait for their parent."""

    def put(self, key: Key, half: Pixels) -> None:
        """Keep a halved child (y, x, c)."""
        ...

    def get(self, key: Key) -> Pixels | None:
        """Return a halved child that was kept; None where the child had no pixels."""
        ...


@dataclass(slots=True)
class _Parent:
    missing: int
    halves: dict[Key, Pixels] = field(default_factory=dict)


class Pyramid:
    """Makes every level out of the one below by a 2x2 area mean.

    Bound: the halved children of unfinished parents: of chunks that come row by row, half a row of them and what is
    begun of the next.

    Parameters
    ----------
    shapes : sequence of (int, int)
        (height, width) of each level, level 0 first, each the ceiling of half the one before.
    channels : int
    dtype : dtype
    fill : int
        Value of unscanned area.
    chunk_px : int
        Even.
    halves : Halves, optional
        Keeps every halved child until its parent is in the store, so that a scan can be resumed.
    stored : set of (int, int, int)
        (level, row, col) of chunks that are in the store already.
    """

    def __init__(
        self,
        shapes: Sequence[tuple[int, int]],
        *,
        channels: int,
        dtype: np.dtype[Any],
        fill: int,
        chunk_px: int = 512,
        halves: Halves | None = None,
        stored: Set[Key] = frozenset(),
    ) -> None:
        self._shapes = shapes
        self._halves, self._stored = halves, stored
        self._channels, self._dtype, self._fill, self._chunk_px = channels, dtype, fill, chunk_px
        self._parents: dict[Key, _Parent] = {}

    def cascade(self, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        """Yield each chunk and, after it, the coarser ones that it finished."""
        for chunk in chunks:
            yield chunk
            yield from self._up(chunk)

    @property
    def complete(self) -> bool:
        """Whether no parent waits for a child."""
        return not self._parents

    @property
    def held_bytes(self) -> int:
        """Pixels that wait for their parents' other children."""
        return sum(half.nbytes for parent in self._parents.values() for half in parent.halves.values())

    def _up(self, child: Chunk) -> Iterator[Chunk]:
        level, row, col = child.level + 1, child.row // 2, child.col // 2
        if level >= len(self._shapes):
            return
        key = (level, row, col)
        parent = self._parents.get(key)
        if parent is None:
            parent = self._parents[key] = _Parent(self._children(child.level, row, col))
        if key not in self._stored and (half := self._half(child)) is not None:
            parent.halves[child.key] = half
        parent.missing -= 1
        if parent.missing == 0:
            del self._parents[key]
            done = Chunk(level, row, col, self._pasted(key, parent), key in self._stored)
            yield done
            yield from self._up(done)

    def _children(self, level: int, row: int, col: int) -> int:
        rows, cols = (-(-side // self._chunk_px) for side in self._shapes[level])
        return min(2, rows - 2 * row) * min(2, cols - 2 * col)

    def _half(self, child: Chunk) -> Pixels | None:
        if child.stored and self._halves is not None:
            return self._halves.get(child.key)
        if child.pixels is None:
            return None
        half = halved(child.pixels)
        if self._halves is not None:
            self._halves.put(child.key, half)
        return half

    def _pasted(self, key: Key, parent: _Parent) -> Pixels | None:
        if not parent.halves:
            return None
        (level, row, col), t = key, self._chunk_px
        height, width = self._shapes[level]
        shape = (min(t, height - row * t), min(t, width - col * t), self._channels)
        pixels = np.full(shape, self._fill, self._dtype)
        for (_, child_row, child_col), half in parent.halves.items():
            y, x = (child_row % 2) * (t // 2), (child_col % 2) * (t // 2)
            pixels[y : y + half.shape[0], x : x + half.shape[1]] = half
        return pixels


def halved(pixels: Pixels) -> Pixels:
    """Return the 2x2 area mean (y, x, c), rounded; an odd last row or column is repeated first."""
    height, width, channels = pixels.shape
    if height % 2 or width % 2:
        pixels = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    half = ((width + 1) // 2, (height + 1) // 2)
    out: Pixels = cv2.resize(np.ascontiguousarray(pixels), half, interpolation=cv2.INTER_AREA)
    return out.reshape(half[1], half[0], channels)

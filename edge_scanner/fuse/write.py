"""From a fusion to an OME-Zarr with its pyramid: piece by piece, in an order that reads each tile about once."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import dask
import numpy as np

from edge_scanner.errors import AbortedError, SourceError, StoreError, UsageError
from edge_scanner.fuse.fusion import Fusion
from edge_scanner.fuse.progress import Progress
from edge_scanner.pyramid import Pyramid
from edge_scanner.store import Codec, SlideMetadata, SlideStore
from edge_scanner.tile import Chunk, Pixels

SHARD_CHUNKS = 8
TOP = int(math.log2(SHARD_CHUNKS))
"""The level at which a shard of level 0 has become one chunk."""
_AT_ONCE = 2 * SHARD_CHUNKS
"""Chunks of a row that are made before they are encoded."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A rectangle of level-0 chunks that is fused, written and committed at once; it consists of whole shards.

    Parameters
    ----------
    rows, cols : range
    strip : int
        Columns that are worked down before the next ones are.
    """

    rows: range
    cols: range
    strip: int

    @property
    def runs(self) -> Iterator[tuple[int, range]]:
        """The row and the columns of chunks that are made before they are encoded, in the order of work."""
        at_once = min(self.strip, _AT_ONCE)
        for left, row in product(self.cols[:: self.strip], self.rows):
            right = min(left + self.strip, self.cols.stop)
            for first in range(left, right, at_once):
                yield row, range(first, min(first + at_once, right))


@dataclass(frozen=True, slots=True)
class Written:
    """How many pieces there were, and how many of them this run computed."""

    pieces: int
    computed: int


def pieces(fusion: Fusion, chunk_px: int, cache_bytes: int) -> list[Piece]:
    """Return the pieces in the order of work: bands of some shards' width, each from top to bottom.

    What is read twice is what crosses from one band, or from one strip of a piece, into the next; so they are as wide
    as memory allows; often there is just one.

    Parameters
    ----------
    fusion : Fusion
    chunk_px : int
    cache_bytes : int
        Tiles and unfinished chunks of the pyramid that may be kept; bounds the width of a band and of a strip.
    """
    height, width = (-(-side // chunk_px) for side in fusion.extent)
    strip = min(_strip(fusion, chunk_px, cache_bytes), -(-width // SHARD_CHUNKS) * SHARD_CHUNKS)
    if strip >= SHARD_CHUNKS:
        strip -= strip % SHARD_CHUNKS
    step = max(strip, SHARD_CHUNKS)
    return [
        Piece(range(top, min(top + SHARD_CHUNKS, height)), range(left, min(left + step, width)), strip)
        for left, top in product(range(0, width, step), range(0, height, SHARD_CHUNKS))
    ]


def _strip(fusion: Fusion, chunk_px: int, cache_bytes: int) -> int:
    """Return how many columns of chunks can be worked down, row by row, with each tile read once.

    The reader drops what was used longest ago. So for a tile to be there still when the next row of chunks needs it,
    all tiles that one row touches must be kept: one tile's row more than reaches into it, and one tile more across.
    Beside them waits what the pyramid has not finished, half a row of chunks, and an eighth at the top of the piece.
    (Along the border of two bands it is a chunk for sixteen rows at most: the reader leaves that of its margin.)
    """
    tile_height, tile_width, tile_bytes = fusion.tile_extent
    width = fusion.extent[1] / chunk_px
    own = len(fusion.touching((0, 0), fusion.extent)) * tile_height * tile_width
    tiles_a_side = max(1.25, math.sqrt(own / math.prod(fusion.extent)))  # that begin within a tile's length
    across = tile_bytes * (1 + int(tiles_a_side * (chunk_px / tile_height + 1)))
    chunk_bytes = chunk_px**2 * (fusion.channels or 1) * fusion.look.dtype.itemsize
    a_column = across * tiles_a_side * chunk_px / tile_width + chunk_bytes * (1 / 2 + 1 / 8)
    room = cache_bytes - across * (1 + tiles_a_side)
    if room >= a_column * width:
        return math.ceil(width)
    return max(1, int(room / a_column))


def write(
    fusion: Fusion,
    out: Path,
    *,
    chunk_px: int,
    codec: Codec,
    metadata: SlideMetadata,
    cache_bytes: int,
    identity: str,
    overwrite: bool = False,
    client: Any = None,
    progress: Callable[[float], None] = lambda _: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Written:
    """Fuse into a new store. It grows under `OUT.partial`; a second run of the same work goes on where the first ended.

    Nothing stays of a run that failed before its first piece was done, or by its tiles.

    Memory bound: `cache_bytes` for the reader's tiles and what waits in the pyramid together (half a row of chunks of a
    band, and along its border one for sixteen rows), however wide the mosaic; the sixteen chunks under way and the
    coarser ones that they finish, as pixels and encoded.

    Parameters
    ----------
    fusion : Fusion
        Flat; uint8 or uint16.
    out : Path
    chunk_px : int
    codec : Codec
    metadata : SlideMetadata
    cache_bytes : int
        The reader's own bound, of which it gets what the pyramid does not need.
    identity : str
        Names the work; a partial result of another is thrown away.
    overwrite : bool
    client : distributed.Client, optional
        A cluster that makes the blocks; threads of this process by default.
    progress : callable
        Called with the share done.
    cancelled : callable
        Polled; when it returns True the work ends and the partial result stays.

    Returns
    -------
    Written

    Raises
    ------
    UsageError
        `out` exists.
    SourceError, StoreError, DiskLowError
    AbortedError
        `cancelled` returned True.
    """
    if os.path.lexists(out) and not overwrite:
        raise UsageError(f"The output {out} exists.", "Give another name or --overwrite.")
    partial = out.with_name(out.name + ".partial")
    todo = pieces(fusion, chunk_px, cache_bytes)
    known = Progress.open(partial, f"{identity}:{todo[0].cols.stop}")  # with other memory, the pieces are others
    store = known.store or _create(fusion, partial, chunk_px, codec, metadata)
    known.begin(store)
    writer = _Writer(fusion, store, known, client)
    try:
        for number, piece in enumerate(todo):
            if cancelled():
                raise AbortedError("The fusion was cancelled.", "The same command goes on with it.")
            writer.work(number, piece)
            progress((number + 1) / len(todo))
    except BaseException as error:
        if isinstance(error, SourceError) or not known.begun:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        store.close()
    try:
        known.forget()
        if out.is_dir():
            shutil.rmtree(out)
        partial.rename(out)
    except OSError as error:
        raise StoreError(f"{out} cannot be written ({error.strerror}).", "Check the path and the space.") from error
    return Written(len(todo), writer.computed)


def _create(fusion: Fusion, path: Path, chunk_px: int, codec: Codec, metadata: SlideMetadata) -> SlideStore:
    if fusion.axes != 2 or fusion.look.dtype not in (np.uint8, np.uint16):
        raise SourceError(
            f"A mosaic of type {fusion.look.dtype} with {fusion.axes} axes cannot be stored as a slide.",
            "Use edge_scanner.fuse.fuse, which returns a dask array.",
        )
    return SlideStore.create(
        path,
        height_px=fusion.extent[0],
        width_px=fusion.extent[1],
        channels=fusion.channels or 1,
        dtype=fusion.look.dtype,
        codec=codec,
        fill_value=int(fusion.look.fill),
        metadata=metadata,
        chunk_px=chunk_px,
        shard_chunks=SHARD_CHUNKS,
    )


class _Writer:
    def __init__(self, fusion: Fusion, store: SlideStore, known: Progress, client: Any) -> None:
        self._fusion, self._store, self._known, self._client = fusion, store, known, client
        shared = dask.delayed(fusion, pure=False)
        self._shared = shared if client is None else client.persist(shared)  # one object, and so one cache, a worker
        shapes = [(level.height_px, level.width_px) for level in store.levels]
        self._pyramid = Pyramid(
            shapes, channels=store.channels, dtype=store.dtype, fill=store.fill_value, chunk_px=store.chunk_px
        )
        self._top = min(TOP, len(shapes) - 1)
        self.computed = 0

    def work(self, number: int, piece: Piece) -> None:
        """Do a piece, or take what an earlier run made of it."""
        tops = self._known.tops(number)
        if tops is not None:
            self._keep(self._pyramid.cascade(tops))
            return
        self.computed += 1
        tops = []
        for row, cols in piece.runs:
            tops += self._run(row, cols)
            self._fusion.reader.leave(self._pyramid.held_bytes + _nbytes(tops))
        self._store.commit(lambda parts: self._known.done(number, tops, parts))

    def _run(self, row: int, cols: range) -> list[Chunk]:
        """Make chunks and what they finish, and return those of the level at which a shard has become one chunk."""
        emitted = list(self._pyramid.cascade(self._row(row, cols)))
        self._keep(emitted)
        return [chunk for chunk in emitted if chunk.level == self._top]

    def _row(self, row: int, cols: range) -> Iterator[Chunk]:
        t, (height, width) = self._store.chunk_px, self._fusion.extent
        boxes = {c: ((row * t, c * t), (min(t, height - row * t), min(t, width - c * t))) for c in cols}
        touched = [c for c in cols if self._fusion.touching(*boxes[c])]
        block = dask.delayed(Fusion.block, pure=False)
        made = dict(zip(touched, self._compute([block(self._shared, *boxes[c]) for c in touched]), strict=True))
        for col in cols:
            yield Chunk(0, row, col, _with_channel(made.get(col)))

    def _compute(self, lazy: Sequence[Any]) -> Sequence[Any]:
        return _threads(lazy) if self._client is None else self._client.gather(self._client.compute(list(lazy)))

    def _keep(self, chunks: Sequence[Chunk] | Iterator[Chunk]) -> None:
        """Encode, in parallel, and append what is not stored yet."""
        new = [c for c in chunks if not self._known.stored(c)]
        encode = dask.delayed(self._store.encode, pure=False)
        for encoded in _threads([encode(chunk) for chunk in new]):
            self._store.append(encoded)


def _threads(lazy: Sequence[Any]) -> Sequence[Any]:
    made: Sequence[Any] = dask.compute(*lazy, scheduler="threads")
    return made


def _nbytes(chunks: Sequence[Chunk]) -> int:
    return sum(chunk.pixels.nbytes for chunk in chunks if chunk.pixels is not None)


def _with_channel(pixels: Pixels | None) -> Pixels | None:
    return pixels if pixels is None or pixels.ndim == 3 else pixels[..., None]

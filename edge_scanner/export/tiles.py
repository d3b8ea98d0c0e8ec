"""From a store's chunks to tiles in the file, shard by shard in the order of their bytes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_scanner.errors import StoreError
from edge_scanner.export.bigtiff import TiffWriter
from edge_scanner.export.tile_codec import TileCodec
from edge_scanner.store import SlideStore, StoredPart
from edge_scanner.store.codec import GZIP_START

_RUN = 4 << 20


@dataclass(frozen=True, slots=True)
class TileGrid:
    """Where the tiles of one level lie in the file.

    Parameters
    ----------
    offsets, counts : ndarray of uint64, (planes, rows * cols)
        Bytes; a count of zero: no tile yet.
    cols : int
    """

    offsets: NDArray[np.uint64]
    counts: NDArray[np.uint64]
    cols: int

    def put(self, part: StoredPart, offset: int, count: int) -> None:
        """Note where a part's tile lies."""
        place = part.channel, part.row * self.cols + part.col
        self.offsets[place], self.counts[place] = offset, count

    def fill(self, offset: int, count: int) -> None:
        """Point every tile that is not there at one shared tile."""
        absent = self.counts == 0
        self.offsets[absent], self.counts[absent] = offset, count


def write_tiles(
    source: SlideStore, codec: TileCodec, writer: TiffWriter, tick: Callable[[int], None]
) -> tuple[list[TileGrid], int]:
    """Write every stored chunk as a tile, and one background tile that all the others share.

    Parameters
    ----------
    source : SlideStore
    codec : TileCodec
    writer : TiffWriter
    tick : callable
        Called with the number of tiles that are done; may raise to end the export.

    Returns
    -------
    list of TileGrid, int
        One a level, and the number of tiles written.

    Raises
    ------
    StoreError
        Truncated shard, corrupt index, damaged chunk.
    """
    grids, written, passed = [], 0, 0
    transport = _copied if codec.copies else _encoded
    background: tuple[int, int] | None = None
    for number, level in enumerate(source.levels):
        shape = (source.layout.planes, level.rows * level.cols)
        grid = TileGrid(np.zeros(shape, np.uint64), np.zeros(shape, np.uint64), level.cols)
        for shard, parts in groupby(source.parts(number), key=lambda part: part.shard):
            with _opened(source.path / shard) as fd:
                for count in transport(fd, parts, codec, writer, grid):
                    written += count
                    tick(passed + int(np.count_nonzero(grid.counts)))
        if not grid.counts.all():
            background = background or _background(source, codec, writer)
            grid.fill(*background)
        passed += grid.counts.size
        tick(passed)
        grids.append(grid)
    return grids, written


def _copied(
    fd: int, parts: Iterable[StoredPart], codec: TileCodec, writer: TiffWriter, grid: TileGrid
) -> Iterator[int]:
    """Copy the chunks of one shard, many at once, and yield how many."""
    for run in _runs(parts):
        start, end = run[0].offset, run[-1].offset + run[-1].length
        if os.fstat(fd).st_size < end:
            raise _truncated(run[0].shard)
        places = [codec.place(os.pread(fd, GZIP_START, part.offset), part.length) for part in run]
        patches = [
            (part.offset - start + at, data)
            for part, (_, _, wrapper) in zip(run, places, strict=True)
            for at, data in wrapper
        ]
        shift = writer.copy_from(fd, start, end - start, patches) - start
        for part, (at, count, _) in zip(run, places, strict=True):
            grid.put(part, part.offset + shift + at, count)
        yield len(run)


def _encoded(
    fd: int, parts: Iterable[StoredPart], codec: TileCodec, writer: TiffWriter, grid: TileGrid
) -> Iterator[int]:
    """Encode the chunks of one shard anew and yield 1 after each."""
    for part in parts:
        data = os.pread(fd, part.length, part.offset)
        if len(data) != part.length:
            raise _truncated(part.shard)
        tile = codec.transcode(data)
        grid.put(part, writer.append(tile), len(tile))
        yield 1


def _runs(parts: Iterable[StoredPart]) -> Iterator[list[StoredPart]]:
    """Group parts that follow each other without a gap, up to 4 MiB."""
    run: list[StoredPart] = []
    for part in parts:
        if run and (part.offset != run[-1].offset + run[-1].length or part.offset + part.length - run[0].offset > _RUN):
            yield run
            run = []
        run.append(part)
    if run:
        yield run


def _background(source: SlideStore, codec: TileCodec, writer: TiffWriter) -> tuple[int, int]:
    tile = codec.encode(np.full(codec.shape, source.fill_value, source.dtype))
    return writer.append(tile), len(tile)


@contextmanager
def _opened(shard: Path) -> Iterator[int]:
    try:
        fd = os.open(shard, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise StoreError(f"The shard {shard} cannot be read ({error.strerror}).", "Check the disk.") from error
    try:
        yield fd
    finally:
        os.close(fd)


def _truncated(shard: str) -> StoreError:
    return StoreError(f"The shard {shard} is truncated.", "Restore the file or resume the scan.")

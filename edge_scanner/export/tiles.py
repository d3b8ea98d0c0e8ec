"""From a store's chunks to tiles in the file, shard by shard in the order of their bytes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_scanner.errors import StoreError
from edge_scanner.export.bigtiff import TiffWriter
from edge_scanner.export.tile_codec import TileCodec
from edge_scanner.store import SlideStore
from edge_scanner.store.codec import GZIP_START, zlib_in_gzip
from edge_scanner.store.shard import ABSENT, index_size, read_index

_RUN = 4 << 20

Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TileGrid:
    """Where the tiles of one level lie in the file.

    Parameters
    ----------
    offsets, counts : ndarray of uint64, (planes, rows * cols)
        Bytes; a count of zero: no tile yet.
    """

    offsets: NDArray[np.uint64]
    counts: NDArray[np.uint64]

    def fill(self, offset: int, count: int) -> None:
        """Point every tile that is not there at one shared tile."""
        absent = self.counts == 0
        self.offsets[absent], self.counts[absent] = offset, count


@dataclass(frozen=True, slots=True)
class ShardParts:
    """The stored parts of one shard, in the order of their bytes.

    Parameters
    ----------
    path : Path
    offsets, lengths : ndarray of int64
        Bytes.
    planes, places : ndarray of int64
        Which tile of the level each is: indices into a `TileGrid`.
    """

    path: Path
    offsets: Integers
    lengths: Integers
    planes: Integers
    places: Integers

    def __getitem__(self, which: slice) -> ShardParts:
        return ShardParts(self.path, *(a[which] for a in (self.offsets, self.lengths, self.planes, self.places)))

    def runs(self) -> Iterator[ShardParts]:
        """Yield groups of parts that follow each other without a gap, each up to 4 MiB or a single part."""
        ends = self.offsets + self.lengths
        gaps = [0, *(np.flatnonzero(self.offsets[1:] != ends[:-1]) + 1), len(ends)]
        for start, stop in pairwise(gaps):
            while start < stop:
                fits = int(np.searchsorted(ends[start:stop], self.offsets[start] + _RUN, side="right"))
                yield self[start : start + max(1, fits)]
                start += max(1, fits)


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
        grid = TileGrid(np.zeros(shape, np.uint64), np.zeros(shape, np.uint64))
        there = 0
        for parts in _stored(source, number):
            with _opened(parts.path) as fd:
                for count in transport(fd, parts, codec, writer, grid):
                    there += count
                    tick(passed + there)
        if there < grid.counts.size:
            background = background or _background(source, codec, writer)
            grid.fill(*background)
        written, passed = written + there, passed + grid.counts.size
        tick(passed)
        grids.append(grid)
    return grids, written


def _stored(source: SlideStore, number: int) -> Iterator[ShardParts]:
    """Yield the shards of a level that hold anything."""
    level, n = source.levels[number], source.shard_chunks
    for shard_row, shard_col in product(range(0, level.rows, n), range(0, level.cols, n)):
        path = source.path / source.layout.shard_of(number, shard_row, shard_col)
        index = read_index(path, source.layout.slots)
        slots = np.argsort(index[:, 0], kind="stable")[: np.count_nonzero(index[:, 0] != ABSENT)]
        if not len(slots):
            continue
        offsets, lengths = index[slots].T.astype(np.int64)
        if offsets[0] < index_size(source.layout.slots):
            raise StoreError(f"The index of the shard {path} is corrupt.", "Resume the scan, which rebuilds it.")
        planes, inside = np.divmod(slots, n * n)
        rows, cols = np.divmod(inside, n)
        yield ShardParts(path, offsets, lengths, planes, (shard_row + rows) * level.cols + shard_col + cols)


def _copied(fd: int, parts: ShardParts, codec: TileCodec, writer: TiffWriter, grid: TileGrid) -> Iterator[int]:
    """Copy the chunks of one shard, many at once, and yield how many."""
    size = os.fstat(fd).st_size
    for run in parts.runs():
        start, end = int(run.offsets[0]), int(run.offsets[-1] + run.lengths[-1])
        if size < end:
            raise _truncated(parts.path)
        offsets, counts, patches = _unwrapped(fd, run) if codec.unwraps else (run.offsets - start, run.lengths, [])
        grid.offsets[run.planes, run.places] = offsets + writer.copy_from(fd, start, end - start, patches)
        grid.counts[run.planes, run.places] = counts
        yield len(counts)


def _unwrapped(fd: int, run: ShardParts) -> tuple[Integers, Integers, list[tuple[int, bytes]]]:
    """Return offsets and lengths of the zlib streams in a run of gzip chunks, and the bytes that make them so."""
    start, patches = int(run.offsets[0]), []
    places: list[Any] = []
    for offset, length in zip(run.offsets.tolist(), run.lengths.tolist(), strict=True):
        stream = zlib_in_gzip(os.pread(fd, GZIP_START, offset), length)
        at = offset - start + stream.offset
        patches += [(at, stream.head), (at + stream.length - len(stream.adler32), stream.adler32)]
        places.append((at, stream.length))
    offsets, counts = np.array(places, np.int64).T
    return offsets, counts, patches


def _encoded(fd: int, parts: ShardParts, codec: TileCodec, writer: TiffWriter, grid: TileGrid) -> Iterator[int]:
    """Encode the chunks of one shard anew and yield 1 after each."""
    columns = (a.tolist() for a in (parts.offsets, parts.lengths, parts.planes, parts.places))
    for offset, length, *tile in zip(*columns, strict=True):
        chunk = os.pread(fd, length, offset)
        if len(chunk) != length:
            raise _truncated(parts.path)
        data = codec.transcode(chunk)
        grid.offsets[*tile], grid.counts[*tile] = writer.append(data), len(data)
        yield 1


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


def _truncated(shard: Path) -> StoreError:
    return StoreError(f"The shard {shard} is truncated.", "Restore the file or resume the scan.")

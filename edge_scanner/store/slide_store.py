"""The slide on disk: an OME-Zarr 0.5 pyramid that grows by append and can be read at any moment."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike

from edge_scanner.errors import StoreError
from edge_scanner.geometry import Box
from edge_scanner.store import shard as shards
from edge_scanner.store.codec import Codec
from edge_scanner.store.files import read_layout, write_empty
from edge_scanner.store.growth import EncodedChunk, Growth, StoredPart
from edge_scanner.store.layout import Layout, Level
from edge_scanner.store.metadata import SlideMetadata
from edge_scanner.tile import Chunk, Pixels


class SlideStore:
    """An OME-Zarr 0.5 slide. Any number of threads may encode, append and read; one process may write.

    A chunk passes through `encode`, `append` and `commit`. Appended bytes are invisible until `commit` has made them
    durable, told the journal and rewritten the index, in that order. As a context manager, the store commits at the
    end unless the block failed.

    Parameters
    ----------
    path : Path
    layout : Layout
        Use `create` or `open` instead of the constructor.

    Attributes
    ----------
    levels : tuple of Level
        The pyramid, largest first.
    channels : int
        Samples a pixel.
    dtype : numpy.dtype
        uint8 or uint16.
    chunk_px, shard_chunks : int
        Side of a chunk in pixels, of a shard in chunks.
    fill_value : int
        Pixel value of what is not stored.
    codec : Codec
    metadata : SlideMetadata
    """

    def __init__(self, path: Path, layout: Layout) -> None:
        self.path = path
        self.layout = layout
        self.levels: tuple[Level, ...] = layout.levels()
        self.channels: int = layout.channels
        self.dtype: np.dtype[Any] = layout.dtype
        self.chunk_px: int = layout.chunk_px
        self.shard_chunks: int = layout.shard_chunks
        self.fill_value: int = layout.fill_value
        self.codec: Codec = layout.codec
        self.metadata: SlideMetadata = layout.metadata
        self._growth = Growth(path, layout)

    @classmethod
    def create(
        cls,
        path: Path | str,
        *,
        height_px: int,
        width_px: int,
        channels: int,
        dtype: DTypeLike,
        codec: Codec,
        fill_value: int,
        metadata: SlideMetadata,
        chunk_px: int = 512,
        shard_chunks: int = 8,
    ) -> SlideStore:
        """Write an empty store; it appears under its name whole or not at all.

        Parameters
        ----------
        path : Path or str
            A folder that does not exist yet, `slide.ome.zarr`.
        height_px, width_px, channels : int
        dtype : dtype
            uint8 or uint16.
        codec : Codec
        fill_value : int
            Pixel value of what is not stored.
        metadata : SlideMetadata
            With one channel for three samples the pixels are RGB.
        chunk_px, shard_chunks : int
            Side of a chunk in pixels and of a shard in chunks.

        Raises
        ------
        StoreError
            When the path exists or cannot be written, or the pixels and the codec do not go together.
        DiskLowError
            When the disk is full.
        """
        kind = np.dtype(dtype)
        layout = Layout(height_px, width_px, channels, kind, chunk_px, shard_chunks, fill_value, codec, metadata)
        write_empty(Path(path), layout)
        return cls(Path(path), layout)

    @classmethod
    def open(cls, path: Path | str) -> SlideStore:
        """Open a store that this program wrote, for reading or to append to it.

        Raises
        ------
        StoreError
            Not a store, a level missing or of another shape or type, metadata that cannot be read.
        """
        return cls(Path(path), read_layout(Path(path)))

    @property
    def file_count(self) -> int:
        """Files of the store."""
        return sum(len(files) for _, _, files in os.walk(self.path))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is None:
            self.commit()
        self.close()

    def close(self) -> None:
        """Refuse further appends. Bytes that were not committed stay invisible; safe to call twice."""
        self._growth.close()

    def encode(self, chunk: Chunk) -> EncodedChunk:
        """Return the chunk's bytes; pure, any thread.

        A chunk that the canvas clips is padded by replication to the full size.

        Raises
        ------
        StoreError
            When the chunk is not one of this store's, or its pixels have another shape or type.
        """
        level, t = self._level(chunk.level, chunk.row, chunk.col), self.chunk_px
        if chunk.pixels is None:
            return EncodedChunk(chunk.level, chunk.row, chunk.col, ())
        height, width = min(t, level.height_px - chunk.row * t), min(t, level.width_px - chunk.col * t)
        pixels, fitting = chunk.pixels, (height, width, self.channels)
        if pixels.shape != fitting or pixels.dtype != self.dtype:
            raise StoreError(
                f"A chunk of {pixels.dtype} {pixels.shape} does not fit; {self.dtype} {fitting} belongs there."
            )
        if (height, width) != (t, t):
            pixels = np.pad(pixels, ((0, t - height), (0, t - width), (0, 0)), mode="edge")
        planes = [pixels] if self.layout.rgb else [pixels[:, :, c] for c in range(self.channels)]
        parts = tuple(self.codec.encode(np.ascontiguousarray(plane)) for plane in planes)
        return EncodedChunk(chunk.level, chunk.row, chunk.col, parts)

    def append(self, encoded: EncodedChunk) -> None:
        """Write the chunk's bytes to its shard; any thread. Readers do not see them before `commit`.

        Raises
        ------
        StoreError
            When the chunk was appended before, is not one of this store's, or the store is closed.
        DiskLowError
            When the disk is full; the same chunk may then be appended again.
        """
        self._level(encoded.level, encoded.row, encoded.col)
        self._growth.append(encoded)

    def commit(self, on_durable: Callable[[Sequence[StoredPart]], None] | None = None) -> list[StoredPart]:
        """Make what was appended durable, then visible; return its parts.

        Parameters
        ----------
        on_durable : callable, optional
            Called with the parts when their bytes are on the disk and before any reader can see them: the journal.

        Raises
        ------
        StoreError, DiskLowError
            The group then counts as not written, and its chunks may be appended again. If only the rewriting of an
            index failed, the group is durable and the next commit tries again to show it.
        """
        return self._growth.commit(on_durable)

    def rebuild_index(self, parts: Iterable[StoredPart], *, verify: bool = True) -> list[StoredPart]:
        """Make the store hold exactly what the journal says; call it after a crash, before any append.

        Indices are written anew, bytes behind the last journalled part are cut off, shards without any are removed.

        Parameters
        ----------
        parts : iterable of StoredPart
            Every part that was ever journalled.
        verify : bool
            Compare each part's CRC-32C, not only its bounds.

        Returns
        -------
        list of StoredPart
            Parts of the chunks that are damaged: they are left out and may be appended again.

        Raises
        ------
        StoreError
            When the parts are another store's.
        """
        return self._growth.rebuild(parts, verify)

    def has(self, level: int, row: int, col: int) -> bool:
        """Tell whether the chunk is stored and visible to readers."""
        return self._entry(level, row, col, 0) is not None

    def encoded(self, level: int, row: int, col: int, channel: int = 0) -> bytes | None:
        """Return the bytes of a part as stored, None where there is none.

        Raises
        ------
        StoreError
            No such chunk, truncated shard, corrupt index.
        """
        entry = self._entry(level, row, col, channel)
        if entry is None:
            return None
        return shards.read_part(self.path / self.layout.shard_of(level, row, col), *entry, self.layout.slots)

    def parts(self, level: int) -> Iterator[StoredPart]:
        """Yield every visible part of a level, shard by shard in the order of its bytes: what an export copies.

        Raises
        ------
        StoreError
            No such level, truncated shard, corrupt index.
        """
        size, n = self._level(level), self.shard_chunks
        for row, col in product(range(0, size.rows, n), range(0, size.cols, n)):
            name = self.layout.shard_of(level, row, col)
            index = self._growth.index(name)
            for slot in np.argsort(index[:, 0], kind="stable").tolist():
                if shards.present(index, slot):
                    offset, length = index[slot].tolist()
                    yield StoredPart(*self.layout.chunk_at(name, slot), name, offset, length, None)

    def read(self, level: int, box: Box) -> Pixels:
        """Return the pixels of a box, decoding only the chunks that it touches.

        Parameters
        ----------
        level : int
        box : Box
            Pixels of that level, inside it.

        Returns
        -------
        ndarray, (y, x, c)
            The fill value where nothing is stored.

        Raises
        ------
        StoreError
            Box outside the level, truncated shard, corrupt index, damaged chunk.
        """
        size, t = self._level(level), self.chunk_px
        if box.empty or box.intersect(Box(0, 0, size.height_px, size.width_px)) != box:
            raise StoreError(f"{box} is not inside level {level}, {size.height_px} x {size.width_px} px.")
        out = np.full((box.height, box.width, self.channels), self.fill_value, self.dtype)
        rows, cols = range(box.y0 // t, -(-box.y1 // t)), range(box.x0 // t, -(-box.x1 // t))
        for row, col, channel in product(rows, cols, range(self.layout.planes)):
            data = self.encoded(level, row, col, channel)
            if data is None:
                continue
            pixels = self.codec.decode(data, self.layout.part_shape, self.dtype)
            part = box.intersect(Box(0, 0, t, t).shifted(row * t, col * t))
            source, target = part.shifted(-row * t, -col * t), part.shifted(-box.y0, -box.x0)
            plane = out if self.layout.rgb else out[:, :, channel]
            plane[target.y0 : target.y1, target.x0 : target.x1] = pixels[source.y0 : source.y1, source.x0 : source.x1]
        return out

    def _level(self, level: int, row: int = 0, col: int = 0) -> Level:
        if 0 <= level < len(self.levels) and 0 <= row < self.levels[level].rows and 0 <= col < self.levels[level].cols:
            return self.levels[level]
        raise StoreError(f"There is no chunk ({row}, {col}) of level {level} in {self.path}.")

    def _entry(self, level: int, row: int, col: int, channel: int) -> tuple[int, int] | None:
        self._level(level, row, col)
        if not 0 <= channel < self.layout.planes:
            raise StoreError(f"There is no part {channel} in a chunk of {self.path}.")
        index = self._growth.index(self.layout.shard_of(level, row, col))
        slot = self.layout.slot_of(row, col, channel)
        return (int(index[slot, 0]), int(index[slot, 1])) if shards.present(index, slot) else None

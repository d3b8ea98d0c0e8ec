"""The slide on disk: an OME-Zarr 0.5 pyramid that grows by append and can be read at any moment."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike

from edge_scanner.errors import StoreError
from edge_scanner.geometry import Box
from edge_scanner.store import layout as documents
from edge_scanner.store import shard as shards
from edge_scanner.store.codec import Codec
from edge_scanner.store.layout import Layout, Level
from edge_scanner.store.metadata import SlideMetadata
from edge_scanner.store.ome_xml import build_ome_xml
from edge_scanner.tile import Chunk, Pixels


@dataclass(frozen=True, slots=True)
class EncodedChunk:
    """The bytes of one chunk: one part for RGB, one a channel otherwise, none where nothing was scanned."""

    level: int
    row: int
    col: int
    parts: tuple[bytes, ...]

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(map(len, self.parts))


@dataclass(frozen=True, slots=True)
class StoredPart:
    """Where a part of a chunk lies.

    Parameters
    ----------
    level, row, col, channel : int
        `channel` is 0 for RGB.
    shard : str
        The file, relative to the store.
    offset, length : int
        Bytes.
    crc32c : int or None
        Of the bytes; None when read from an index, which does not know it.
    """

    level: int
    row: int
    col: int
    channel: int
    shard: str
    offset: int
    length: int
    crc32c: int | None


@dataclass(slots=True)
class _Shard:
    """What a writer knows of a shard: the index that readers see, and where the next part goes."""

    index: shards.Index
    end: int
    fresh: bool


class SlideStore:
    """An OME-Zarr 0.5 slide. Any number of threads may encode, append and read; one process may write.

    A chunk passes through `encode`, `append` and `commit`. Appended bytes are invisible until `commit` has made them
    durable, told the journal and rewritten the index, in that order.

    Memory bound: nothing but the indices of the shards that were written, 16 bytes a part.

    Parameters
    ----------
    path : Path
    layout : Layout
        Use `create` or `open` instead of the constructor.
    """

    def __init__(self, path: Path, layout: Layout) -> None:
        self.path = path
        self.layout = layout
        self.levels: tuple[Level, ...] = layout.levels()
        self._lock = threading.Lock()
        self._commit_lock = threading.Lock()
        self._shards: dict[str, _Shard] = {}
        self._claimed = [np.zeros((level.rows, level.cols), bool) for level in self.levels]
        self._pending: list[StoredPart] = []
        self._durable: list[StoredPart] = []
        self._closed = False

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
        chunk_px, shard_chunks : int
            Side of a chunk in pixels and of a shard in chunks.

        Raises
        ------
        StoreError
            When the path exists, or the pixels and the codec do not go together.
        """
        path = Path(path)
        if os.path.lexists(path):
            raise StoreError(f"{path} exists already.", "Choose another path or remove it.")
        layout = Layout(
            height_px, width_px, channels, np.dtype(dtype), chunk_px, shard_chunks, fill_value, codec, metadata
        )
        with shards.disk_errors(path):
            _write_empty(path, layout)
        return cls(path, layout)

    @classmethod
    def open(cls, path: Path | str) -> SlideStore:
        """Open a store that this program wrote, for reading or to append to it.

        Raises
        ------
        StoreError
            Not a store, a level missing or of another shape or type, metadata that cannot be read.
        """
        path = Path(path)
        layout = documents.parse(_read_json(path / "0"), _read_json(path / "0" / "0"))
        expected = documents.documents(layout)
        for k in range(len(layout.levels())):
            if not documents.same_array(_read_json(path / "0" / str(k)), expected[f"0/{k}"]):
                raise StoreError(f"Level {k} of {path} has another shape, type or codec than level 0 asks for.")
        return cls(path, layout)

    @property
    def channels(self) -> int:
        """Samples a pixel."""
        return self.layout.channels

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the pixels, uint8 or uint16."""
        return self.layout.dtype

    @property
    def chunk_px(self) -> int:
        """Side of a chunk in pixels."""
        return self.layout.chunk_px

    @property
    def shard_chunks(self) -> int:
        """Side of a shard in chunks."""
        return self.layout.shard_chunks

    @property
    def fill_value(self) -> int:
        """Pixel value of what is not stored."""
        return self.layout.fill_value

    @property
    def codec(self) -> Codec:
        """The codec of every chunk."""
        return self.layout.codec

    @property
    def metadata(self) -> SlideMetadata:
        """How the slide was acquired."""
        return self.layout.metadata

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
        self._closed = True

    def encode(self, chunk: Chunk) -> EncodedChunk:
        """Return the chunk's bytes; pure, any thread.

        A chunk that the canvas clips is padded by replication to the full size.

        Raises
        ------
        StoreError
            When the chunk is not one of this store's, or its pixels have another shape or type.
        """
        level = self._level_of(chunk.level, chunk.row, chunk.col)
        if chunk.pixels is None:
            return EncodedChunk(chunk.level, chunk.row, chunk.col, ())
        t = self.chunk_px
        height, width = min(t, level.height_px - chunk.row * t), min(t, level.width_px - chunk.col * t)
        if chunk.pixels.shape != (height, width, self.channels) or chunk.pixels.dtype != self.dtype:
            raise StoreError(
                f"A chunk of {chunk.pixels.dtype} {chunk.pixels.shape} does not fit; "
                f"{self.dtype} {(height, width, self.channels)} belongs there."
            )
        pixels = chunk.pixels
        if (height, width) != (t, t):
            pixels = np.pad(pixels, ((0, t - height), (0, t - width), (0, 0)), mode="edge")
        planes = [pixels] if self.layout.rgb else [pixels[:, :, c] for c in range(self.channels)]
        return EncodedChunk(
            chunk.level, chunk.row, chunk.col, tuple(self.codec.encode(np.ascontiguousarray(p)) for p in planes)
        )

    def append(self, encoded: EncodedChunk) -> None:
        """Write the chunk's bytes to its shard; any thread. Readers do not see them before `commit`.

        Raises
        ------
        StoreError
            When the chunk was appended before, or the store is closed.
        DiskLowError
            When the disk is full; the same chunk may then be appended again.
        """
        level, row, col = encoded.level, encoded.row, encoded.col
        self._level_of(level, row, col)
        if encoded.parts and len(encoded.parts) != self.layout.planes:
            raise StoreError(f"A chunk of {len(encoded.parts)} parts does not fit; {self.layout.planes} belong there.")
        name = self.layout.shard_of(level, row, col)
        with self._lock:
            shard = self._claim(name, level, row, col)
            offset = shard.end
            shard.end += encoded.nbytes
        stored = []
        for channel, part in enumerate(encoded.parts):
            stored.append(StoredPart(level, row, col, channel, name, offset, len(part), shards.crc32c(part)))
            offset += len(part)
        try:
            if stored:
                shards.write(self.path / name, stored[0].offset, encoded.parts)
        except BaseException:
            self._unclaim([(level, row, col)])
            raise
        with self._lock:
            self._pending += stored

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
        with self._commit_lock:
            with self._lock:
                parts, self._pending = self._pending, []
            try:
                self._sync(parts)
                if on_durable is not None:
                    on_durable(parts)
            except BaseException:
                self._unclaim({(p.level, p.row, p.col) for p in parts})
                raise
            self._durable += parts
            self._show()
            return parts

    def rebuild_index(self, parts: Iterable[StoredPart], *, verify: bool = True) -> list[StoredPart]:
        """Make the store hold exactly what the journal says; call it after a crash, before any append.

        Indices are written anew, bytes behind the last journalled part are cut off, shards without any are removed.

        Parameters
        ----------
        parts : iterable of StoredPart
            Every part that was ever journalled.
        verify : bool
            Read each part and compare its CRC-32C.

        Returns
        -------
        list of StoredPart
            Parts of the chunks that are damaged: they are left out and may be appended again.
        """
        groups: dict[str, list[StoredPart]] = {}
        for part in parts:
            if part.shard != self.layout.shard_of(part.level, part.row, part.col):
                raise StoreError(f"The journal names {part.shard}, which is no shard of {self.path}.")
            groups.setdefault(part.shard, []).append(part)
        damaged: list[StoredPart] = []
        with self._commit_lock, self._lock, shards.disk_errors(self.path):
            for folder in self._shard_folders():
                for file in folder.iterdir():
                    if str(file.relative_to(self.path)) not in groups:
                        file.unlink()
            self._pending, self._durable, self._shards = [], [], {}
            for claimed in self._claimed:
                claimed[:] = False
            for name, group in groups.items():
                damaged += self._rebuild(name, group, verify)
            for folder in self._shard_folders():
                shards.sync(folder)
        return damaged

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
        """Yield every visible part of a level, shard by shard in the order of their bytes: what an export copies."""
        self._level_of(level, 0, 0)
        n = self.shard_chunks
        for row, col in product(range(0, self.levels[level].rows, n), range(0, self.levels[level].cols, n)):
            name = self.layout.shard_of(level, row, col)
            index = self._index(name)
            for slot in np.argsort(index[:, 0], kind="stable"):
                if shards.present(index, slot):
                    offset, length = (int(v) for v in index[slot])
                    yield StoredPart(*self.layout.chunk_at(name, int(slot)), name, offset, length, None)

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
        size = self._level_of(level, 0, 0)
        if box.empty or box.intersect(Box(0, 0, size.height_px, size.width_px)) != box:
            raise StoreError(f"{box} is not inside level {level}, {size.height_px} x {size.width_px} px.")
        out = np.full((box.height, box.width, self.channels), self.fill_value, self.dtype)
        t = self.chunk_px
        rows, cols = range(box.y0 // t, -(-box.y1 // t)), range(box.x0 // t, -(-box.x1 // t))
        for row, col, channel in product(rows, cols, range(self.layout.planes)):
            data = self.encoded(level, row, col, channel)
            if data is None:
                continue
            pixels = self.codec.decode(data, self.layout.part_shape, self.dtype)
            part = box.intersect(Box(0, 0, t, t).shifted(row * t, col * t))
            inside, there = part.shifted(-row * t, -col * t), part.shifted(-box.y0, -box.x0)
            target = out if self.layout.rgb else out[:, :, channel]
            target[there.y0 : there.y1, there.x0 : there.x1] = pixels[inside.y0 : inside.y1, inside.x0 : inside.x1]
        return out

    def _level_of(self, level: int, row: int, col: int) -> Level:
        if 0 <= level < len(self.levels) and 0 <= row < self.levels[level].rows and 0 <= col < self.levels[level].cols:
            return self.levels[level]
        raise StoreError(f"There is no chunk ({row}, {col}) of level {level} in {self.path}.")

    def _index(self, name: str) -> shards.Index:
        shard = self._shards.get(name)
        return shard.index if shard is not None else shards.read_index(self.path / name, self.layout.slots)

    def _entry(self, level: int, row: int, col: int, channel: int) -> tuple[int, int] | None:
        self._level_of(level, row, col)
        if not 0 <= channel < self.layout.planes:
            raise StoreError(f"There is no part {channel} in a chunk of {self.path}.")
        index = self._index(self.layout.shard_of(level, row, col))
        slot = self.layout.slot_of(row, col, channel)
        return (int(index[slot, 0]), int(index[slot, 1])) if shards.present(index, slot) else None

    def _claim(self, name: str, level: int, row: int, col: int) -> _Shard:
        """Reserve a chunk; the lock is held. The first chunk of a shard makes the file."""
        if self._closed:
            raise StoreError(f"{self.path} is closed.")
        shard = self._shards.get(name) or self._first_touch(name)
        if self._claimed[level][row, col] or shards.present(shard.index, self.layout.slot_of(row, col, 0)):
            raise StoreError(f"Chunk ({row}, {col}) of level {level} was stored before.", "Each chunk is stored once.")
        self._claimed[level][row, col] = True
        return shard

    def _first_touch(self, name: str) -> _Shard:
        path, slots = self.path / name, self.layout.slots
        fresh = not path.exists()
        if fresh:
            shards.create(path, slots)
        shard = _Shard(shards.read_index(path, slots), path.stat().st_size, fresh)
        self._shards[name] = shard
        return shard

    def _unclaim(self, places: Iterable[tuple[int, int, int]]) -> None:
        with self._lock:
            for level, row, col in places:
                self._claimed[level][row, col] = False

    def _sync(self, parts: Sequence[StoredPart]) -> None:
        """Wait until the bytes, and the names of new shards, are on the disk."""
        names = sorted({part.shard for part in parts})
        for name in names:
            shards.sync(self.path / name)
        for folder in sorted({(self.path / name).parent for name in names if self._shards[name].fresh}):
            shards.sync(folder)
        for name in names:
            self._shards[name].fresh = False

    def _show(self) -> None:
        """Rewrite the indices of the shards with durable parts; what was shown is forgotten."""
        groups: dict[str, list[StoredPart]] = {}
        for part in self._durable:
            groups.setdefault(part.shard, []).append(part)
        for name, group in sorted(groups.items()):
            index = self._shards[name].index.copy()
            for part in group:
                index[self.layout.slot_of(part.row, part.col, part.channel)] = part.offset, part.length
            shards.write_index(self.path / name, index)
            self._shards[name].index = index
        self._durable = []

    def _rebuild(self, name: str, group: Sequence[StoredPart], verify: bool) -> list[StoredPart]:
        path, slots = self.path / name, self.layout.slots
        if not path.exists():
            return list(group)
        bad = {(p.row, p.col) for p in group if not self._intact(p, verify)}
        index = shards.empty_index(slots)
        good = [p for p in group if (p.row, p.col) not in bad]
        for part in good:
            index[self.layout.slot_of(part.row, part.col, part.channel)] = part.offset, part.length
        end = max([shards.index_size(slots), *(p.offset + p.length for p in good)])
        shards.write_index(path, index)
        shards.truncate(path, end)
        shards.sync(path)
        self._shards[name] = _Shard(index, end, fresh=False)
        return [p for p in group if (p.row, p.col) in bad]

    def _intact(self, part: StoredPart, verify: bool) -> bool:
        try:
            data = shards.read_part(self.path / part.shard, part.offset, part.length, self.layout.slots)
        except StoreError:
            return False
        return not verify or part.crc32c is None or shards.crc32c(data) == part.crc32c

    def _shard_folders(self) -> list[Path]:
        return sorted(self.path.glob("0/*/c/0/*"))


def _read_json(folder: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((folder / "zarr.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"{folder} is not a readable part of an OME-Zarr ({error}).", "Check the path.") from error
    return found


def _write_empty(path: Path, layout: Layout) -> None:
    """Write the metadata and the folders of the shards beside, sync them, and rename."""
    partial = path.with_name(f"{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for k, level in enumerate(layout.levels()):
        for row in range(0, level.rows, layout.shard_chunks):
            (partial / layout.shard_of(k, row, 0)).parent.mkdir(parents=True)
    (partial / "OME").mkdir()
    for folder, document in documents.documents(layout).items():
        (partial / folder / "zarr.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    xml = build_ome_xml(
        layout.metadata,
        height_px=layout.height_px,
        width_px=layout.width_px,
        channels=layout.channels,
        dtype=layout.dtype,
        kind="zarr",
    )
    (partial / "OME" / "METADATA.ome.xml").write_text(xml, encoding="utf-8")
    for entry in [*partial.rglob("*"), partial]:
        shards.sync(entry)
    partial.rename(path)
    shards.sync(path.parent)

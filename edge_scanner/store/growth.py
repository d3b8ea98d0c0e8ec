"""How a store grows: bytes are appended to shards, made durable, journalled, and only then shown to readers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge_scanner.errors import StoreError
from edge_scanner.store import shard as shards
from edge_scanner.store.layout import Layout


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
    """What the writer knows of a shard: the index that readers see, and where the next part goes."""

    index: shards.Index
    end: int
    fresh: bool


class Growth:
    """The writing half of a store; `append` from any thread, one process.

    Memory bound: the indices of the shards that were written, 16 bytes a part, and one byte a chunk.

    Parameters
    ----------
    path : Path
        The store.
    layout : Layout
    """

    def __init__(self, path: Path, layout: Layout) -> None:
        self._path = path
        self._layout = layout
        self._lock = threading.Lock()
        self._commit_lock = threading.Lock()
        self._shards: dict[str, _Shard] = {}
        self._claimed = [np.zeros((level.rows, level.cols), bool) for level in layout.levels()]
        self._pending: list[StoredPart] = []
        self._durable: list[StoredPart] = []
        self._closed = False

    def close(self) -> None:
        """Refuse further appends."""
        self._closed = True

    def index(self, name: str) -> shards.Index:
        """Return the index of a shard as readers see it."""
        shard = self._shards.get(name)
        return shard.index if shard is not None else shards.read_index(self._path / name, self._layout.slots)

    def append(self, encoded: EncodedChunk) -> None:
        """Write the bytes of a chunk; see `SlideStore.append`."""
        level, row, col = encoded.level, encoded.row, encoded.col
        if encoded.parts and len(encoded.parts) != self._layout.planes:
            raise StoreError(f"A chunk of {len(encoded.parts)} parts does not fit; {self._layout.planes} belong there.")
        name = self._layout.shard_of(level, row, col)
        with self._lock:
            self._claim(name, level, row, col)
            if not encoded.parts:
                return
            shard = self._shards[name]
            start = offset = shard.end
            shard.end += encoded.nbytes
        stored = []
        for channel, part in enumerate(encoded.parts):
            stored.append(StoredPart(level, row, col, channel, name, offset, len(part), shards.crc32c(part)))
            offset += len(part)
        try:
            shards.write(self._path / name, start, encoded.parts)
        except BaseException:
            with self._lock:
                if shard.end == offset:
                    shard.end = start
            self._unclaim([(level, row, col)])
            raise
        with self._lock:
            self._pending += stored

    def commit(self, on_durable: Callable[[Sequence[StoredPart]], None] | None = None) -> list[StoredPart]:
        """Bytes, fsync, journal, index, fsync; see `SlideStore.commit`."""
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

    def rebuild(self, parts: Iterable[StoredPart], verify: bool) -> list[StoredPart]:
        """Make the shards hold exactly these parts; see `SlideStore.rebuild_index`."""
        groups = self._by_shard(parts)
        if wrong := [n for n, group in groups.items() if any(n != self._name_of(p) for p in group)]:
            raise StoreError(f"The journal does not belong to this store: {wrong[0]} holds other chunks in it.")
        damaged: list[StoredPart] = []
        with self._commit_lock, self._lock, shards.disk_errors(self._path):
            folders = sorted(self._path.glob("0/*/c/0/*"))
            for file in [file for folder in folders for file in folder.iterdir()]:
                if str(file.relative_to(self._path)) not in groups:
                    file.unlink()
            self._pending, self._durable, self._shards = [], [], {}
            for claimed in self._claimed:
                claimed[:] = False
            for name, group in groups.items():
                damaged += self._rebuild(name, group, verify)
            for folder in folders:
                shards.sync(folder)
        return damaged

    def _claim(self, name: str, level: int, row: int, col: int) -> None:
        """Reserve a chunk; the lock is held. The first chunk of a shard makes the file."""
        if self._closed:
            raise StoreError(f"{self._path} is closed.")
        if name not in self._shards:
            path, slots = self._path / name, self._layout.slots
            with shards.disk_errors(path):
                fresh = not path.exists()
                if fresh:
                    shards.create(path, slots)
                self._shards[name] = _Shard(shards.read_index(path, slots), path.stat().st_size, fresh)
        stored = shards.present(self._shards[name].index, self._layout.slot_of(row, col, 0))
        if stored or self._claimed[level][row, col]:
            raise StoreError(f"Chunk ({row}, {col}) of level {level} was stored before.", "Each chunk is stored once.")
        self._claimed[level][row, col] = True

    def _unclaim(self, places: Iterable[tuple[int, int, int]]) -> None:
        with self._lock:
            for level, row, col in places:
                self._claimed[level][row, col] = False

    def _sync(self, parts: Sequence[StoredPart]) -> None:
        """Wait until the bytes, and the names of new shards, are on the disk."""
        names = sorted({part.shard for part in parts})
        for name in names:
            shards.sync(self._path / name)
        for folder in sorted({(self._path / name).parent for name in names if self._shards[name].fresh}):
            shards.sync(folder)
        for name in names:
            self._shards[name].fresh = False

    def _show(self) -> None:
        """Rewrite the indices of the shards with durable parts; what was shown is forgotten."""
        for name, group in sorted(self._by_shard(self._durable).items()):
            index = self._with(self._shards[name].index, group)
            shards.write_index(self._path / name, index)
            self._shards[name].index = index
        self._durable = []

    def _rebuild(self, name: str, group: Sequence[StoredPart], verify: bool) -> list[StoredPart]:
        path, slots = self._path / name, self._layout.slots
        if not path.exists():
            return list(group)
        bad = {(p.row, p.col) for p in group if not self._intact(p, verify)}
        good = [p for p in group if (p.row, p.col) not in bad]
        index = self._with(shards.empty_index(slots), good)
        end = max([shards.index_size(slots), *(p.offset + p.length for p in good)])
        shards.write_index(path, index)
        shards.truncate(path, end)
        shards.sync(path)
        self._shards[name] = _Shard(index, end, fresh=False)
        return [p for p in group if (p.row, p.col) in bad]

    def _intact(self, part: StoredPart, verify: bool) -> bool:
        try:
            data = shards.read_part(self._path / part.shard, part.offset, part.length, self._layout.slots)
        except StoreError:
            return False
        return not verify or part.crc32c is None or shards.crc32c(data) == part.crc32c

    def _name_of(self, part: StoredPart) -> str:
        return self._layout.shard_of(part.level, part.row, part.col)

    def _with(self, index: shards.Index, parts: Iterable[StoredPart]) -> shards.Index:
        index = index.copy()
        for part in parts:
            index[self._layout.slot_of(part.row, part.col, part.channel)] = part.offset, part.length
        return index

    @staticmethod
    def _by_shard(parts: Iterable[StoredPart]) -> dict[str, list[StoredPart]]:
        groups: dict[str, list[StoredPart]] = {}
        for part in parts:
            groups.setdefault(part.shard, []).append(part)
        return groups

"""How far a fusion came: one small file a finished piece, so that the same work can go on after any interruption.

A piece's file is written once its bytes are durable and before readers can see them; it holds where they lie, and the
piece's chunks of the level at which a shard has become one chunk, from which the coarser levels are made.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from edge_scanner.errors import StoreError
from edge_scanner.store import SlideStore, StoredPart
from edge_scanner.tile import Chunk, Pixels

_FOLDER = ".fusing"


class Progress:
    """The notes of a fusion, inside of its partial store.

    Parameters
    ----------
    path : Path
        The partial store.
    identity : str
        Names the work.
    store : SlideStore or None
        What an earlier run left; None to begin anew.
    """

    def __init__(self, path: Path, identity: str, store: SlideStore | None) -> None:
        self._folder = path / _FOLDER
        self._identity = identity
        self.store = store
        self._stored: set[tuple[int, int, int]] = set()

    @classmethod
    def open(cls, path: Path, identity: str) -> Progress:
        """Look for what an earlier run of the same work left; anything else at that place is removed."""
        try:
            if (path / _FOLDER / "identity").read_text(encoding="utf-8") == identity:
                return cls(path, identity, SlideStore.open(path))
        except (OSError, UnicodeDecodeError, StoreError):
            pass
        try:
            if os.path.lexists(path):
                shutil.rmtree(path)
        except OSError as error:
            raise StoreError(f"{path} is in the way ({error.strerror}).", "Remove it.") from error
        return cls(path, identity, None)

    def begin(self, store: SlideStore) -> None:
        """Make the folder of a new store; of an old one, make the store hold exactly what the notes say."""
        if self.store is None:
            self._folder.mkdir()
            _write(self._folder / "identity", self._identity.encode())
            return
        parts = []
        for file in sorted(self._folder.glob("*.json")):
            parts += [StoredPart(**part) for part in json.loads(file.read_text(encoding="utf-8"))]
        if store.rebuild_index(parts, verify=False):
            raise StoreError("The partial output is damaged.", f"Remove {self._folder.parent} and start again.")
        self._stored = {(part.level, part.row, part.col) for part in parts}

    def stored(self, chunk: Chunk) -> bool:
        """Tell whether an earlier run stored the chunk."""
        return (chunk.level, chunk.row, chunk.col) in self._stored

    def done(self, number: int, tops: Sequence[Chunk], parts: Sequence[StoredPart]) -> None:
        """Note that a piece is durable."""
        arrays = {f"{c.level}-{c.row}-{c.col}": np.empty(0) if c.pixels is None else c.pixels for c in tops}
        with (self._folder / f"{number}.partial").open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
            file.flush()
            os.fsync(file.fileno())
        (self._folder / f"{number}.partial").rename(self._folder / f"{number}.npz")
        _write(self._folder / f"{number}.json", json.dumps([asdict(part) for part in parts]).encode())

    def tops(self, number: int) -> list[Chunk] | None:
        """Return the coarse chunks of a piece that an earlier run finished; None for one that is to be done."""
        if not (self._folder / f"{number}.json").is_file():
            return None
        with np.load(self._folder / f"{number}.npz", allow_pickle=False) as arrays:
            return [_chunk(name, pixels) for name, pixels in arrays.items()]

    @property
    def begun(self) -> bool:
        """Whether any piece is finished, so that there is something to go on with."""
        return any(self._folder.glob("*.json"))

    def forget(self) -> None:
        """Remove the notes: the work is done."""
        shutil.rmtree(self._folder)


def _chunk(name: str, pixels: Pixels) -> Chunk:
    level, row, col = map(int, name.split("-"))
    return Chunk(level, row, col, pixels if pixels.size else None)


def _write(path: Path, data: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)

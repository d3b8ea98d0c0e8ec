"""Tiles on disk or in memory: what they are, read whole, and kept for a while within a bound."""

from __future__ import annotations

import math
import mmap
import struct
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray

from edge_scanner.errors import SourceError
from edge_scanner.geometry import Box
from edge_scanner.tile import Pixels

TIFF = (".tif", ".tiff", ".btf", ".tf8")
DTYPES = ("uint8", "uint16", "float32")
DAMAGE = (
    OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError, MemoryError,
    struct.error, tifffile.TiffFileError, cv2.error,
)  # fmt: skip
"""What readers raise on files that are cut off or damaged."""
_LEAST_APART = 1 << 18
"""Bytes of a tile from which on it gets pages of its own."""
_SPARE = 2
"""Tiles' pages that are kept for the next ones."""


@dataclass(frozen=True, slots=True)
class TileFile:
    """A tile on disk: one page, or several that are its channels.

    Parameters
    ----------
    name : str
        What reports call it.
    pages : tuple of (str, int)
        File and number of the page in it.
    """

    name: str
    pages: tuple[tuple[str, int], ...]

    @classmethod
    def of(cls, path: str | Path) -> TileFile:
        """Return the tile that is the first page of a file."""
        return cls(Path(path).name, ((str(path), 0),))


Room = Callable[[tuple[int, ...], np.dtype[Any]], NDArray[Any]]
AnyTile = str | Path | TileFile | NDArray[Any]


@dataclass(frozen=True, slots=True)
class TileShape:
    """What all tiles of a set have in common: (y, x[, c]) or (z, y, x[, c]), and the type of their pixels."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __str__(self) -> str:
        return f"{' x '.join(map(str, self.shape))} {self.dtype}"


class TileReader:
    """Reads tiles whole and keeps the latest; any thread. Pickled without what it holds.

    Memory bound: `cache_bytes` of tiles, less what it was told to leave; one more for each thread that reads, and the
    pages of two for the next ones.

    Parameters
    ----------
    tiles : sequence
        Paths, `TileFile`s or arrays.
    shape : TileShape
        Of every tile.
    cache_bytes : int
    """

    def __init__(self, tiles: Sequence[AnyTile], shape: TileShape, cache_bytes: int) -> None:
        self._tiles = [tile if isinstance(tile, TileFile | np.ndarray) else TileFile.of(tile) for tile in tiles]
        self._shape = shape
        self._cache_bytes = cache_bytes
        self._attach()

    def _attach(self) -> None:
        self._lock = threading.Lock()
        self._reading = [threading.Lock() for _ in self._tiles]
        self._cache: OrderedDict[int, Pixels] = OrderedDict()
        self._held = self._left = 0
        self._spare: deque[mmap.mmap] = deque(maxlen=_SPARE)
        self.loads = 0

    def __getstate__(self) -> dict[str, Any]:
        return {"_tiles": self._tiles, "_shape": self._shape, "_cache_bytes": self._cache_bytes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._attach()

    def tile(self, index: int) -> Pixels:
        """Return a tile, (y, x[, c]) or (z, y, x[, c]).

        Raises
        ------
        SourceError
            Missing or unreadable file, or pixels of another shape or type than the others'.
        """
        source = self._tiles[index]
        if isinstance(source, np.ndarray):
            return source
        with self._reading[index]:
            with self._lock:
                if (kept := self._cache.get(index)) is not None:
                    self._cache.move_to_end(index)
                    return kept
            pixels = read_tile(source, self._room)
            found = TileShape(pixels.shape, pixels.dtype)
            if found != self._shape:
                raise SourceError(f"The tile {source.name} is {found}; others are {self._shape}.", "Fuse like tiles.")
            self._keep(index, pixels)
            return pixels

    def crop(self, index: int, box: Box) -> Pixels:
        """Return the pixels (y, x, c) of a box of a flat tile."""
        tile = self.tile(index)
        part = tile[box.y0 : box.y1, box.x0 : box.x1]
        return part if part.ndim == 3 else part[..., None]

    @property
    def held_bytes(self) -> int:
        """Tiles that are kept."""
        return self._held

    def leave(self, nbytes: int) -> None:
        """Leave that much of the bound to others, from now on."""
        with self._lock:
            self._left = nbytes
            self._drop()

    def _keep(self, index: int, pixels: Pixels) -> None:
        with self._lock:
            self.loads += 1
            self._cache[index] = pixels
            self._held += pixels.nbytes
            self._drop()

    def _drop(self) -> None:
        while self._held > self._cache_bytes - self._left and self._cache:
            self._held -= self._cache.popitem(last=False)[1].nbytes

    def _room(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Pixels:
        """Return memory for a tile in pages of its own: those of one that nobody looks at any more, or new ones.

        Of tiles that one thread reads and another one drops, the C library's heaps keep more than is in use.
        """
        size = math.prod(shape) * dtype.itemsize
        if TileShape(shape, dtype) != self._shape or size < _LEAST_APART:
            return np.empty(shape, dtype)
        try:
            pages = self._spare.pop()
        except IndexError:
            pages = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        room: Pixels = np.ndarray(shape, dtype, pages)
        weakref.finalize(room, self._spare.append, pages)  # views keep it alive
        return room


def read_tile(tile: TileFile, room: Room = np.empty) -> Pixels:
    """Return the pixels of a tile.

    Parameters
    ----------
    tile : TileFile
    room : callable
        Makes an array of a shape and a dtype, to read into.

    Raises
    ------
    SourceError
        When a file is missing or cannot be decoded.
    """
    if len(tile.pages) == 1:
        return _read_page(*tile.pages[0], room)
    pages = [_read_page(*page, np.empty) for page in tile.pages]
    if len({(page.shape, page.dtype) for page in pages}) > 1 or pages[0].ndim != 2:
        raise SourceError(f"The channels of the tile {tile.name} are not alike.", "Each must be one grey image.")
    return np.stack(pages, axis=-1, out=room((*pages[0].shape, len(pages)), pages[0].dtype))


def common_shape(tiles: Iterable[AnyTile]) -> TileShape:
    """Return what all tiles have in common, by the headers of their files where those are TIFF, PNG or NumPy.

    Raises
    ------
    SourceError
        A tile is missing, unreadable, of another kind than the first, or of a type that cannot be fused.
    """
    first: TileShape | None = None
    for tile in tiles:
        name, shape = _shape_of(tile)
        if first is None:
            first = shape or _pixels_shape(tile)
            _check(first, name)
        elif shape is not None and shape != first:
            raise SourceError(f"The tile {name} is {shape}; others are {first}.", "Fuse tiles of one size and type.")
    if first is None:
        raise SourceError("There are no tiles to fuse.")
    return first


def _check(shape: TileShape, name: str) -> None:
    if shape.dtype.name not in DTYPES:
        raise SourceError(f"The tile {name} is of type {shape.dtype}.", f"Tiles may be {', '.join(DTYPES)}.")
    if len(shape.shape) not in (2, 3, 4) or min(shape.shape) < 1:
        raise SourceError(f"The tile {name} has the shape {shape.shape}, which is not an image's.")


def _shape_of(tile: AnyTile) -> tuple[str, TileShape | None]:
    """Return the name and, where the header says it, the shape."""
    if isinstance(tile, np.ndarray):
        return "in memory", TileShape(tile.shape, tile.dtype)
    if not isinstance(tile, TileFile):
        tile = TileFile.of(tile)
    for path, _ in tile.pages:
        if not Path(path).is_file():
            raise SourceError(f"The tile {Path(path).name} is missing.", f"It should be {path}.")
    path, page = tile.pages[0]
    if Path(path).suffix.lower() not in TIFF:
        return tile.name, None
    try:
        with tifffile.TiffFile(path) as tiff:
            found = tiff.pages[page]
            shape = (*found.shape, len(tile.pages)) if len(tile.pages) > 1 else found.shape
            return tile.name, TileShape(tuple(shape), np.dtype(found.dtype).newbyteorder("="))
    except DAMAGE as error:
        raise _unreadable(path, error) from error


def _pixels_shape(tile: AnyTile) -> TileShape:
    assert not isinstance(tile, np.ndarray)
    pixels = read_tile(tile if isinstance(tile, TileFile) else TileFile.of(tile))
    return TileShape(pixels.shape, pixels.dtype)


def _read_page(name: str, page: int, room: Room) -> Pixels:
    path = Path(name)
    try:
        if path.suffix.lower() in TIFF:
            with tifffile.TiffFile(path) as tiff:
                found = tiff.pages[page]
                return np.asarray(found.asarray(out=room(found.shape, np.dtype(found.dtype).newbyteorder("="))))
        if path.suffix.lower() == ".npy":
            return np.asarray(np.load(path, allow_pickle=False))
        data = np.fromfile(path, np.uint8)
        decoded = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
    except DAMAGE as error:
        raise _unreadable(path, error) from error
    if decoded is None:
        raise _unreadable(path, "not an image, or cut off")
    if decoded.ndim == 3:
        code = cv2.COLOR_BGR2RGB if decoded.shape[2] == 3 else cv2.COLOR_BGRA2RGB
        decoded = cv2.cvtColor(decoded, code, dst=room((*decoded.shape[:2], 3), decoded.dtype))
    return np.asarray(decoded)


def _unreadable(path: str | Path, why: object) -> SourceError:
    if not Path(path).is_file():
        return SourceError(f"The tile {Path(path).name} is missing.", f"It should be {path}.")
    return SourceError(f"The tile {Path(path).name} cannot be read ({why}).", "Check the file.")

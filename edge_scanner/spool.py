"""Accepted frames wait here for their place: plain TIFF files on disk, with the latest ones in memory too.

Bound: `cache_bytes` in memory; on disk the frames of the scan lines that are not committed yet.
"""

from __future__ import annotations

import ctypes
import io
import os
import struct
import threading
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import tifffile

from edge_scanner.errors import StoreError
from edge_scanner.geometry import Box
from edge_scanner.store.shard import disk_errors, write
from edge_scanner.tile import Pixels

FOLDER = "spool"
"""Where a scan keeps what waits; gone when it has ended."""
BANDS = 4
"""Row ranges of frames on disk that are kept in memory: a chunk touches that many tiles, and so does the next."""


class Spool:
    """Frames by index, each one uncompressed TIFF; read by row ranges.

    Bound: `cache_bytes`, and the rows that one chunk needs of `BANDS` frames.

    Parameters
    ----------
    folder : Path
        Made if missing.
    cache_bytes : int
        Bound of the frames kept in memory; least recently put ones leave first.
    keep : bool
        Leave the files when their tiles are dropped (`scan.keep_tiles`).
    """

    def __init__(self, folder: Path, cache_bytes: int, *, keep: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._cache_bytes = cache_bytes
        self._keep = keep
        self._cache: OrderedDict[int, Pixels] = OrderedDict()
        self._cached = 0
        self._layout: dict[int, tuple[int, tuple[int, ...], np.dtype[Any]]] = {}
        self._bands: OrderedDict[tuple[int, int, int], Pixels] = OrderedDict()

    def __contains__(self, index: int) -> bool:
        return index in self._layout

    def path(self, index: int) -> Path:
        """Return the frame's file."""
        return self._folder / f"{index:06d}.tif"

    def put(self, index: int, pixels: Pixels) -> None:
        """Write a frame (y, x, c).

        Raises
        ------
        DiskLowError, StoreError
            When the disk is full or fails.
        """
        path = self.path(index)
        squeezed = pixels[..., 0] if pixels.shape[2] == 1 else pixels
        photometric = "rgb" if pixels.shape[2] == 3 else "minisblack"
        with disk_errors(path):
            found = tifffile.imwrite(
                path,
                shape=squeezed.shape,
                dtype=pixels.dtype,
                photometric=photometric,
                returnoffset=True,
                metadata=None,
            )
        assert found is not None
        # not by tifffile: it writes arrays by numpy, which does not say why a write failed
        write(path, int(found[0]), [np.ascontiguousarray(pixels).reshape(-1).view(np.uint8).data])
        self._layout[index] = (int(found[0]), pixels.shape, pixels.dtype)
        self._cache[index] = pixels
        self._cached += pixels.nbytes
        while self._cached > self._cache_bytes and self._cache:
            self._cached -= self._cache.popitem(last=False)[1].nbytes

    def recover(self, index: int, shape: tuple[int, int, int], dtype: np.dtype[Any], crc32: int) -> Pixels | None:
        """Take over a frame that an earlier run spooled, and return it; None when it is gone or damaged."""
        path = self.path(index)
        try:
            with tifffile.TiffFile(path) as file:
                offset = file.pages[0].dataoffsets[0]
        except (OSError, ValueError, IndexError, tifffile.TiffFileError):
            return None
        with path.open("rb") as raw:
            raw.seek(offset)
            data = raw.read(int(np.prod(shape)) * dtype.itemsize)
        if zlib.crc32(data) != crc32:
            return None
        self._layout[index] = (offset, shape, dtype)
        return np.frombuffer(data, dtype).reshape(shape)

    def crop(self, index: int, box: Box) -> Pixels:
        """Return the pixels (y, x, c) of a box inside the frame; a view where the frame is in memory."""
        cached = self._cache.get(index)
        if cached is not None:
            return cached[box.y0 : box.y1, box.x0 : box.x1]
        return self._rows(index, box.y0, box.y1)[:, box.x0 : box.x1]

    def _rows(self, index: int, y0: int, y1: int) -> Pixels:
        """Return rows of a frame on disk; those read last are kept, since chunks beside each other need the same."""
        band = self._bands.pop((index, y0, y1), None)
        if band is None:
            offset, (_, width, channels), dtype = self._layout[index]
            row = width * channels * dtype.itemsize
            with self.path(index).open("rb") as file:
                data = os.pread(file.fileno(), (y1 - y0) * row, offset + y0 * row)
            if len(data) != (y1 - y0) * row:
                raise StoreError(f"The spooled frame {self.path(index).name} is truncated.", "Check the disk.")
            band = np.frombuffer(data, dtype).reshape(y1 - y0, width, channels)
        self._bands[index, y0, y1] = band
        while len(self._bands) > BANDS:
            self._bands.popitem(last=False)
        return band

    def drop(self, index: int) -> None:
        """Forget a frame whose chunks are all written."""
        for key in [key for key in self._bands if key[0] == index]:
            del self._bands[key]
        pixels = self._cache.pop(index, None)
        if pixels is not None:
            self._cached -= pixels.nbytes
        if self._layout.pop(index, None) is not None and not self._keep:
            self.path(index).unlink(missing_ok=True)

    def close(self) -> None:
        """Drop everything and remove the folder when it is empty; kept frames stay."""
        for index in list(self._layout):
            self.drop(index)
        if not self._keep and not any(self._folder.iterdir()):
            self._folder.rmdir()


def checksum(pixels: Pixels) -> int:
    """Return the CRC-32 of a frame's bytes."""
    return zlib.crc32(np.ascontiguousarray(pixels).data)


class HalvesOnDisk:
    """Halved chunks on their way to their parent, appended to files that are closed at each commit.

    A parent's pixels must not be made from decoded children after a crash, or a lossy codec would show. A file leaves
    when the parents of all its records are in the store. Thread-safe.
    Bound: on disk a third of the pixels of the unfinished parents' files; nothing in memory but their index.

    Parameters
    ----------
    folder : Path
        Made if missing; files of an earlier run in it are taken over.
    dtype : dtype
    """

    _HEAD = struct.Struct("<6q")

    def __init__(self, folder: Path, dtype: np.dtype[Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._dtype = folder, dtype
        self._lock = threading.Lock()
        self._at: dict[tuple[int, int, int], tuple[Path, int, tuple[int, int, int]]] = {}
        self._waiting: dict[Path, set[tuple[int, int, int]]] = {}
        self._file: BinaryIO | None = None
        for path in sorted(folder.glob("*.half")):
            self._take_over(path)
        self._next = 1 + max((int(path.stem) for path in self._waiting), default=-1)

    def put(self, key: tuple[int, int, int], half: Pixels) -> None:
        """Keep a halved child (y, x, c).

        Raises
        ------
        DiskLowError, StoreError
            When the disk is full or fails.
        """
        with self._lock, disk_errors(self._folder):
            if self._file is None:
                path = self._folder / f"{self._next:06d}.half"
                self._next += 1
                self._file = path.open("xb")
                self._waiting[path] = set()
            path = Path(self._file.name)
            self._file.write(self._HEAD.pack(*key, *half.shape))
            self._note(path, key, self._file.tell(), half.shape)
            self._file.write(np.ascontiguousarray(half).data)

    def get(self, key: tuple[int, int, int]) -> Pixels | None:
        """Return a halved child that was kept; None where there is none."""
        with self._lock:
            found = self._at.get(key)
        if found is None:
            return None
        path, offset, shape = found
        return np.fromfile(path, self._dtype, int(np.prod(shape)), offset=offset).reshape(shape)

    def rotate(self) -> None:
        """Close the file in hand; what was put so far is with the system, and durable once that is synced."""
        with self._lock, disk_errors(self._folder):
            if self._file is not None:
                self._file.close()
                self._file = None

    def release(self, parent: tuple[int, int, int]) -> None:
        """Forget the children of a parent that is in the store."""
        level, row, col = parent
        with self._lock:
            for child in ((level - 1, 2 * row + r, 2 * col + c) for r in (0, 1) for c in (0, 1)):
                found = self._at.pop(child, None)
                if found is not None:
                    waiting = self._waiting[found[0]]
                    waiting.discard(child)
                    if not waiting and not (self._file and Path(self._file.name) == found[0]):
                        del self._waiting[found[0]]
                        found[0].unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file in hand."""
        self.rotate()

    def clear(self) -> None:
        """Remove every file: the pyramid is complete."""
        self.rotate()
        with self._lock:
            for path in self._waiting:
                path.unlink(missing_ok=True)
            self._waiting.clear()
            self._at.clear()

    def _note(self, path: Path, key: tuple[int, int, int], offset: int, shape: tuple[int, ...]) -> None:
        if key in self._at:  # put again by a resumed run
            self._waiting[self._at[key][0]].discard(key)
        self._at[key] = (path, offset, (shape[0], shape[1], shape[2]))
        self._waiting[path].add(key)

    def _take_over(self, path: Path) -> None:
        """Index a file of an earlier run; a torn tail is left alone, no chunk of it was committed."""
        self._waiting[path] = set()
        size = path.stat().st_size
        with path.open("rb") as file:
            while len(head := file.read(self._HEAD.size)) == self._HEAD.size:
                level, row, col, *shape = self._HEAD.unpack(head)
                offset = file.tell()
                end = offset + int(np.prod(shape)) * self._dtype.itemsize
                if end > size:
                    break
                self._note(path, (level, row, col), offset, tuple(shape))
                file.seek(end, io.SEEK_SET)


def sync_filesystem(folder: Path) -> None:
    """Make everything written to the file system of a folder durable: one call for many files (`syncfs(2)`).

    Measured on one ext4 disk: files of 200 kB with one such call for 50 of them are written about 13 times as fast as
    with an fsync each.

    Raises
    ------
    StoreError
        When the disk failed; what was written since the last call then counts as not written.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(descriptor) != 0:
            error = ctypes.get_errno()
            raise StoreError(f"The disk could not be synced ({os.strerror(error)}).", "Check the disk.")
    finally:
        os.close(descriptor)

"""Accepted frames wait here for their place: plain TIFF files on disk, with the latest ones in memory too.

Bound: `cache_bytes` in memory; on disk the frames of the scan lines that are not committed yet.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path

import numpy as np
import tifffile

from edge_scanner.errors import DiskLowError, StoreError
from edge_scanner.geometry import Box
from edge_scanner.tile import Pixels


class Spool:
    """Frames by index, each one uncompressed TIFF; read by row ranges.

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
        self._layout: dict[int, tuple[int, tuple[int, ...], np.dtype[np.generic]]] = {}

    def path(self, index: int) -> Path:
        """Return the frame's file."""
        return self._folder / f"{index:06d}.tif"

    def put(self, index: int, pixels: Pixels) -> None:
        """Write a frame (y, x, c).

        Raises
        ------
        DiskLowError, StoreError
            When the disk is full or fails; no partial file stays.
        """
        path = self.path(index)
        try:
            squeezed = pixels[..., 0] if pixels.shape[2] == 1 else pixels
            photometric = "rgb" if pixels.shape[2] == 3 else "minisblack"
            found = tifffile.imwrite(path, squeezed, photometric=photometric, returnoffset=True, metadata=None)
        except OSError as error:
            path.unlink(missing_ok=True)
            kind = DiskLowError if error.errno == 28 else StoreError
            raise kind(f"A frame cannot be written to {path.name} ({error.strerror}).", "Check the disk.") from error
        assert found is not None
        self._layout[index] = (int(found[0]), pixels.shape, pixels.dtype)
        self._cache[index] = pixels
        self._cached += pixels.nbytes
        while self._cached > self._cache_bytes and self._cache:
            self._cached -= self._cache.popitem(last=False)[1].nbytes

    def crop(self, index: int, box: Box) -> Pixels:
        """Return the pixels (y, x, c) of a box inside the frame; a view where the frame is in memory."""
        cached = self._cache.get(index)
        if cached is not None:
            return cached[box.y0 : box.y1, box.x0 : box.x1]
        offset, (_, width, channels), dtype = self._layout[index]
        row = width * channels * dtype.itemsize
        with self.path(index).open("rb") as file:
            data = os.pread(file.fileno(), box.height * row, offset + box.y0 * row)
        if len(data) != box.height * row:
            raise StoreError(f"The spooled frame {self.path(index).name} is truncated.", "Check the disk.")
        rows = np.frombuffer(data, dtype).reshape(box.height, width, channels)
        return rows[:, box.x0 : box.x1]

    def drop(self, index: int) -> None:
        """Forget a frame whose chunks are all written."""
        pixels = self._cache.pop(index, None)
        if pixels is not None:
            self._cached -= pixels.nbytes
        if self._layout.pop(index, None) is not None and not self._keep:
            self.path(index).unlink(missing_ok=True)

    def close(self) -> None:
        """Drop everything and remove the folder when it is empty."""
        for index in list(self._layout):
            self.drop(index)
        if not self._keep and not any(self._folder.iterdir()):
            self._folder.rmdir()

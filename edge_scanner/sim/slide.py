"""TIFF and pyramidal slides as specimens, decoded tile by tile."""

from __future__ import annotations

import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from edge_scanner.errors import SourceError
from edge_scanner.geometry import Box
from edge_scanner.sim.picture import RgbImage, Specimen
from edge_scanner.sim.pixels import rgb8

MEMORY_BOUND = 64 << 20
_READABLE = {0: "white is zero", 1: "grey", 2: "RGB", 3: "palette", 6: "YCbCr"}


class SlideSpecimen(Specimen):
    """Level 0 of a TIFF, SVS or OME-TIFF, read by region.

    Memory bound: decoded TIFF tiles (or strips) are kept least recently used first out, 64 MiB in all, or one tile
    if that is larger. Driven by one thread.

    Parameters
    ----------
    path : Path
    pixel_size_um : float

    Raises
    ------
    SourceError
        Not a TIFF, truncated, or of a pixel type or compression that cannot be shown.
    """

    def __init__(self, path: Path, pixel_size_um: float) -> None:
        self._path = path
        self._page = page = _level0(path)
        self._samples = 1 if page.planarconfig == 1 else page.samplesperpixel
        self._palette = None if page.photometric != 3 else np.asarray(page.colormap)
        self._part = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
        self._grid = -(-page.imagelength // self._part[0]), -(-page.imagewidth // self._part[1])
        self._cache: OrderedDict[tuple[int, int], RgbImage] = OrderedDict()
        self.held_bytes = 0
        self._file = path.open("rb")
        super().__init__(page.imagelength, page.imagewidth, pixel_size_um)

    def _inside(self, box: Box) -> RgbImage:
        out = np.empty((box.height, box.width, 3), np.uint8)
        ph, pw = self._part
        for row in range(box.y0 // ph, -(-box.y1 // ph)):
            for col in range(box.x0 // pw, -(-box.x1 // pw)):
                part = Box(row * ph, col * pw, row * ph + ph, col * pw + pw)
                cut = part.intersect(box)
                src, dst = cut.shifted(-part.y0, -part.x0), cut.shifted(-box.y0, -box.x0)
                out[dst.y0 : dst.y1, dst.x0 : dst.x1] = self._decoded(row, col)[src.y0 : src.y1, src.x0 : src.x1]
        return out

    def _decoded(self, row: int, col: int) -> RgbImage:
        if (row, col) in self._cache:
            self._cache.move_to_end((row, col))
            return self._cache[row, col]
        planes = [self._segment(row, col, s) for s in range(self._samples)]
        pixels = self._colour(np.concatenate(planes, axis=2))
        self._cache[row, col] = pixels
        self.held_bytes += pixels.nbytes
        while self.held_bytes > MEMORY_BOUND and len(self._cache) > 1:
            self.held_bytes -= self._cache.popitem(last=False)[1].nbytes
        return pixels

    def _segment(self, row: int, col: int, sample: int) -> NDArray[Any]:
        """Return one TIFF tile or strip (y, x, c); a sparse one is empty glass."""
        page = self._page
        index = (sample * self._grid[0] + row) * self._grid[1] + col
        self._file.seek(page.dataoffsets[index])
        data = self._file.read(page.databytecounts[index])
        try:
            pixels = page.decode(data or None, index, jpegtables=page.jpegtables)[0]
        except Exception as error:  # every codec raises its own kind
            raise SourceError(f"Tile {index} of {self._path} cannot be decoded ({error}).") from error
        if pixels is None:
            channels = page.samplesperpixel if self._samples == 1 else 1
            return np.full((*self._part, channels), np.iinfo(page.dtype).max, page.dtype)
        return np.asarray(pixels[0])

    def _colour(self, pixels: NDArray[Any]) -> RgbImage:
        if self._page.photometric == 0:
            pixels = np.invert(pixels)
        elif self._palette is not None:
            pixels = np.moveaxis(self._palette[:, pixels[..., 0]], 0, -1)
        return rgb8(pixels, self._path)


def _level0(path: Path) -> tifffile.TiffPage:
    """Return the first page of the largest level, checked to be whole and readable."""
    try:
        with tifffile.TiffFile(path) as tif:
            page = tif.series[0].levels[0].pages[0].keyframe
            size = tif.filehandle.size
            ends = [o + n for o, n in zip(page.dataoffsets, page.databytecounts, strict=True) if n]
            _ = page.decode, page.jpegtables, page.colormap  # read and kept while the file is open
    except (tifffile.TiffFileError, struct.error, IndexError, AttributeError, ValueError, KeyError) as error:
        raise SourceError(f"{path} is not a TIFF that can be read ({error}).", "Copy or convert it again.") from error
    if not ends or max(ends) > size:
        raise SourceError(
            f"The slide {path} is truncated: {size} bytes, {max(ends, default=0)} wanted.", "Copy it again."
        )
    if page.dtype is None or page.dtype.kind not in "ub" or page.photometric not in _READABLE or page.imagedepth != 1:
        raise SourceError(f"The pixels of {path} ({page.dtype}) cannot be shown.", "Give 8 or 16-bit grey or RGB.")
    return page

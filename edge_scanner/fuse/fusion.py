"""Any block of a mosaic, gathered from the tiles that touch it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_scanner.fuse.tiles import TileReader, TileShape
from edge_scanner.fuse.transforms import Matrix, bounds, is_shift
from edge_scanner.fuse.volume import Order, positions, sample
from edge_scanner.geometry import Box
from edge_scanner.mosaic.gain import levelled
from edge_scanner.mosaic.kernel import Blend, gather
from edge_scanner.mosaic.source import Source, place
from edge_scanner.mosaic.warp import Warp
from edge_scanner.tile import Pixels

FEATHER_PX = 64


@dataclass(frozen=True, slots=True)
class Look:
    """How blocks are made.

    Parameters
    ----------
    blend : str
    dtype : dtype
        Of the mosaic.
    fill : float
        Value of pixels that no tile covers.
    feather_px : int
        Longest ramp.
    order : int
        0 nearest (labels), 1 linear, 3 cubic or better.
    cubic : bool
        False places shifted tiles on whole pixels.
    """

    blend: Blend
    dtype: np.dtype[Any]
    fill: float = 0
    feather_px: int = FEATHER_PX
    order: Order = 3
    cubic: bool = True


class Fusion:
    """Makes any block of a mosaic. Any thread; pickled without the tiles that it keeps.

    Memory bound: the tiles that the reader keeps, and a few copies of each block under way.

    Parameters
    ----------
    reader : TileReader
    shape : TileShape
        Of every tile.
    matrices : sequence of ndarray
        Checked transforms.
    canvas : tuple
        First pixel and one past the last, (x, y[, z]).
    look : Look
    reach : sequence of Box, optional
        What of the mosaic each tile may be used for.
    doubts_px : sequence of float, optional
        How far each tile may be from agreeing with its neighbours; `seam` parts those over 1 px, and all by default.
    gains : sequence of float, optional
        Factors that make flat tiles as bright as their neighbours.
    """

    def __init__(
        self,
        reader: TileReader,
        shape: TileShape,
        matrices: Sequence[Matrix],
        canvas: tuple[tuple[int, ...], tuple[int, ...]],
        look: Look,
        reach: Sequence[Box] | None = None,
        doubts_px: Sequence[float] | None = None,
        gains: Sequence[float] | None = None,
    ) -> None:
        self.reader, self.look = reader, look
        self.axes = len(matrices[0]) - 1
        self.start = tuple(reversed(canvas[0]))
        self.extent = tuple(high - low for low, high in zip(self.start, reversed(canvas[1]), strict=True))
        self.channels = shape.shape[self.axes] if len(shape.shape) > self.axes else None
        self._sides, self._stored = shape.shape[: self.axes], shape.dtype
        self._dtype = look.dtype if look.dtype.kind == "f" else shape.dtype  # floats are asked for to be unrounded
        self._matrices = [np.asarray(m) for m in matrices]
        self._reach = reach
        self._doubts_px = doubts_px
        self._gains = gains
        self._flat = self.axes == 2 and look.order == 3
        around = np.array([_around(m, self._sides[::-1]) for m in self._matrices])
        self._low, self._high = around[:, 0], around[:, 1]

    @property
    def tile_extent(self) -> tuple[int, int, int]:
        """Height and width that a tile has in the mosaic at most, px, and the bytes of one in memory."""
        height, width = (int(v) for v in (self._high - self._low).max(axis=0)[-2:])
        return height, width, math.prod(self._sides) * (self.channels or 1) * self._stored.itemsize

    @property
    def tile_sides(self) -> tuple[int, ...]:
        """Shape of a tile without its channels."""
        return self._sides

    def touching(self, start: Sequence[int], shape: Sequence[int]) -> list[int]:
        """Return the tiles whose bounding box meets a block of the canvas; array order."""
        low = np.add(start, self.start)
        meets = (self._low < low + np.asarray(shape)) & (self._high > low)
        return [int(i) for i in np.flatnonzero(meets.all(axis=1))]

    def block(self, start: Sequence[int], shape: Sequence[int]) -> Pixels | None:
        """Return a block of the canvas, (y, x[, c]) or (z, y, x[, c]); None when no tile touches it.

        Parameters
        ----------
        start, shape : sequence of int
            In array order, from the canvas's first pixel.

        Raises
        ------
        SourceError
            When a tile cannot be read.
        """
        found = self.touching(start, shape)
        if not found:
            return None
        mosaic = self._gathered(found, start, shape) if self._flat else self._sampled(found, start, shape)
        if mosaic is None:
            return None
        if mosaic.dtype != self.look.dtype:
            mosaic = _converted(mosaic, self.look.dtype)
        return mosaic if self.channels is not None else mosaic[..., 0]

    def filled(self, start: Sequence[int], shape: Sequence[int]) -> Pixels:
        """Return a block of the canvas; the fill value where no tile touches it."""
        made = self.block(start, shape)
        full = (*shape, self.channels) if self.channels is not None else tuple(shape)
        return np.full(full, self.look.fill, self.look.dtype) if made is None else made

    def _gathered(self, found: list[int], start: Sequence[int], shape: Sequence[int]) -> Pixels | None:
        y, x = np.add(start, self.start)
        return gather(
            Box(int(y), int(x), int(y) + shape[0], int(x) + shape[1]),
            [self._source(index) for index in found],
            channels=self.channels or 1,
            dtype=self._dtype,
            fill=self.look.fill,
            feather=self.look.feather_px,
            blend=self.look.blend,
        )

    def _source(self, index: int) -> Source:
        matrix, (height, width) = self._matrices[index], self._sides
        crop, gain = partial(self._crop, index), 1.0 if self._gains is None else self._gains[index]
        if is_shift(matrix, (width, height)):
            box, shift = place(matrix[1, 2], matrix[0, 2], height, width, cubic=self.look.cubic)
            usable = box if self._reach is None else box.intersect(self._reach[index])
            doubt = math.inf if self._doubts_px is None else self._doubts_px[index]
            return Source(index, box, usable, shift, crop, residual_px=doubt, gain=gain)
        inverse = np.linalg.inv(matrix)
        (y0, x0), (y1, x1) = self._low[index], self._high[index]
        box = Box(int(y0), int(x0), int(y1), int(x1))
        warp = Warp(inverse / inverse[2, 2], height, width)
        return Source(index, box, box, (0.0, 0.0), lambda part: levelled(crop(part), gain), warp)

    def _crop(self, index: int, box: Box) -> Pixels:
        return self.reader.crop(index, box).astype(self._dtype, copy=False)

    def _sampled(self, found: list[int], start: Sequence[int], shape: Sequence[int]) -> Pixels | None:
        """Blend by running weighted means, as the kernel does, over any number of axes."""
        total = np.zeros((*shape, 1))
        mean = np.zeros((*shape, self.channels or 1))
        for index in found:
            flipped: Matrix = np.asarray(np.linalg.inv(self._matrices[index])[::-1, ::-1], np.float64)
            inverse = np.roll(flipped, (-1, -1), (0, 1))
            at = positions(inverse, np.add(start, self.start).tolist(), shape)
            tile = self.reader.tile(index)
            values, covered = sample(tile.reshape(*self._sides, -1), at, self.look.order)
            weights = np.where(covered, self._weights(at), 0.0)[..., None]
            if self.look.blend == "max":
                mean = np.where((weights > 0) & ((total == 0) | (values > mean)), values, mean)
            elif self.look.blend == "first":
                mean = np.where((weights > 0) & (total == 0), values, mean)
            total += weights
            if self.look.blend not in ("max", "first"):
                mean += (values - mean) * np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
        if not total.any():
            return None
        mosaic = np.where(total > 0, mean, self.look.fill)
        return _converted(mosaic, self._dtype)

    def _weights(self, at: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
        weights = np.ones(at[0].shape)
        if self.look.blend != "mean":
            for axis, side in zip(at, self._sides, strict=True):
                weights *= np.clip(np.minimum(axis + 1, side - axis), 0.0, self.look.feather_px)
        if self.look.blend == "seam":
            weights **= 8  # a steep preference for the tile in which the pixel lies deepest
        return weights


def _around(matrix: Matrix, extent: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return a box, array order, that holds every mosaic pixel which a tile covers."""
    low, high = bounds(matrix, extent)
    grow = 0.5 * np.abs(matrix[:-1, :-1]).sum(axis=1) + 1
    return np.floor(low - grow)[::-1].astype(np.int64), np.ceil(high + grow)[::-1].astype(np.int64) + 1


def _converted(pixels: NDArray[Any], dtype: np.dtype[Any]) -> Pixels:
    if dtype.kind == "f":
        return pixels.astype(dtype)
    if pixels.dtype.kind == "f":
        pixels = np.rint(pixels)
    whole: Pixels = np.clip(pixels, 0, np.iinfo(dtype).max).astype(dtype)
    return whole

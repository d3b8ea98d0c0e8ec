"""Where tiles lie, what each weighs, and when each pixel is finished: pure geometry, before a pixel is read.

Along each axis tiles lie on a lattice, and their weights are the mosaic's ramps on that lattice: they add up to one
everywhere, and change by 1 / (overlap + 1) a pixel. What the lattice would need outside of the image is stood in for by
the tiles at its edges; so is the lattice's last tile by the one that lies flush with the image's edge. So the fade is
never steeper than inside, whatever the image's size, and no tile ever needs more than the tiles beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_scanner.errors import UsageError
from edge_scanner.geometry import Box
from edge_scanner.mosaic.weights import ramp

STEEPEST = 1.099
"""The default margin makes no fade steeper than this over the overlap."""


class Step(NamedTuple):
    """One step of the work.

    Parameters
    ----------
    kind : str
        `load`, `run`, `write` or `unload`.
    tile : int
        Index in `Plan.tiles`; -1 for a `write` that only tiles before it take part in.
    box : Box
        The tile, or what is written.
    """

    kind: str
    tile: int
    box: Box


@dataclass(frozen=True, slots=True)
class Axis:
    """Tiles along one axis.

    Parameters
    ----------
    length, tile : int
        Of the image and of each tile, px.
    stride : int
        From tile to tile; the last one may lie nearer.
    margin : int
        Pixels at a tile's edges that are not used, but at the image's own edges.
    count : int
        Tiles.
    """

    length: int
    tile: int
    stride: int
    margin: int
    count: int

    @property
    def fade(self) -> int:
        """Pixels over which two tiles are cross-faded."""
        return self.tile - self.stride - 2 * self.margin if self.count > 1 else 0

    def start(self, k: int) -> int:
        """Return where tile k begins."""
        return min(k * self.stride, self.length - self.tile)

    def used(self, k: int) -> tuple[int, int]:
        """Return the first pixel at which tile k has weight, and one past the last."""
        first = k * self.stride + self.margin if k else 0
        return first, self.length if k == self.count - 1 else k * self.stride + self.tile - self.margin

    def finished(self, k: int) -> int:
        """Return up to where no tile after k has weight."""
        return self.length if k == self.count - 1 else self.used(k + 1)[0]

    def weights(self, k: int) -> NDArray[np.float32]:
        """Return the weights of tile k, (tile,); those of all tiles add up to one at every pixel of the image."""
        if self.count == 1:
            return np.ones(self.tile, np.float32)
        inner = self.tile - 2 * self.margin
        profile = ramp(inner, min(self.stride, self.fade + 1)) / np.float32(self.fade + 1)
        total = np.zeros(self.tile, np.float32)
        steps = -(-self.tile // self.stride)
        last = self.count - 1
        for j in range(k - steps if k == 0 else k, (k + steps if k == last else k) + 1):
            at = j * self.stride + self.margin - self.start(k)
            low, high = max(0, at), min(self.tile, at + inner)
            if low < high:
                total[low:high] += profile[low - at : high - at]
        return total


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What to read, in which order, and when what is finished; see `plan`.

    Parameters
    ----------
    rows, cols : Axis
    keep : ndarray or None
        (rows, cols) bool: the tiles that are not skipped; None keeps all.
    """

    rows: Axis
    cols: Axis
    keep: NDArray[np.bool_] | None = None

    @property
    def by_columns(self) -> bool:
        """Whether the work goes column by column: along the shorter side, so that the strip held is short."""
        return self.cols.length > self.rows.length

    @property
    def cells(self) -> Iterator[tuple[int, int]]:
        """All places (row, col) of the grid in the order of work."""
        if self.by_columns:
            return ((r, c) for c in range(self.cols.count) for r in range(self.rows.count))
        return ((r, c) for r in range(self.rows.count) for c in range(self.cols.count))

    @property
    def tiles(self) -> tuple[tuple[int, int, int, int], ...]:
        """(y0, x0, y1, x1) of every tile that is read, in the order of work; each is read once."""
        return tuple((b.y0, b.x0, b.y1, b.x1) for b in (self.box(r, c) for r, c in self.cells if self.kept(r, c)))

    @property
    def steps(self) -> tuple[Step, ...]:
        """Load, run, write and unload, in order."""
        return tuple(self._steps())

    @property
    def held_fraction(self) -> float:
        """Largest share of the image's pixels that is held at once: a tile, and the unfinished strips beside it."""
        outer, inner = (self.cols, self.rows) if self.by_columns else (self.rows, self.cols)
        strip = outer.fade * inner.length
        held = strip + outer.tile * inner.fade + self.rows.tile * self.cols.tile
        return held / (self.rows.length * self.cols.length)

    def box(self, row: int, col: int) -> Box:
        """Return the pixels of a tile."""
        y, x = self.rows.start(row), self.cols.start(col)
        return Box(y, x, y + self.rows.tile, x + self.cols.tile)

    def finished(self, row: int, col: int) -> Box:
        """Return the pixels that are finished by a tile."""
        return Box(self.rows.used(row)[0], self.cols.used(col)[0], self.rows.finished(row), self.cols.finished(col))

    def kept(self, row: int, col: int) -> bool:
        """Tell whether the tile is read."""
        return self.keep is None or bool(self.keep[row, col])

    def written(self, row: int, col: int) -> bool:
        """Tell whether any tile has weight in the pixels that this one finishes."""
        if self.keep is None:
            return True
        back_y, back_x = (1 + axis.fade // axis.stride for axis in (self.rows, self.cols))
        return bool(self.keep[max(0, row - back_y) : row + 1, max(0, col - back_x) : col + 1].any())

    def _steps(self) -> Iterator[Step]:
        tile = 0
        for row, col in self.cells:
            kept = self.kept(row, col)
            if kept:
                yield Step("load", tile, self.box(row, col))
                yield Step("run", tile, self.box(row, col))
            if self.written(row, col):
                yield Step("write", tile if kept else -1, self.finished(row, col))
            if kept:
                yield Step("unload", tile, self.box(row, col))
                tile += 1


def plan(
    image_shape: Sequence[int],
    tile: int | Sequence[int],
    overlap: int | Sequence[int],
    *,
    margin: int | Sequence[int] | None = None,
    mask: NDArray[np.bool_] | None = None,
) -> Plan:
    """Lay overlapping tiles over an image.

    Parameters
    ----------
    image_shape : sequence of int
        (height, width), px; any.
    tile : int or (int, int)
        Size of a tile, px; no larger than the image is used.
    overlap : int or (int, int)
        What neighbours share, px, from 0 to tile - 1.
    margin : int or (int, int), optional
        Pixels at a tile's edges that are not used, half of the overlap at most: where they cover the model's receptive
        field, the tiled result is that of the whole image. By default as many as leave the fade no steeper than 1.1 /
        overlap a pixel: 3 for an overlap of 64.
    mask : ndarray of bool, optional
        A coarse picture of the image, of any size: tiles in which it is nowhere true are skipped, and pixels that no
        tile covers are not written.

    Returns
    -------
    Plan

    Raises
    ------
    UsageError
        Sizes that cannot be.
    """
    shape, sides, shared = _pair(image_shape, "image"), _pair(tile, "tile"), _pair(overlap, "overlap")
    edges = (None, None) if margin is None else _pair(margin, "margin")
    rows, cols = (_axis(*numbers) for numbers in zip(shape, sides, shared, edges, strict=True))
    made = Plan(rows, cols)
    return made if mask is None else Plan(rows, cols, _kept(made, np.asarray(mask, bool)))


def _pair(given: int | Sequence[int], what: str) -> tuple[int, int]:
    try:
        y, x = (int(given), int(given)) if isinstance(given, int | np.integer) else (int(v) for v in given)
    except (TypeError, ValueError) as error:
        raise UsageError(f"The {what} size is {given!r}.", "Give a number of pixels, or two: (y, x).") from error
    return y, x


def _axis(length: int, tile: int, overlap: int, margin: int | None) -> Axis:
    if length < 1 or tile < 1 or not 0 <= overlap < tile:
        raise UsageError(
            f"An image of {length} px cannot be tiled by {tile} px with an overlap of {overlap} px.",
            "The overlap must be from 0 to tile - 1.",
        )
    if margin is None:
        margin = max(0, math.floor((overlap + 1 - overlap / STEEPEST) / 2))
    if not 0 <= 2 * margin <= overlap:
        raise UsageError(f"A margin of {margin} px does not fit an overlap of {overlap} px.", "Use half of it at most.")
    if length <= tile:
        return Axis(length, length, length, 0, 1)
    stride = tile - overlap
    return Axis(length, tile, stride, margin, 1 + -(-(length - tile) // stride))


def _kept(made: Plan, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which tiles touch a true pixel of a coarse picture."""
    if mask.ndim != 2 or min(mask.shape) < 1:
        raise UsageError(f"A mask of shape {mask.shape} is not a picture.", "Give (y, x).")
    sums = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1), np.int64)
    sums[1:, 1:] = mask.cumsum(axis=0, dtype=np.int64).cumsum(axis=1)
    (y0, y1), (x0, x1) = (_coarse(axis, side) for axis, side in zip((made.rows, made.cols), mask.shape, strict=True))
    inside = sums[np.ix_(y1, x1)] - sums[np.ix_(y0, x1)] - sums[np.ix_(y1, x0)] + sums[np.ix_(y0, x0)]
    kept: NDArray[np.bool_] = inside > 0
    return kept


def _coarse(axis: Axis, side: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    starts = np.array([axis.start(k) for k in range(axis.count)], np.int64)
    return starts * side // axis.length, -(-(starts + axis.tile) * side // axis.length)

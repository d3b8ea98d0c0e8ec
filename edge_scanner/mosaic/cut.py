"""Two tiles that do not quite agree are parted along the line on which they differ least, not cross-faded.

A cross-fade of tiles that lie a few pixels wrong shows every nucleus twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_scanner.geometry import Box
from edge_scanner.mosaic.gain import levelled
from edge_scanner.mosaic.source import Source
from edge_scanner.mosaic.weights import SEAM_PX, depth_of, seam
from edge_scanner.tile import Pixels

LEAST = np.float32(1e-4)
"""What the tile in which a pixel lies deepest weighs at least along a seam, so that every covered pixel has weight."""
Pair = tuple[int, int]
SURE_PX = 1.0
"""`seam` cross-fades tiles whose places are known better than this, as `linear` does: nothing is doubled there."""
HALF_PX = np.float32(SEAM_PX / 2)
CELL_PX = 4
"""The line is sought on squares of this side; the fade across it is wider."""
CENTRED = 0.5
"""How much dearer the overlap's edge is than its middle, in mean differences."""


@dataclass(frozen=True, slots=True)
class Cut:
    """How two tiles share their overlap.

    Parameters
    ----------
    box : Box
        The overlap, mosaic pixels.
    down : bool
        The line runs from top to bottom, between left and right; else from left to right.
    line : ndarray, float32
        Where it lies in each row (column) of the overlap, px from the overlap's first column (row).
    first_low : bool
        The first tile has the left (upper) side.
    """

    box: Box
    down: bool
    line: NDArray[np.float32]
    first_low: bool

    def share(self, cell: Box) -> NDArray[np.float32]:
        """Return the share (y, x) of the first tile in a part of the overlap: 1 on its side, 0 on the other's."""
        low, size = (cell.x0 - self.box.x0, cell.width) if self.down else (cell.y0 - self.box.y0, cell.height)
        start, count = (cell.y0 - self.box.y0, cell.height) if self.down else (cell.x0 - self.box.x0, cell.width)
        across = np.arange(low, low + size, dtype=np.float32) + np.float32(0.5)
        beyond = (self.line[start : start + count, None] - across) / np.float32(SEAM_PX)
        share: NDArray[np.float32] = np.clip(np.float32(0.5) + (beyond if self.first_low else -beyond), 0, 1)
        return share if self.down else share.T


def _cut(box: Box, first: Pixels, second: Pixels, first_low: bool) -> Cut:
    """Find the line of least difference through an overlap, from end to end along its longer side."""
    down = box.height >= box.width
    difference = cv2.absdiff(np.ascontiguousarray(first), np.ascontiguousarray(second))
    grey = difference.reshape(first.shape).sum(axis=2, dtype=np.float32)
    along = np.ascontiguousarray(grey if down else grey.T)
    cells = tuple(max(1, n // CELL_PX) for n in along.shape)
    cost = cv2.resize(along, cells[::-1], interpolation=cv2.INTER_AREA).reshape(cells)
    half = max(1, cells[1]) / 2
    off_middle = np.abs(np.arange(cells[1]) + 0.5 - half) / half
    cost += (CENTRED * cost.mean() + 1e-3) * off_middle.astype(np.float32)
    margin = min(SEAM_PX // 2 // CELL_PX, (cells[1] - 1) // 2)  # the fade must end within the overlap
    path = margin + _cheapest(cost[:, margin : cells[1] - margin])
    at = [(np.arange(n) + 0.5) * (size / n) for n, size in zip(cells, along.shape, strict=True)]
    line = np.interp(np.arange(along.shape[0]) + 0.5, at[0], at[1][path])
    return Cut(box, down, line.astype(np.float32), first_low)


def cuts_of(block: Box, sources: Sequence[Source]) -> dict[Pair, Cut]:
    """Return the cuts through the overlaps, in a block, of tiles that may not agree; each depends on its tiles only."""
    found = {}
    for a, b in combinations(sources, 2):
        box = a.usable.intersect(b.usable)
        if not box.intersect(block).empty and max(a.residual_px, b.residual_px) > SURE_PX:
            first, second = (levelled(s.crop(box.shifted(-s.box.y0, -s.box.x0)), s.gain) for s in (a, b))
            down = box.height >= box.width
            a_low = a.box.x0 <= b.box.x0 if down else a.box.y0 <= b.box.y0
            found[a.order, b.order] = _cut(box, first, second, a_low)
    return found


def parted(
    over: Sequence[Source], weights: Sequence[NDArray[np.float32]], cuts: Mapping[Pair, Cut], cell: Box
) -> list[NDArray[np.float32]]:
    """Return weights that follow the cuts: a tile has a pixel as far as it has it against each of the others.

    Where, of three or more, each loses to another, the tile has it in which it lies deepest. Tiles fade out at their
    own edges too, since a cut ends there.
    """
    depths = [depth_of(source.box, cell) for source in over]
    shares = [np.minimum(depth, HALF_PX) for depth in depths]
    for (i, a), (j, b) in combinations(enumerate(over), 2):
        between = cuts.get((a.order, b.order))
        share = weights[i] / (weights[i] + weights[j]) if between is None else between.share(cell)
        shares[i] *= share
        shares[j] *= 1 - share
    return [share + LEAST * rest for share, rest in zip(shares, seam(depths), strict=True)]


def _cheapest(cost: NDArray[np.float32]) -> NDArray[np.intp]:
    """Return the column in each row of the path of least sum that moves by at most one column a row."""
    total = np.full((cost.shape[0], cost.shape[1] + 2), np.inf, np.float64)
    total[0, 1:-1] = cost[0]
    for row in range(1, len(cost)):
        before = total[row - 1]
        total[row, 1:-1] = cost[row] + np.minimum(np.minimum(before[:-2], before[1:-1]), before[2:])
    path = np.empty(len(cost), np.intp)
    path[-1] = at = int(np.argmin(total[-1]))
    for row in range(len(cost) - 2, -1, -1):
        at += int(np.argmin(total[row, at - 1 : at + 2])) - 1
        path[row] = at
    return path - 1

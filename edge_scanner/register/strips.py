"""Overlap strips: the only pixels that registration keeps."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_scanner.geometry import Box, MosaicFrame
from edge_scanner.plan import ScanPlan, Target
from edge_scanner.tile import Pixels

Strip = NDArray[np.uint8] | NDArray[np.uint16]
"""(y, x) luminance of a tile where its neighbour should overlap it."""

MIN_STRIP_PX = 12
STRIP_PX = 96
STRIP_AREA_PX = 160_000
"""Strips longer than this area at their full width are narrower: a pair costs the same, and knows enough."""


class StripStore:
    """Strips of the tiles whose neighbours have not come yet.

    Memory bound: a strip leaves when its neighbour comes, so in scan order at most one scan line of strips is held,
    each `max(96, 3 * reach_px)` pixels wide at the most and of the tile's length: O(row length x overlap) bytes.

    Parameters
    ----------
    plan : ScanPlan
    frame : MosaicFrame
        Where neighbours lie (rotated and mirrored stages included).
    reach_px : float
        Largest shift that will be searched.
    """

    def __init__(self, plan: ScanPlan, frame: MosaicFrame, reach_px: float) -> None:
        self._plan = plan
        self._frame = frame
        self._widths_px = 2 * round(reach_px), max(STRIP_PX, 3 * round(reach_px))
        self._held: dict[tuple[int, int], Strip | None] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of strips held."""
        return sum(strip.nbytes for strip in self._held.values() if strip is not None)

    def exchange(self, index: int, pixels: Pixels | None) -> Iterator[tuple[int, int, Strip, Strip]]:
        """Take in a tile; yield (first, second, strip of first, strip of second) for each pair that is now complete.

        `first` precedes `second` in the grid (left or above), whatever the order of arrival. `pixels` is None for a
        tile that has no part in any pair; strips that waited for it are dropped.
        """
        own = self._plan.target(index)
        for other in self._neighbours(own):
            key = (other.index, index)
            if key in self._held:
                waited = self._held.pop(key)
                strip = self._cut(own, other, pixels)
                if waited is not None and strip is not None:
                    first_is_own = (own.row, own.col) < (other.row, other.col)
                    yield (index, other.index, strip, waited) if first_is_own else (other.index, index, waited, strip)
            else:
                self._held[index, other.index] = self._cut(own, other, pixels)

    def _neighbours(self, own: Target) -> Iterator[Target]:
        for row, col in (
            (own.row - 1, own.col),
            (own.row, own.col - 1),
            (own.row, own.col + 1),
            (own.row + 1, own.col),
        ):
            if 0 <= row < self._plan.rows and 0 <= col < self._plan.cols:
                yield self._plan.target(self._plan.index_at(row, col))

    def _cut(self, own: Target, other: Target, pixels: Pixels | None) -> Strip | None:
        box = self._overlap(own, other)
        if pixels is None or min(box.height, box.width) < MIN_STRIP_PX:
            return None
        return grey(pixels[box.y0 : box.y1, box.x0 : box.x1])

    def _overlap(self, own: Target, other: Target) -> Box:
        """Return the overlap in the own tile's pixels, narrowed to the strip's width about its middle."""
        dy, dx = nominal_step(self._frame, own, other)
        box = Box(0, 0, self._plan.tile_height_px, self._plan.tile_width_px)
        box = box.intersect(box.shifted(dy, dx))
        least, most = self._widths_px
        width = max(least, min(most, STRIP_AREA_PX // max(box.height, box.width)))
        spare_y, spare_x = max(0, box.height - width), max(0, box.width - width)
        if box.width <= box.height:
            return Box(box.y0, box.x0 + spare_x // 2, box.y1, box.x1 - (spare_x - spare_x // 2))
        return Box(box.y0 + spare_y // 2, box.x0, box.y1 - (spare_y - spare_y // 2), box.x1)


def grey(pixels: Pixels) -> Strip:
    """Return the luminance (y, x) of pixels (y, x, c), same dtype; a copy."""
    luminance: Strip = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY) if pixels.shape[2] == 3 else pixels[..., 0].copy()
    return luminance


def nominal_step(frame: MosaicFrame, own: Target, other: Target) -> tuple[int, int]:
    """Return (dy, dx), whole pixels, from a tile to its neighbour by the stage; antisymmetric in its arguments."""
    y0, x0 = frame.to_px(own.x_um, own.y_um)
    y1, x1 = frame.to_px(other.x_um, other.y_um)
    return round(y1 - y0), round(x1 - x0)

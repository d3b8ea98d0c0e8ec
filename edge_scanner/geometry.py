"""Positions, boxes and the mosaic's frame: the one place where micrometres become pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Position:
    """A stage position in micrometres; (x, y) is where the centre of the field of view lies."""

    x_um: float
    y_um: float
    z_um: float


@dataclass(frozen=True, slots=True)
class Limits:
    """The box that the stage may move in, micrometres, both ends included."""

    x_min_um: float
    x_max_um: float
    y_min_um: float
    y_max_um: float
    z_min_um: float
    z_max_um: float

    def contains(self, position: Position) -> bool:
        """Tell whether a position is finite and inside."""
        return (
            self.x_min_um <= position.x_um <= self.x_max_um
            and self.y_min_um <= position.y_um <= self.y_max_um
            and self.z_min_um <= position.z_um <= self.z_max_um
        )


@dataclass(frozen=True, slots=True)
class Box:
    """A half-open rectangle of whole pixels: rows y0 to y1, columns x0 to x1."""

    y0: int
    x0: int
    y1: int
    x1: int

    @property
    def height(self) -> int:
        """Rows; never negative."""
        return max(0, self.y1 - self.y0)

    @property
    def width(self) -> int:
        """Columns; never negative."""
        return max(0, self.x1 - self.x0)

    @property
    def empty(self) -> bool:
        """Whether the box holds no pixel."""
        return self.y1 <= self.y0 or self.x1 <= self.x0

    def intersect(self, other: Box) -> Box:
        """Return the common part; may be empty."""
        return Box(max(self.y0, other.y0), max(self.x0, other.x0), min(self.y1, other.y1), min(self.x1, other.x1))

    def shifted(self, dy: int, dx: int) -> Box:
        """Return the box moved by whole pixels."""
        return Box(self.y0 + dy, self.x0 + dx, self.y1 + dy, self.x1 + dx)

    def grown(self, margin: int) -> Box:
        """Return the box with `margin` more pixels on each side."""
        return Box(self.y0 - margin, self.x0 - margin, self.y1 + margin, self.x1 + margin)


@dataclass(frozen=True, slots=True)
class MosaicFrame:
    """The mosaic's pixel grid on the stage.

    The axes are the camera's: no tile is resampled for a rotation that all tiles share. A stage displacement
    becomes a displacement in mosaic pixels by the 2x2 matrix `a b / c d` (pixels per micrometre), which holds
    pixel size, rotation and mirror.

    Parameters
    ----------
    origin_x_um, origin_y_um : float
        Stage coordinates of the top-left corner of mosaic pixel (0, 0).
    height_px, width_px : int
        Canvas.
    pixel_size_um : float
        Nominal size of a pixel.
    xx, xy, yx, yy : float
        Matrix from stage micrometres to mosaic pixels: `x_px = xx * dx + xy * dy`, `y_px = yx * dx + yy * dy`.
    """

    origin_x_um: float
    origin_y_um: float
    height_px: int
    width_px: int
    pixel_size_um: float
    xx: float
    xy: float
    yx: float
    yy: float

    @classmethod
    def aligned(
        cls, origin_x_um: float, origin_y_um: float, height_px: int, width_px: int, pixel_size_um: float
    ) -> MosaicFrame:
        """Return the frame of a stage whose axes are the camera's."""
        k = 1.0 / pixel_size_um
        return cls(origin_x_um, origin_y_um, height_px, width_px, pixel_size_um, k, 0.0, 0.0, k)

    def to_px(self, x_um: float, y_um: float) -> tuple[float, float]:
        """Return the mosaic point (y, x) in pixels, corner-based, of a stage point."""
        dx, dy = x_um - self.origin_x_um, y_um - self.origin_y_um
        return self.yx * dx + self.yy * dy, self.xx * dx + self.xy * dy

    def to_um(self, y_px: float, x_px: float) -> tuple[float, float]:
        """Return the stage point (x, y) in micrometres of a mosaic point; the inverse of `to_px`."""
        det = self.xx * self.yy - self.xy * self.yx
        dx = (self.yy * x_px - self.xy * y_px) / det
        dy = (self.xx * y_px - self.yx * x_px) / det
        return self.origin_x_um + dx, self.origin_y_um + dy

    def tile_corner(self, x_um: float, y_um: float, tile_height_px: int, tile_width_px: int) -> tuple[float, float]:
        """Return (y, x) of the top-left pixel of a tile whose field of view is centred on a stage point."""
        y, x = self.to_px(x_um, y_um)
        return y - tile_height_px / 2, x - tile_width_px / 2

    @property
    def canvas(self) -> Box:
        """The whole canvas as a box."""
        return Box(0, 0, self.height_px, self.width_px)


def whole_px(length_um: float, pixel_size_um: float) -> int:
    """Return how many pixels cover a length, forgiving rounding errors of a millionth of a pixel."""
    return math.ceil(length_um / pixel_size_um - 1e-6)

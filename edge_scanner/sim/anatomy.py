"""The plan of the synthetic tissue: where it ends, where glands lie, which way its fibres run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_scanner.sim.lattice import Field, cell_points, hashed, smooth

Points = NDArray[Any]
STEP = 8
"""Pixels between two samples of a survey."""


@dataclass(frozen=True, slots=True)
class Survey:
    """The plan of one block, sampled every `STEP` pixels on a lattice that all blocks share.

    Every field is (n, n) float32 and reaches `margin` samples beyond the block on each side.

    Parameters
    ----------
    y0, x0 : float
        Place of the first sample, pixels.
    margin : int
    deep : ndarray
        How deep in the section a point lies: zero on its outline, about 1 in the middle.
    gland : ndarray
        Distance from the nearest gland's centre in units of its radius.
    lumen : ndarray
        Share of a gland's radius that its lumen takes.
    across, along : ndarray
        Coordinates of the wavy fibres, pixels.
    crowd : ndarray
        Density of lymphocytes in the stroma, 0 to 1.
    """

    y0: float
    x0: float
    margin: int
    deep: Field
    gland: Field
    lumen: Field
    across: Field
    along: Field
    crowd: Field

    def at(self, field: Field, y: Points, x: Points) -> Points:
        """Return a field between its samples, at points given in pixels."""
        v, u = (y - self.y0) / STEP, (x - self.x0) / STEP
        i = np.clip(v.astype(np.intp), 0, field.shape[0] - 2)
        j = np.clip(u.astype(np.intp), 0, field.shape[1] - 2)
        v, u = v - i, u - j
        top = field[i, j] * (1 - u) + field[i, j + 1] * u
        return np.asarray(top * (1 - v) + (field[i + 1, j] * (1 - u) + field[i + 1, j + 1] * u) * v)


class Anatomy:
    """Glands in a fibrous stroma, in a section of smooth outline.

    Parameters
    ----------
    seed : int
    height_px, width_px : int
        Of the specimen; the section fills most of it.
    scale : int
        Pixels per 0.5 um, at least 1; scales every structure.
    """

    def __init__(self, seed: int, height_px: int, width_px: int, scale: int) -> None:
        self.seed = seed
        self.scale = scale
        self._height_px = height_px
        self._width_px = width_px

    def survey(self, y0: int, x0: int, size: int) -> Survey:
        """Return the plan of a block."""
        margin = 2 + 2 * self.scale
        at = np.arange(-margin, size // STEP + margin) * STEP + (STEP - 1) / 2
        y, x = np.meshgrid(y0 + at, x0 + at, indexing="ij")
        across, along = self._fibre(y, x)
        crowd = np.clip((self._smooth(24, 330, y, x) - 0.62) * 5, 0, 1)
        lumen = 0.12 + 0.5 * self._smooth(19, 420, y, x)
        fields = (self._deep(y, x), self._gland(y, x), lumen, across, along, crowd)
        return Survey(y0 + at[0], x0 + at[0], margin, *(np.asarray(f, np.float32) for f in fields))

    def outside(self, y0: int, x0: int, size: int) -> bool:
        """Tell whether a block surely holds nothing but glass."""
        at = np.linspace(-16, size + 16, 18)
        return bool(self._deep(*np.meshgrid(y0 + at, x0 + at, indexing="ij")).max() < -0.15)

    def _smooth(self, salt: int, cell: float, y: Points, x: Points) -> Field:
        return smooth(self.seed + salt, cell * self.scale, y, x)

    def _deep(self, y: Points, x: Points) -> Points:
        v, u = 2 * y / self._height_px - 1, 2 * x / self._width_px - 1
        side = min(self._height_px, self._width_px)
        deep = 1.0 - 1.5 * (v**4 + u**4)
        for salt, (parts, weight) in enumerate(((3, 1.0), (7, 0.5), (19, 0.15))):
            deep += weight * (smooth(self.seed + salt, side / parts, y, x) - 0.5)
        return np.asarray(deep - np.maximum(0, smooth(self.seed + 5, side / 5, y, x) - 0.86) * 9)

    def _gland(self, y: Points, x: Points) -> Points:
        cell = 250.0 * self.scale
        y = y + 46 * self.scale * (self._smooth(11, 90, y, x) - 0.5)
        x = x + 46 * self.scale * (self._smooth(12, 90, y, x) - 0.5)
        i, j = np.floor(y / cell).astype(np.intp), np.floor(x / cell).astype(np.intp)
        i0, j0 = i.min() - 1, j.min() - 1
        rows, cols = np.mgrid[i0 : i.max() + 2, j0 : j.max() + 2]
        table = self._glands(rows, cols, cell)
        nearest = np.full(y.shape, 9.0, np.float32)
        for di in (-1, 0, 1):
            for dj in (-1, 0, 1):
                cy, cx, ay, ax, by, bx = (column[i + di - i0, j + dj - j0] for column in table)
                dy, dx = y - cy, x - cx
                np.minimum(nearest, np.hypot(dy * ay + dx * ax, dy * by + dx * bx), out=nearest, casting="same_kind")
        return nearest

    def _glands(self, i: Points, j: Points, cell: float) -> tuple[Points, ...]:
        """Return centre (y, x) and the two scaled axes (y, x) of each cell's gland; far away where there is none."""
        cy, cx = cell_points(self.seed + 13, cell, 0.55, i, j)
        radius = cell * (0.30 + 0.17 * hashed(self.seed + 15, i, j))
        crowd = self._smooth(16, 1900, cy, cx) + 0.25 * hashed(self.seed + 17, i, j)
        cy = np.where(crowd > 0.5, cy, 1e9)
        angle = np.pi * hashed(self.seed + 18, i, j)
        sin, cos = np.sin(angle) / radius, np.cos(angle) / radius
        return cy, cx, 0.85 * sin, 0.85 * cos, 1.2 * cos, -1.2 * sin

    def _fibre(self, y: Points, x: Points) -> tuple[Points, Points]:
        wave = 260 * self._smooth(21, 300, y, x) + 60 * self._smooth(22, 75, y, x)
        bend = 200 * self._smooth(23, 420, y, x)
        return 0.82 * y - 0.57 * x + wave * self.scale, 0.82 * x + 0.57 * y + bend * self.scale

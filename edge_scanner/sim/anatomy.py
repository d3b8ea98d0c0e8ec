"""The plan of the synthetic tissue: where it ends, where glands lie, which way its fibres run; at any points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_scanner.sim.lattice import Field, cell_points, hashed, smooth

Points = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Anatomy:
    """Glands in a fibrous stroma, in a section of smooth outline.

    Parameters
    ----------
    seed : int
    height_px, width_px : int
        Of the specimen; the section fills most of it.
    grain : int
        Pixels per 0.5 um, at least 1; scales every structure.
    """

    seed: int
    height_px: int
    width_px: int
    grain: int

    def inside(self, y: Points, x: Points) -> Field:
        """Return how deep in the section a point lies: zero on its outline, about 1 in the middle."""
        v, u = 2 * y / self.height_px - 1, 2 * x / self.width_px - 1
        side = min(self.height_px, self.width_px)
        lobes = sum(
            w * (smooth(self.seed + k, side / n, y, x) - 0.5)
            for k, (n, w) in enumerate(((3, 1.1), (7, 0.5), (19, 0.2)))
        )
        tear = np.maximum(0, smooth(self.seed + 5, side / 5, y, x) - 0.86) * 9
        deep = 1.0 - (np.abs(v) ** 3 + np.abs(u) ** 3) ** (1 / 1.5) * 1.5 + lobes - tear
        return np.asarray(deep, np.float32)

    def gland(self, y: Points, x: Points) -> Field:
        """Return the distance from the nearest gland's centre in units of its radius: under 1 inside a gland."""
        g = self.grain
        cell = 250.0 * g
        y = y + 46 * g * (smooth(self.seed + 11, 90 * g, y, x) - 0.5)
        x = x + 46 * g * (smooth(self.seed + 12, 90 * g, y, x) - 0.5)
        i, j = np.floor(y / cell).astype(np.int64), np.floor(x / cell).astype(np.int64)
        nearest = np.full(np.shape(y), 9.0, np.float32)
        for di in (-1, 0, 1):
            for dj in (-1, 0, 1):
                cy, cx = cell_points(self.seed + 13, cell, 0.55, i + di, j + dj)
                radius = cell * (0.30 + 0.17 * hashed(self.seed + 15, i + di, j + dj))
                crowd = smooth(self.seed + 16, 1900 * g, cy, cx) + 0.25 * hashed(self.seed + 17, i + di, j + dj)
                angle = np.pi * hashed(self.seed + 18, i + di, j + dj)
                dy, dx = y - cy, x - cx
                along, across = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
                d = np.hypot(along * 0.85, across * 1.2) / radius
                nearest = np.minimum(nearest, np.where(crowd > 0.5, d, 9.0).astype(np.float32))
        return nearest

    def lumen(self, y: Points, x: Points) -> Field:
        """Return the share of a gland's radius that its lumen takes."""
        return 0.12 + 0.5 * smooth(self.seed + 19, 420 * self.grain, y, x)

    def fibre(self, y: Points, x: Points) -> tuple[Points, Points]:
        """Return (across, along): coordinates of the wavy fibres, pixels."""
        g = self.grain
        wave = 260 * g * smooth(self.seed + 21, 300 * g, y, x) + 60 * g * smooth(self.seed + 22, 75 * g, y, x)
        bend = 200 * g * smooth(self.seed + 23, 420 * g, y, x)
        return 0.82 * y - 0.57 * x + wave, 0.82 * x + 0.57 * y + bend

    def infiltrate(self, y: Points, x: Points) -> Field:
        """Return the density of lymphocytes in the stroma, 0 to 1."""
        patch = smooth(self.seed + 24, 330 * self.grain, y, x)
        return np.asarray(np.clip((patch - 0.62) * 5, 0, 1))

"""The flat field kept up with a lamp whose light shifts during a scan, by what glass shows in passing.

A blank tile is compared, before any correction, with the glass that the flat field was measured on. The ratio becomes
a polynomial of degree 2 and a level, six numbers a channel, which are journalled with the tile. What applies to a scan
line is a pure function of those of the lines before it, in index order, so that a resumed scan goes on with the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import groupby
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_scanner.shading import INDISTINGUISHABLE, SATURATED_SHARE, Correction, FlatField, cells
from edge_scanner.tile import Pixels, Tile

LINES = 8
"""The last so many scan lines with glass tell how the light stands and how fast it shifts."""
STEADY_LINES = 4
"""Fewer do not tell how fast."""
AHEAD = 2
"""Scan lines beyond the last glass for which light is taken to shift on."""
EVERY_PX = 4
"""One in so many rows is looked at."""
ROUGH = 0.003
"""Scatter of the cells about the polynomial, relative; more is no clean glass."""
ROUNDS = 4
DUST_SIGMAS = 4.0
MOST_DUST = 0.1
"""Share of the cells that may lie beyond `DUST_SIGMAS`, and are left out; more is no clean glass."""
DIMMER = 0.04
"""Glass whose level, in any channel, differs by more from the glass before it may be pale tissue: not believed."""
STEP = 0.015
"""How far light is believed to shift from one scan line to the next, relative."""
MOST = 0.05
"""How far a flat field is changed at most, relative; light that shifts further is a lamp that needs a hand."""

Array = NDArray[np.float64]


class Drift:
    """The correction of each scan line; bound: its gains beside those of the base, four bytes a pixel and channel.

    Parameters
    ----------
    flat : FlatField
        As measured before the scan.
    base : Correction or None
        What corrects by it; None where it is even.
    """

    def __init__(self, flat: FlatField, base: Correction | None) -> None:
        self._base, self._dark = base, np.array(flat.dark)
        self._shape = flat.setting.height_px, flat.setting.width_px
        size = flat.residual.shape[1::-1]
        profile = cv2.resize(flat.profile(), size, interpolation=cv2.INTER_AREA).reshape(flat.residual.shape)
        self._glass = np.maximum(profile * np.array(flat.glass), 1e-6)
        self._basis = _terms(_axis(size[1])[:, None], _axis(size[0])).reshape(-1, 6)
        self._told: list[Tile] = []
        self._line = -1
        self._applied = np.zeros((5, len(flat.glass)))
        self._correction = base

    def read(self, frame: Pixels) -> tuple[float, ...] | None:
        """Return what a blank tile tells of the light, six numbers a channel; None where it is no clean glass.

        Parameters
        ----------
        frame : ndarray, (y, x, c), uint8 or uint16
            As the camera gave it.
        """
        means, saturated = cells(frame, EVERY_PX)
        ratio = ((means - self._dark) / self._glass).reshape(len(self._basis), -1)
        clear = unsaturated = (saturated <= SATURATED_SHARE).all(axis=-1).ravel()
        for _ in range(ROUNDS):
            if clear.mean() < 1 - MOST_DUST:
                return None
            basis = self._basis[clear]
            found = np.linalg.solve(basis.T @ basis, basis.T @ ratio[clear])
            rest = np.abs(ratio - self._basis @ found)
            scatter = 1.4826 * np.median(rest[clear], axis=0)
            clear = unsaturated & (rest <= np.maximum(DUST_SIGMAS * scatter, ROUGH)).all(axis=1)
        if clear.mean() < 1 - MOST_DUST or (found[0] <= 0).any() or (scatter > ROUGH * found[0]).any():
            return None
        found[1:] /= found[0]
        return tuple(found.ravel().tolist())

    def learn(self, tile: Tile) -> None:
        """Take in what a tile told; it counts for later scan lines only."""
        if tile.glass:
            self._told.append(replace(tile, pixels=None))

    def correction(self, line: int) -> Correction | None:
        """Return what corrects the frames of a scan line; None where there is nothing to correct."""
        if line == self._line:
            return self._correction
        self._line = line
        found = followed(self._told, line)
        applied = found[-1] if found else np.zeros_like(self._applied)
        if not np.array_equal(applied, self._applied):
            self._applied, self._correction = applied, None  # the old gains go before there are new ones
            self._correction = self._changed(applied) if applied.any() else self._base
        return self._correction

    def _changed(self, applied: Array) -> Correction:
        gain = np.empty((*self._shape, applied.shape[1]), np.float32)
        y, x = (_axis(n).astype(np.float32) for n in self._shape)
        for c, (fy, fx, fyy, fxy, fxx) in enumerate(applied.astype(np.float32).T):
            across = 1 + fx * x + fxx * (x * x - np.float32(1 / 3))
            down = fy * y + fyy * (y * y - np.float32(1 / 3))
            surface = across + down[:, None] + (fxy * y)[:, None] * x
            np.divide(1 if self._base is None else self._base.gain[..., c], surface, out=gain[..., c])
        return Correction(gain, (self._base and self._base.dark) or ())


def followed(tiles: Iterable[Tile], before: int) -> list[Array]:
    """Return the changes of the flat field that the lines before a scan line brought about, one after the other.

    Parameters
    ----------
    tiles : iterable of Tile
        In any order; only what their `glass` says counts.
    before : int
        The scan line.

    Returns
    -------
    list of ndarray, (5, c)
        Terms of the shape; zero where the flat field serves as it is. Only what differs visibly from the one before.
    """
    changes: list[Array] = []
    glass: list[tuple[int, Array]] = []
    telling = sorted((tile for tile in tiles if tile.glass and tile.row < before), key=lambda tile: tile.index)
    for line, of_line in groupby(telling, lambda tile: tile.row):
        told = np.array([np.reshape(tile.glass or (), (6, -1)) for tile in of_line])
        light, lines = (_expected(glass, line), line - glass[-1][0]) if glass else (_even(told.shape[2]), line + 1)
        near = told[[_continues(light, reading, lines) for reading in told]]
        if not len(near):
            continue
        glass = [*glass[1 - LINES :], (line, np.median(near, axis=0))]
        wanted = _bounded(_expected(glass, line + 1)[1:])
        if _largest(wanted - changes[-1] if changes else wanted) >= INDISTINGUISHABLE / 2:
            changes.append(wanted)
    return changes


def largest_change(changes: list[Array]) -> float:
    """Return how far the flat field was changed at most, relative."""
    return max(map(_largest, changes), default=0.0)


def _even(channels: int) -> Array:
    return np.concatenate([np.ones((1, channels)), np.zeros((5, channels))])


def _expected(glass: list[tuple[int, Array]], line: int) -> Array:
    """Return the reading (6, c) that a scan line should give: the line of Theil and Sen through those before."""
    lines, told = np.array([at for at, _ in glass]), np.array([reading for _, reading in glass])
    ahead = (min(line, lines[-1] + AHEAD) - lines)[:, None, None]
    slope = np.zeros_like(told[0])  # a shift that nobody could see is none
    if len(glass) >= STEADY_LINES:
        a, b = np.triu_indices(len(glass), 1)
        found = np.median((told[b] - told[a]) / (lines[b] - lines[a])[:, None, None], axis=0)
        slope = found if _largest(found[1:]) * (lines[-1] - lines[0]) >= INDISTINGUISHABLE else slope
    return np.asarray(np.median(told + slope * ahead, axis=0))


def _continues(light: Array, reading: Array, lines: int) -> bool:
    """Tell whether a reading may be of the light that is expected from glass so many lines before."""
    steady = bool((np.abs(reading[0] / light[0] - 1) <= DIMMER).all())
    return steady and _largest(reading[1:] - light[1:]) <= STEP * lines


def _bounded(shape: Array) -> Array:
    largest = _largest(shape)
    return np.zeros_like(shape) if largest < INDISTINGUISHABLE else shape * min(1.0, MOST / largest)


def _largest(shape: Array) -> float:
    """Return the largest value of the shape (5, c) in the field."""
    grid = np.linspace(-1, 1, 9)
    return float(np.abs(_terms(grid[:, None], grid)[..., 1:] @ shape).max())


def _axis(n: int) -> Array:
    """Return the centres of n equal steps from -1 to 1."""
    return (2 * np.arange(n) + 1) / n - 1


def _terms(y: NDArray[Any], x: NDArray[Any]) -> Array:
    """Return 1 and the five terms of degree 1 and 2, each of mean 0, along the last axis."""
    y, x = np.broadcast_arrays(y, x)
    return np.stack([np.ones_like(y), y, x, y * y - 1 / 3, x * y, x * x - 1 / 3], axis=-1)

"""Transforms from tiles to the mosaic: checked, sorted into shifts and warps, and the canvas that they span."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edge_scanner.errors import SourceError

Matrix = NDArray[np.float64]
"""(n + 1, n + 1), on column vectors (x, y[, z], 1), tile to mosaic; pixel centres at integers."""

SPARSEST = 400
"""A canvas of more than this many times the tiles' own pixels is taken for a mistake in the unit."""
MOST_STACKED = 200
"""So is one on which, on average, more tiles than this lie on each other."""
_SLACK_PX = 1e-6
_STRAIGHT_PX = 1e-3


def checked(transforms: Sequence[ArrayLike], count: int, axes: int, extent: Sequence[int]) -> list[Matrix]:
    """Return the transforms as matrices with 1 in the last place.

    Parameters
    ----------
    transforms : sequence of array_like
    count : int
        Tiles.
    axes : int
        2 for images, 3 for volumes.
    extent : sequence of int
        The tiles' size in pixels along x, y[, z].

    Raises
    ------
    SourceError
        Wrong number or shape, NaN, singular, or a perspective that folds the tile over.
    """
    if len(transforms) != count:
        raise SourceError(f"There are {len(transforms)} transforms for {count} tiles.", "Give one a tile.")
    found = []
    for number, given in enumerate(transforms):
        try:
            matrix = np.array(given, np.float64)
        except (TypeError, ValueError) as error:
            raise SourceError(f"The transform of tile {number} is not a matrix of numbers.") from error
        if matrix.shape != (axes + 1, axes + 1):
            raise SourceError(
                f"The transform of tile {number} has the shape {matrix.shape}.",
                f"Tiles with {axes} axes need {axes + 1} x {axes + 1}.",
            )
        if not np.isfinite(matrix).all():
            raise SourceError(f"The transform of tile {number} holds NaN or infinity.", "Correct its numbers.")
        heights = _corners(extent) @ matrix[-1]
        if abs(np.linalg.det(matrix)) < 1e-9 or not ((heights > 1e-9).all() or (heights < -1e-9).all()):
            raise SourceError(f"The transform of tile {number} is singular.", "Correct its numbers.")
        found.append(matrix / matrix[-1, -1])
    return found


def is_shift(matrix: Matrix, extent: Sequence[int]) -> bool:
    """Tell whether a transform moves every pixel of a tile alike, to a thousandth of a pixel."""
    off = matrix - np.eye(len(matrix))
    off[:-1, -1] = 0
    return bool(np.abs(off).sum() * max(extent) < _STRAIGHT_PX)


def bounds(matrix: Matrix, extent: Sequence[int]) -> tuple[Matrix, Matrix]:
    """Return the smallest and the largest coordinates of a tile's pixel centres in the mosaic, (x, y[, z])."""
    placed = _corners(extent) @ matrix.T
    placed = placed[:, :-1] / placed[:, -1:]
    return placed.min(axis=0), placed.max(axis=0)


def canvas_of(matrices: Sequence[Matrix], extent: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the canvas, (x, y[, z]): its first pixel and one past its last.

    It runs from the floor of the smallest to the ceiling of the largest transformed pixel centre.

    Raises
    ------
    SourceError
        When the canvas is absurdly large or small for the tiles: the positions are in another unit.
    """
    lows, highs = zip(*(bounds(m, extent) for m in matrices), strict=True)
    low = np.floor(np.min(lows, axis=0) + _SLACK_PX)
    high = np.ceil(np.max(highs, axis=0) - _SLACK_PX) + 1
    size, own = high - low, float(np.prod(extent)) * len(matrices)
    area = float(np.prod(size))
    if area > SPARSEST * own or size.max() > 2**31:
        sides = " x ".join(f"{s:.0f}" for s in size)
        raise SourceError(
            f"The canvas would be {sides} px for {len(matrices)} tiles of {' x '.join(map(str, extent))} px.",
            "The positions seem to be in another unit; check them and the pixel size.",
        )
    if len(matrices) > MOST_STACKED and own > MOST_STACKED * area:
        raise SourceError(
            f"All {len(matrices)} tiles would lie within {' x '.join(f'{s:.0f}' for s in size)} px.",
            "The positions seem to be in another unit; check them and the pixel size.",
        )
    return tuple(int(v) for v in low), tuple(int(v) for v in high)


def _corners(extent: Sequence[int]) -> Matrix:
    return np.array([[*corner, 1.0] for corner in product(*((0.0, n - 1.0) for n in extent))])

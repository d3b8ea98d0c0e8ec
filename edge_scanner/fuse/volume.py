"""Any number of axes, any of three orders of interpolation: the plain gather for volumes and for label images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Order = Literal[0, 1, 3]
"""Nearest, linear, cubic (Catmull-Rom)."""

_NEAR = 1e-9


def positions(inverse: NDArray[np.float64], start: Sequence[int], shape: Sequence[int]) -> list[NDArray[np.float64]]:
    """Return where the pixels of a block lie in a tile, one array an axis.

    Parameters
    ----------
    inverse : ndarray, (n + 1, n + 1)
        Mosaic to tile, on column vectors in array order (z, y, x, 1).
    start, shape : sequence of int
        The block's first pixel in the mosaic, and its shape.
    """
    n = len(shape)
    axes = np.meshgrid(*(np.arange(s, s + k, dtype=np.float64) for s, k in zip(start, shape, strict=True)),
                       indexing="ij", sparse=True)  # fmt: skip
    rows: list[Any] = [sum((row[k] * axes[k] for k in range(n)), np.full(tuple(shape), row[n])) for row in inverse]
    return [row / rows[n] for row in rows[:n]] if inverse[n, :n].any() else rows[:n]


def sample(
    image: NDArray[Any], at: Sequence[NDArray[np.float64]], order: Order, margin: float = 0.5
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Interpolate an image.

    Parameters
    ----------
    image : ndarray, (..., c)
        n axes and the channels.
    at : sequence of n ndarray
        Positions, pixel centres at integers.
    order : int
        0 nearest, 1 linear, 3 cubic.
    margin : float
        How far outside of the outermost centres a position still counts as covered, px; the edge is repeated there.

    Returns
    -------
    values : ndarray, (..., c), float64
        Zero where not covered.
    covered : ndarray, bool
    """
    sides = image.shape[: len(at)]
    covered = np.ones(at[0].shape, bool)
    for axis, side in zip(at, sides, strict=True):
        covered &= (axis >= -margin - _NEAR) & (axis <= side - 1 + margin + _NEAR)
    inside = [axis[covered] for axis in at]
    values = np.zeros((*covered.shape, image.shape[-1]))
    taps = [_TAPS[order](axis) for axis in inside]
    total = np.zeros((len(inside[0]), image.shape[-1]))
    for choice in product(*taps):
        index = tuple(np.clip(k, 0, side - 1) for (k, _), side in zip(choice, sides, strict=True))
        weight = np.prod([w for _, w in choice], axis=0)
        total += image[index] * weight[:, None]
    values[covered] = total
    return values, covered


Tap = tuple[NDArray[np.intp], NDArray[np.float64]]


def _nearest(x: NDArray[np.float64]) -> list[Tap]:
    return [(np.floor(x + 0.5).astype(np.intp), np.ones_like(x))]


def _linear(x: NDArray[np.float64]) -> list[Tap]:
    low = np.floor(x)
    k, t = low.astype(np.intp), x - low
    return [(k, 1 - t), (k + 1, t)]


def _cubic(x: NDArray[np.float64]) -> list[Tap]:
    low = np.floor(x)
    k, t = low.astype(np.intp), x - low
    weights = (
        ((2 - t) * t - 1) * t / 2,
        ((3 * t - 5) * t * t + 2) / 2,
        ((4 - 3 * t) * t + 1) * t / 2,
        (t - 1) * t * t / 2,
    )
    return [(k + offset, weight) for offset, weight in zip((-1, 0, 1, 2), weights, strict=True)]


_TAPS: dict[int, Callable[[NDArray[np.float64]], list[Tap]]] = {0: _nearest, 1: _linear, 3: _cubic}

"""Noise that is a pure function of seed and place: hashed lattices, smooth fields, cells with a point each."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]
Indices = NDArray[Any]


def hashed(seed: int, i: Indices, j: Indices) -> Field:
    """Return a uniform number in [0, 1) for each pair of lattice indices, by two xorshift-multiply rounds."""
    v = i.astype(np.uint32) * np.uint32(0x9E3779B1)
    v = v ^ (j.astype(np.uint32) * np.uint32(0x85EBCA77) + np.uint32(seed * 0x27D4EB2F & 0xFFFFFFFF))
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        v = (v ^ (v >> np.uint32(shift))) * np.uint32(factor)
    return ((v ^ (v >> np.uint32(16))) >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)


def smooth(seed: int, cell: float, y: NDArray[Any], x: NDArray[Any]) -> Field:
    """Return smooth value noise in [0, 1] with features of `cell` pixels at any points."""
    v, u = y / cell, x / cell
    i, j = np.floor(v), np.floor(u)
    v, u = (v - i).astype(np.float32), (u - j).astype(np.float32)
    i, j = i.astype(np.int64), j.astype(np.int64)
    v, u = v * v * (3 - 2 * v), u * u * (3 - 2 * u)
    top = hashed(seed, i, j) * (1 - u) + hashed(seed, i, j + 1) * u
    low = hashed(seed, i + 1, j) * (1 - u) + hashed(seed, i + 1, j + 1) * u
    return np.asarray(top * (1 - v) + low * v)


def grain(seed: int, cell: int, y0: int, x0: int, size: int) -> Field:
    """Return value noise over a block, (size, size), for small cells that divide `y0`, `x0` and `size`."""
    i = np.arange(y0 // cell - 2, (y0 + size) // cell + 2)
    j = np.arange(x0 // cell - 2, (x0 + size) // cell + 2)
    return enlarged(hashed(seed, i[:, None], j[None, :]), cell, 2)


def enlarged(samples: Field, step: int, margin: int) -> Field:
    """Return cell-centred samples enlarged `step` times, `margin` samples cut off on each side."""
    big = cv2.resize(samples, None, fx=step, fy=step, interpolation=cv2.INTER_CUBIC)
    cut = margin * step
    return np.asarray(big[cut : big.shape[0] - cut, cut : big.shape[1] - cut])


def cell_points(seed: int, cell: float, jitter: float, i: Indices, j: Indices) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return (y, x) in pixels of the one point that each lattice cell holds."""
    y = (i + 0.5 + jitter * (hashed(seed, i, j) - 0.5)) * cell
    x = (j + 0.5 + jitter * (hashed(seed + 1, i, j) - 0.5)) * cell
    return y, x

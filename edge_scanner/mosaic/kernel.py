"""The block kernel: a weighted gather of the tiles that touch a block.

The block is cut along the edges of the tiles that reach into it, so in each cell the covering tiles are the same:
none leaves the fill value, one is copied, more are averaged with separable weights divided by their sum. The result
depends on the tiles and their places only, never on arrival order, timing or thread count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_scanner.geometry import Box
from edge_scanner.mosaic.weights import ramp
from edge_scanner.tile import Pixels

TAPS = 4
EXACT_PX = 1e-3
"""A remainder below this is taken as a whole-pixel place: the pixels are copied untouched."""


@dataclass(frozen=True, slots=True)
class Source:
    """A placed tile as the kernel sees it.

    Parameters
    ----------
    order : int
        Sources are summed in this order.
    box : Box
        Mosaic pixels that the tile covers (whole pixels).
    usable : Box
        Part of `box` that may be used.
    shift : tuple of float
        (y, x) remainder in px, in -0.5..0.5: the tile's content lies this much below and right of `box`.
    crop : callable
        `crop(Box in tile pixels) -> (y, x, c)`.
    """

    order: int
    box: Box
    usable: Box
    shift: tuple[float, float]
    crop: Callable[[Box], Pixels]


def place(y_px: float, x_px: float, height: int, width: int, *, cubic: bool) -> tuple[Box, tuple[float, float]]:
    """Split a tile's place into the whole-pixel box it covers and the remainder that resampling takes care of.

    Parameters
    ----------
    y_px, x_px : float
        Mosaic coordinates of the tile's top-left pixel.
    height, width : int
        Tile.
    cubic : bool
        False (`pixel` placement) drops the remainder.
    """
    y, x = int(np.floor(y_px + 0.5)), int(np.floor(x_px + 0.5))
    shift = (y_px - y, x_px - x) if cubic else (0.0, 0.0)
    return Box(y, x, y + height, x + width), shift


def gather(
    block: Box, sources: Sequence[Source], *, channels: int, dtype: np.dtype[Any], fill: int, feather: int
) -> Pixels | None:
    """Blend the tiles that touch a block.

    Parameters
    ----------
    block : Box
        Mosaic pixels to make.
    sources : sequence of Source
        Any order.
    channels : int
    dtype : dtype
        uint8 or uint16.
    fill : int
        Value of pixels that no tile covers.
    feather : int
        Longest ramp, px.

    Returns
    -------
    ndarray (y, x, c) or None
        None when no tile covers any pixel.
    """
    parts = []
    for source in sorted(sources, key=lambda s: s.order):
        part = source.usable.intersect(block)
        if not part.empty:
            parts.append((source, part))
    if not parts:
        return None
    read = [resampled(source, part) for source, part in parts]
    if len(parts) == 1 and parts[0][1] == block:
        whole: Pixels = np.ascontiguousarray(read[0])
        return whole
    out = np.full((block.height, block.width, channels), fill, dtype)
    ys = sorted({block.y0, block.y1, *(y for _, p in parts for y in (p.y0, p.y1))})
    xs = sorted({block.x0, block.x1, *(x for _, p in parts for x in (p.x0, p.x1))})
    for y0, y1 in pairwise(ys):
        for x0, x1 in pairwise(xs):
            cell = Box(y0, x0, y1, x1)
            covering = [k for k, (_, p) in enumerate(parts) if p.intersect(cell) == cell]
            if covering:
                inside = [_view(read[k], parts[k][1], cell) for k in covering]
                target = _view(out, block, cell)
                if len(inside) == 1:
                    target[...] = inside[0]
                else:
                    weights = [_weights(parts[k][0].box, cell, feather) for k in covering]
                    target[...] = _average(inside, weights)
    return out


def resampled(source: Source, part: Box) -> Pixels:
    """Return the tile's pixels (y, x, c) on the mosaic's lattice for a part of its box.

    A whole-pixel place is an exact copy; a sub-pixel one is a separable 4-tap cubic filter (Keys 1981, a = -1/2),
    with the tile's edge repeated beyond its border.
    """
    inner = part.shifted(-source.box.y0, -source.box.x0)
    dy, dx = (0.0 if abs(v) < EXACT_PX else v for v in source.shift)
    if dy == 0.0 and dx == 0.0:
        return source.crop(inner)
    grown = inner.grown(TAPS // 2).intersect(Box(0, 0, source.box.height, source.box.width))
    pixels = source.crop(grown)
    top, left = inner.y0 - grown.y0, inner.x0 - grown.x0
    border = cv2.BORDER_REPLICATE
    shifted = cv2.sepFilter2D(np.ascontiguousarray(pixels), -1, cubic_taps(dx), cubic_taps(dy), borderType=border)
    shifted = shifted.reshape(pixels.shape)
    moved: Pixels = shifted[top : top + inner.height, left : left + inner.width]
    return moved


def cubic_taps(shift: float) -> NDArray[np.float32]:
    """Return the five taps (one of them zero) that move an image by `shift` px, -0.5..0.5, towards larger indices."""
    offsets = np.arange(-2, 3, dtype=np.float64)
    d = np.abs(offsets + shift)
    near = 1.5 * d**3 - 2.5 * d**2 + 1
    far = -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2
    taps = np.where(d <= 1, near, np.where(d < 2, far, 0.0))
    normalised: NDArray[np.float32] = (taps / taps.sum()).astype(np.float32)
    return normalised


def _view(pixels: Pixels, box: Box, cell: Box) -> Pixels:
    return pixels[cell.y0 - box.y0 : cell.y1 - box.y0, cell.x0 - box.x0 : cell.x1 - box.x0]


def _weights(box: Box, cell: Box, feather: int) -> NDArray[np.float32]:
    wy = ramp(box.height, feather)[cell.y0 - box.y0 : cell.y1 - box.y0]
    wx = ramp(box.width, feather)[cell.x0 - box.x0 : cell.x1 - box.x0]
    weights: NDArray[np.float32] = np.outer(wy, wx)
    return weights


def _average(pixels: Sequence[Pixels], weights: Sequence[NDArray[np.float32]]) -> Pixels:
    if len(pixels) == 2:
        return _mix(pixels[0], pixels[1], weights[1] / (weights[0] + weights[1]))
    total = np.zeros(pixels[0].shape, np.float32)
    for p, w in zip(pixels, weights, strict=True):
        total += p * w[..., None]
    total /= np.sum(weights, axis=0)[..., None]
    np.rint(total, out=total)
    averaged: Pixels = total.astype(pixels[0].dtype)
    return averaged


def _mix(first: Pixels, second: Pixels, share: NDArray[np.float32]) -> Pixels:
    """Return first + (second - first) * share, rounded; `share` is (y, x)."""
    mixed = second.astype(np.float32)
    mixed -= first
    mixed *= share[..., None]
    mixed += first
    np.rint(mixed, out=mixed)
    result: Pixels = mixed.astype(first.dtype)
    return result

"""The block kernel: a weighted gather of the tiles that touch a block.

The block is cut along the edges of the tiles that reach into it, so in each cell the covering tiles are the same:
none leaves the fill value, one is copied, more are averaged with separable weights divided by their sum. Tiles that
are turned or sheared have slanted edges: with one of them the block is blended pixel by pixel. The result depends on
the tiles and their places only, never on arrival order, timing, thread count or where the block was cut.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_scanner.geometry import Box
from edge_scanner.mosaic.warp import Warp, warped
from edge_scanner.mosaic.weights import ramp, seam
from edge_scanner.tile import Pixels

Blend = Literal["linear", "max", "mean", "first", "seam"]
"""How tiles that overlap become one: cross-faded, brightest, plain mean, first in order, or a narrow fade midway."""

TAPS = 4
STRIP_ROWS = 128
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
    warp : Warp, optional
        The way from the mosaic to a tile that is not merely shifted; `box` then encloses the tile, `shift` is unused.
    """

    order: int
    box: Box
    usable: Box
    shift: tuple[float, float]
    crop: Callable[[Box], Pixels]
    warp: Warp | None = None


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
    block: Box,
    sources: Sequence[Source],
    *,
    channels: int,
    dtype: np.dtype[Any],
    fill: float,
    feather: int,
    blend: Blend = "linear",
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
        uint8, uint16 or float32; the tiles' own.
    fill : float
        Value of pixels that no tile covers.
    feather : int
        Longest ramp, px.
    blend : str

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
    if any(source.warp is not None for source, _ in parts):
        return _in_strips(block, parts, np.full((block.height, block.width, channels), fill, dtype), feather, blend)
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
                boxes = [parts[k][0].box for k in covering]
                _view(out, block, cell)[...] = _combined(inside, boxes, cell, feather, blend)
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
    taps = (cubic_taps(dx), cubic_taps(dy))
    shifted = cv2.sepFilter2D(np.ascontiguousarray(pixels), cv2.CV_32F, *taps, borderType=cv2.BORDER_REPLICATE)
    moved = shifted.reshape(pixels.shape)[top : top + inner.height, left : left + inner.width]
    return _typed(moved, pixels.dtype)


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


def _combined(pixels: Sequence[Pixels], boxes: Sequence[Box], cell: Box, feather: int, blend: Blend) -> Pixels:
    """Blend tiles that all cover the whole cell."""
    if len(pixels) == 1 or blend == "first":
        return pixels[0]
    if blend == "max":
        brightest: Pixels = np.maximum.reduce(pixels)
        return brightest
    if blend == "mean":
        return _average(pixels, [np.ones((cell.height, cell.width), np.float32)] * len(pixels))
    if blend == "seam":
        return _average(pixels, seam([_depth(box, cell) for box in boxes]))
    return _average(pixels, [_weights(box, cell, feather) for box in boxes])


def _depth(box: Box, cell: Box) -> NDArray[np.float32]:
    """Return how deep inside the box each pixel of the cell lies: the distance to the nearest edge."""
    wy = ramp(box.height, box.height)[cell.y0 - box.y0 : cell.y1 - box.y0]
    wx = ramp(box.width, box.width)[cell.x0 - box.x0 : cell.x1 - box.x0]
    depth: NDArray[np.float32] = np.minimum.outer(wy, wx)
    return depth


def _in_strips(
    block: Box, parts: Sequence[tuple[Source, Box]], out: Pixels, feather: int, blend: Blend
) -> Pixels | None:
    """Blend tiles with slanted edges a few rows at a time, which bounds the memory that takes."""
    covered = False
    for y in range(block.y0, block.y1, STRIP_ROWS):
        strip = Box(y, block.x0, min(y + STRIP_ROWS, block.y1), block.x1)
        within = [(source, part.intersect(strip)) for source, part in parts]
        within = [(source, part) for source, part in within if not part.empty]
        if within:
            covered |= _blended(strip, within, _view(out, block, strip), feather, blend)
    return out if covered else None


def _blended(block: Box, parts: Sequence[tuple[Source, Box]], out: Pixels, feather: int, blend: Blend) -> bool:
    """Blend tiles with slanted edges into `out`, pixel by pixel; tell whether any of them covers any pixel.

    The running weighted mean leaves a constant image constant to the last bit.
    """
    read = [(part, *_covered(source, part, feather, blend)) for source, part in parts]
    if blend == "seam":
        depths = [np.zeros((block.height, block.width), np.float32) for _ in read]
        for depth, (part, _, weights) in zip(depths, read, strict=True):
            _view(depth, block, part)[...] = weights
        sharp = seam(depths)
        read = [(part, p, _view(w, block, part)) for w, (part, p, _) in zip(sharp, read, strict=True)]
    total = np.zeros((block.height, block.width), np.float32)
    mean = np.zeros(out.shape, np.float32)
    for part, pixels, weights in read:
        sum_so_far, target = _view(total, block, part), _view(mean, block, part)
        if blend == "max":
            brighter = (weights > 0)[..., None] & ((sum_so_far == 0)[..., None] | (pixels > target))
            target[...] = np.where(brighter, pixels, target)
        elif blend == "first":
            target[...] = np.where(((weights > 0) & (sum_so_far == 0))[..., None], pixels, target)
        sum_so_far += weights
        if blend not in ("max", "first"):
            share = np.divide(weights, sum_so_far, out=np.zeros_like(weights), where=sum_so_far > 0)
            target += (pixels - target) * share[..., None]
    covered = total > 0
    np.copyto(out, _typed(mean, out.dtype), where=covered[..., None])
    return bool(covered.any())


def _covered(source: Source, part: Box, feather: int, blend: Blend) -> tuple[Pixels, NDArray[np.float32]]:
    """Return the tile's pixels on a part of its box, and their weights: zero outside of the tile."""
    if source.warp is None:
        pixels = resampled(source, part)
        weights = _depth(source.box, part) if blend == "seam" else _weights(source.box, part, feather)
    else:
        pixels, depth_y, depth_x = warped(source.warp, part, source.crop)
        if blend == "seam":
            weights = np.minimum(depth_y, depth_x)
        else:
            weights = np.minimum(depth_y, np.float32(feather)) * np.minimum(depth_x, np.float32(feather))
    return pixels, np.where(weights > 0, np.float32(1), np.float32(0)) if blend == "mean" else weights


def _average(pixels: Sequence[Pixels], weights: Sequence[NDArray[np.float32]]) -> Pixels:
    if len(pixels) == 2:
        return _mix(pixels[0], pixels[1], weights[0], weights[1])
    total = np.zeros(pixels[0].shape, np.float32)
    for p, w in zip(pixels, weights, strict=True):
        total += p * w[..., None]
    total /= np.sum(weights, axis=0)[..., None]
    return _typed(total, pixels[0].dtype)


def _mix(first: Pixels, second: Pixels, weight: NDArray[np.float32], other: NDArray[np.float32]) -> Pixels:
    """Return the weighted mean of two, rounded; the weights are (y, x) and at least 1.

    OpenCV's `blendLinear` is five times as fast as numpy; it adds 1e-5 to the sum of the weights, which shows in floats
    only.
    """
    if first.dtype.kind != "f" and first.shape[2] <= 4:
        mixed = cv2.blendLinear(first.astype(np.float32), second.astype(np.float32), weight, other)
        return _typed(mixed.reshape(first.shape), first.dtype)
    share = (other / (weight + other))[..., None]
    start = first.astype(np.float32)
    return _typed(start + (second - start) * share, first.dtype)


def _typed(values: NDArray[np.float32], dtype: np.dtype[Any]) -> Pixels:
    """Return averages in the tiles' type: rounded to even and clipped to its range where that is of integers."""
    depth = {"|u1": cv2.CV_8U, "<u2": cv2.CV_16U}.get(dtype.str)
    if depth is None:
        return values.astype(dtype)
    typed: Pixels = cv2.add(values.reshape(len(values), -1), 0.0, dtype=depth)
    return typed.reshape(values.shape)

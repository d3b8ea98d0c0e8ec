"""The block kernel: a weighted gather of the tiles that touch a block.

The block is cut along the edges of the tiles that reach into it, so in each cell the covering tiles are the same:
none leaves the fill value, one is copied, more are averaged with separable weights divided by their sum. Tiles that
are turned or sheared have slanted edges: with one of them the block is blended pixel by pixel. The result depends on
the tiles and their places only, never on arrival order, timing, thread count or where the block was cut.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_scanner.geometry import Box
from edge_scanner.mosaic.cut import Cut, Pair, cuts_of, parted
from edge_scanner.mosaic.source import Source, resampled, typed
from edge_scanner.mosaic.warp import warped
from edge_scanner.mosaic.weights import depth_of, ramp, seam
from edge_scanner.tile import Pixels

Blend = Literal["linear", "max", "mean", "first", "seam"]
"""How tiles that overlap become one: cross-faded, brightest, plain mean, first in order, or parted along a seam."""

STRIP_ROWS = 128


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
    cuts = cuts_of(block, [source for source, _ in parts]) if blend == "seam" else {}
    ys = sorted({block.y0, block.y1, *(y for _, p in parts for y in (p.y0, p.y1))})
    xs = sorted({block.x0, block.x1, *(x for _, p in parts for x in (p.x0, p.x1))})
    for y0, y1 in pairwise(ys):
        for x0, x1 in pairwise(xs):
            cell = Box(y0, x0, y1, x1)
            covering = [k for k, (_, p) in enumerate(parts) if p.intersect(cell) == cell]
            if covering:
                inside = [_view(read[k], parts[k][1], cell) for k in covering]
                over = [parts[k][0] for k in covering]
                _view(out, block, cell)[...] = _combined(inside, over, cuts, cell, feather, blend)
    return out


def _view(pixels: Pixels, box: Box, cell: Box) -> Pixels:
    return pixels[cell.y0 - box.y0 : cell.y1 - box.y0, cell.x0 - box.x0 : cell.x1 - box.x0]


def _weights(box: Box, cell: Box, feather: int) -> NDArray[np.float32]:
    wy = ramp(box.height, feather)[cell.y0 - box.y0 : cell.y1 - box.y0]
    wx = ramp(box.width, feather)[cell.x0 - box.x0 : cell.x1 - box.x0]
    weights: NDArray[np.float32] = np.outer(wy, wx)
    return weights


def _combined(
    pixels: Sequence[Pixels], over: Sequence[Source], cuts: Mapping[Pair, Cut], cell: Box, feather: int, blend: Blend
) -> Pixels:
    """Blend tiles that all cover the whole cell."""
    if len(pixels) == 1 or blend == "first":
        return pixels[0]
    if blend == "max":
        brightest: Pixels = np.maximum.reduce(pixels)
        return brightest
    if blend == "mean":
        return _average(pixels, [np.ones((cell.height, cell.width), np.float32)] * len(pixels))
    weights = [_weights(source.box, cell, feather) for source in over]
    if any((a.order, b.order) in cuts for a, b in combinations(over, 2)):
        weights = parted(over, weights, cuts, cell)
    return _average(pixels, weights)


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
    np.copyto(out, typed(mean, out.dtype), where=covered[..., None])
    return bool(covered.any())


def _covered(source: Source, part: Box, feather: int, blend: Blend) -> tuple[Pixels, NDArray[np.float32]]:
    """Return the tile's pixels on a part of its box, and their weights: zero outside of the tile."""
    if source.warp is None:
        pixels = resampled(source, part)
        weights = depth_of(source.box, part) if blend == "seam" else _weights(source.box, part, feather)
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
        total += p * _thick(w, total)
    total /= _thick(np.sum(weights, axis=0), total)
    return typed(total, pixels[0].dtype)


def _thick(weight: NDArray[np.float32], like: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the weights (y, x) for every channel: numpy is slow along an axis as short as the channels'."""
    return np.repeat(weight, like.shape[2], axis=1).reshape(like.shape)


def _mix(first: Pixels, second: Pixels, weight: NDArray[np.float32], other: NDArray[np.float32]) -> Pixels:
    """Return the weighted mean of two, rounded; the weights are (y, x) and at least 1.

    OpenCV's `blendLinear` is five times as fast as numpy; it adds 1e-5 to the sum of the weights, which shows in floats
    only.
    """
    if first.dtype.kind != "f" and first.shape[2] <= 4:
        a, b = (p if p.dtype == np.uint8 else p.astype(np.float32) for p in (first, second))
        return typed(cv2.blendLinear(a, b, weight, other).reshape(first.shape), first.dtype)
    share = (other / (weight + other))[..., None]
    start = first.astype(np.float32)
    return typed(start + (second - start) * share, first.dtype)

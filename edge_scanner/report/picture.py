"""The thumbnail."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from edge_scanner.errors import StoreError
from edge_scanner.geometry import Box
from edge_scanner.store import SlideStore
from edge_scanner.tile import Pixels

SIDE_PX = 1024


def thumbnail(store: SlideStore) -> Pixels:
    """Return the whole slide (y, x, 3) uint8, its longer side at most 1024 px."""
    level = next((k for k, v in enumerate(store.levels) if max(v.height_px, v.width_px) <= 2 * SIDE_PX), None)
    k = len(store.levels) - 1 if level is None else level
    shape = store.levels[k]
    return eight_bit(shrunk(store.read(k, Box(0, 0, shape.height_px, shape.width_px)), SIDE_PX))


def shrunk(pixels: Pixels, side_px: int) -> Pixels:
    """Return the image shrunk so that its longer side is at most `side_px`."""
    height, width = pixels.shape[:2]
    scale = min(1.0, side_px / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small: Pixels = cv2.resize(np.ascontiguousarray(pixels), size, interpolation=cv2.INTER_AREA)
    return small.reshape(size[1], size[0], pixels.shape[2])


def eight_bit(pixels: Pixels) -> Pixels:
    """Return (y, x, 3) uint8 of any image, 16-bit scaled to its own range."""
    if pixels.dtype != np.uint8:
        low, high = float(pixels.min()), float(pixels.max())
        pixels = ((pixels - low) * (255.0 / max(1.0, high - low))).astype(np.uint8)
    if pixels.shape[2] == 3:
        return pixels
    return np.repeat(pixels[..., :1], 3, axis=2)


def png(pixels: Pixels) -> bytes:
    """Return RGB (y, x, 3) uint8 as PNG."""
    ok, data = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    if not ok:
        raise StoreError("The picture could not be encoded.")
    return bytes(data)


def jpeg(pixels: Pixels, quality: int = 85) -> bytes:
    """Return RGB (y, x, 3) uint8 as JPEG."""
    ok, data = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not ok:
        raise StoreError("The picture could not be encoded.")
    return bytes(data)


def write_thumbnail(store: SlideStore, path: Path) -> None:
    """Write the whole slide as PNG."""
    path.write_bytes(png(thumbnail(store)))

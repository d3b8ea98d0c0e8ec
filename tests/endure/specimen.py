"""A slide as large as one likes: one block of synthetic tissue, repeated, as a TIFF that holds the block once."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from edge_scanner.sim.tissue import TissueSpecimen

TILE_PX = 512
BLOCK_TILES = 8
TILE_BYTES = TILE_PX * TILE_PX * 3
PIXEL_UM = 0.25
GRAIN = 2.5
"""Noise of the frames, grey levels, sigma: it is in the specimen, since the simulator's own takes most of its time."""
SHORT, LONG8 = 3, 16


def write_specimen(path: Path, height_px: int, width_px: int) -> None:
    """Write the slide: tissue from edge to edge, so that no tile is glass.

    The block is cut from the middle of a larger section, drawn once, and repeats every 4096 px: the directory of an
    uncompressed BigTIFF points to the same 64 tiles again and again, so that the file has 50 MB whatever its size.
    """
    block = _block()
    rows, cols = -(-height_px // TILE_PX), -(-width_px // TILE_PX)
    at = np.add.outer(np.arange(rows) % BLOCK_TILES * BLOCK_TILES, np.arange(cols) % BLOCK_TILES).ravel()
    offsets, counts = 16 + at.astype("<u8") * TILE_BYTES, np.full(at.size, TILE_BYTES, "<u8")
    arrays = 16 + BLOCK_TILES**2 * TILE_BYTES
    tags = [
        (256, LONG8, 1, width_px),
        (257, LONG8, 1, height_px),
        (258, SHORT, 3, 8 | 8 << 16 | 8 << 32),
        (259, SHORT, 1, 1),  # not compressed
        (262, SHORT, 1, 2),  # RGB
        (277, SHORT, 1, 3),
        (322, SHORT, 1, TILE_PX),
        (323, SHORT, 1, TILE_PX),
        (324, LONG8, at.size, arrays),
        (325, LONG8, at.size, arrays + offsets.nbytes),
    ]
    with path.open("wb") as file:
        file.write(struct.pack("<2sHHHQ", b"II", 43, 8, 0, arrays + offsets.nbytes + counts.nbytes))
        for n in range(BLOCK_TILES**2):
            y, x = n // BLOCK_TILES * TILE_PX, n % BLOCK_TILES * TILE_PX
            file.write(np.ascontiguousarray(block[y : y + TILE_PX, x : x + TILE_PX]).data)
        file.write(offsets.data)
        file.write(counts.data)
        file.write(struct.pack("<Q", len(tags)))
        for tag, kind, count, value in tags:
            file.write(struct.pack("<HHQQ", tag, kind, count, value))
        file.write(struct.pack("<Q", 0))


def _block() -> np.ndarray:
    side_px = BLOCK_TILES * TILE_PX
    section_um = 3 * side_px * PIXEL_UM
    tissue = TissueSpecimen(1, section_um, section_um, PIXEL_UM).read(side_px, side_px, side_px, side_px)
    grain = np.random.default_rng(1).normal(0, GRAIN, tissue.shape).astype(np.float32)
    return np.clip(np.rint(tissue + grain), 0, 255).astype(np.uint8)

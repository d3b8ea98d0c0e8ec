"""A slide as large as one likes: one block of synthetic tissue, repeated, as a TIFF of JPEG tiles."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile

from edge_scanner.sim.tissue import TissueSpecimen

TILE_PX = 512
BLOCK_TILES = 8
PIXEL_UM = 0.25
GRAIN = 2.5
"""Noise of the frames, grey levels, sigma: it is in the specimen, since the simulator's own takes most of its time."""


def write_specimen(path: Path, height_px: int, width_px: int) -> None:
    """Write the slide: tissue from edge to edge, so that no tile is glass.

    The block is cut from the middle of a larger section, is drawn once and repeats every 4096 px: encoded tiles are
    copied, so that the slide takes seconds.
    """
    block = _block()
    tiles = [
        [
            imagecodecs.jpeg8_encode(_part(block, i, j), level=90, subsampling="422", outcolorspace="YCBCR")
            for j in range(BLOCK_TILES)
        ]
        for i in range(BLOCK_TILES)
    ]
    rows, cols = -(-height_px // TILE_PX), -(-width_px // TILE_PX)

    def encoded() -> Iterator[bytes]:
        for row in range(rows):
            for col in range(cols):
                yield tiles[row % BLOCK_TILES][col % BLOCK_TILES]

    tifffile.imwrite(
        path,
        encoded(),
        shape=(height_px, width_px, 3),
        dtype=np.uint8,
        tile=(TILE_PX, TILE_PX),
        photometric="ycbcr",
        subsampling=(2, 1),
        compression="jpeg",
        bigtiff=True,
        metadata=None,
    )


def _block() -> np.ndarray:
    side_px = BLOCK_TILES * TILE_PX
    section_um = 3 * side_px * PIXEL_UM
    tissue = TissueSpecimen(1, section_um, section_um, PIXEL_UM).read(side_px, side_px, side_px, side_px)
    grain = np.random.default_rng(1).normal(0, GRAIN, tissue.shape).astype(np.float32)
    return np.clip(np.rint(tissue + grain), 0, 255).astype(np.uint8)


def _part(block: np.ndarray, row: int, col: int) -> np.ndarray:
    y, x = row * TILE_PX, col * TILE_PX
    return np.ascontiguousarray(block[y : y + TILE_PX, x : x + TILE_PX])

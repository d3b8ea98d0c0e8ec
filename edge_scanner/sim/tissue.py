"""Synthetic tissue that looks stained with haematoxylin and eosin, made block by block on demand."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_scanner.geometry import Box
from edge_scanner.sim.anatomy import STEP, Anatomy, Survey
from edge_scanner.sim.lattice import Field, enlarged, grain
from edge_scanner.sim.nuclei import draw_nuclei
from edge_scanner.sim.picture import RgbImage, Specimen

BLOCK = 512
MEMORY_BOUND = 48 << 20
GLASS = 245
_PERIOD = 1024
_HAEMATOXYLIN = (0.62, 0.72, 0.34)
_EOSIN = (0.10, 0.86, 0.42)
_STAIN_UNIT = 1.6 / 255


class TissueSpecimen(Specimen):
    """Seeded tissue; every pixel is a pure function of seed, size and place.

    Memory bound: 48 MiB of finished blocks, least recently used first out, and one texture of 9 MiB.

    Parameters
    ----------
    seed : int
    height_um, width_um : float
    pixel_size_um : float
        Structures scale to the nearest whole multiple of their drawing at 0.5 um.
    """

    def __init__(self, seed: int, height_um: float, width_um: float, pixel_size_um: float) -> None:
        height, width = (max(1, round(n / pixel_size_um)) for n in (height_um, width_um))
        super().__init__(height, width, pixel_size_um, GLASS)
        self._seed = seed * 101 & 0xFFFFFFF
        self._scale = max(1, round(0.5 / pixel_size_um))
        self._anatomy = Anatomy(self._seed, height, width, self._scale)
        self._streaks = _streaks(seed, self._scale)
        self._stain = _stain_table()
        self._blocks: OrderedDict[tuple[int, int], RgbImage] = OrderedDict()

    def _inside(self, box: Box) -> RgbImage:
        out = np.empty((box.height, box.width, 3), np.uint8)
        for i in range(box.y0 // BLOCK, -(-box.y1 // BLOCK)):
            for j in range(box.x0 // BLOCK, -(-box.x1 // BLOCK)):
                block = Box(i * BLOCK, j * BLOCK, (i + 1) * BLOCK, (j + 1) * BLOCK)
                cut = block.intersect(box)
                src, dst = cut.shifted(-block.y0, -block.x0), cut.shifted(-box.y0, -box.x0)
                out[dst.y0 : dst.y1, dst.x0 : dst.x1] = self._block(i, j)[src.y0 : src.y1, src.x0 : src.x1]
        return out

    def _block(self, i: int, j: int) -> RgbImage:
        if (i, j) in self._blocks:
            self._blocks.move_to_end((i, j))
            return self._blocks[i, j]
        block = self._paint(i * BLOCK, j * BLOCK)
        self._blocks[i, j] = block
        if len(self._blocks) * block.nbytes > MEMORY_BOUND:
            self._blocks.popitem(last=False)
        return block

    def _paint(self, y0: int, x0: int) -> RgbImage:
        if self._anatomy.outside(y0, x0, BLOCK):
            return np.full((BLOCK, BLOCK, 3), GLASS, np.uint8)
        plan = self._anatomy.survey(y0, x0, BLOCK)
        fine = grain(self._seed + 31, 2, y0, x0, BLOCK)
        medium = grain(self._seed + 32, 8, y0, x0, BLOCK)
        coarse = grain(self._seed + 33, 32, y0, x0, BLOCK)
        nuclei = draw_nuclei(self._seed, self._scale, plan, y0, x0, BLOCK)
        nuclei *= 0.72 + 0.56 * grain(self._seed + 34, 4, y0, x0, BLOCK)
        eosin, blue = self._stroma(self._fibres(plan), coarse, fine)
        if plan.gland.min() < 1.2:
            gland = self._up(plan, plan.gland) + (medium - 0.5) * 0.06
            self._glands(eosin, blue, gland, self._up(plan, plan.lumen), medium, fine)
        eosin *= 1 - 0.45 * np.minimum(nuclei, 1)
        blue += 0.62 * nuclei
        if plan.deep.min() < 0.05:
            section = _ramp(self._up(plan, plan.deep) * 60 + (coarse - 0.5) * 2 + (medium - 0.5))
            eosin *= section
            blue *= section
        return self._dye(blue, eosin)

    @staticmethod
    def _up(plan: Survey, field: Field) -> Field:
        return enlarged(field, STEP, plan.margin)

    def _fibres(self, plan: Survey) -> Field:
        """Return the fibres' share of each pixel: a texture of streaks laid along the plan's wavy coordinates."""
        near = (f - np.floor(f.min() / _PERIOD) * _PERIOD for f in (plan.along, plan.across))
        along, across = (self._up(plan, f) for f in near)
        streaks = cv2.remap(self._streaks, along, across, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
        return np.asarray(streaks * np.float32(1 / 255))

    @staticmethod
    def _stroma(fibres: Field, coarse: Field, fine: Field) -> tuple[Field, Field]:
        """Return eosin and haematoxylin of fibrous stroma; between bundles it is nearly clear."""
        gaps = _ramp((fibres + 0.35 * (coarse - 0.5) - 0.27) * 9)
        eosin = gaps * (0.10 + 0.30 * fibres + 0.08 * (coarse - 0.5) + 0.05 * (fine - 0.5)) + 0.015
        return eosin, 0.02 + 0.05 * gaps * fibres

    @staticmethod
    def _glands(eosin: Field, blue: Field, gland: Field, lumen: Field, medium: Field, fine: Field) -> None:
        """Paint epithelium and lumen over the stroma, in place."""
        inward = gland - lumen
        within = _ramp(22.5 - 22 * gland)
        clear = _ramp(inward * 26 + 0.5)
        mucin = _ramp(inward / (0.98 - lumen))
        cell = 0.14 * mucin + 0.08 * medium + 0.05 * fine + 0.025
        tint = 0.09 * mucin + 0.05 * medium + 0.025
        membrane = _ridge(gland - 1.02, 0.05) * 0.12
        rim = _ridge(inward, 0.045) * within * 0.10
        eosin += within * (cell * clear + 0.012 - eosin) + membrane + rim
        blue += within * (tint * clear + 0.006 - blue)

    def _dye(self, blue: Field, eosin: Field) -> RgbImage:
        """Return the colour of two stain maps by the Beer-Lambert law."""
        high, low = (cv2.convertScaleAbs(stain, alpha=1 / _STAIN_UNIT) for stain in (blue, eosin))
        return np.asarray(np.take(self._stain, high.astype(np.uint16) << 8 | low, axis=0))


def _ramp(values: NDArray[Any]) -> Field:
    """Return values clipped to 0..1."""
    return np.asarray(np.clip(values, 0, 1))


def _ridge(off: Field, width: float) -> Field:
    """Return a ridge of height 1 where `off` is zero, gone beyond `width`."""
    return np.asarray(np.maximum(0, 1 - (off * (1 / width)) ** 2))


def _streaks(seed: int, scale: int) -> NDArray[np.uint8]:
    """Return three by three periods of a texture of thin streaks along x, (3072, 3072) uint8."""
    noise = np.random.default_rng([seed, 0x71551E]).standard_normal((_PERIOD, _PERIOD)).astype(np.float32)
    f = np.fft.fftfreq(_PERIOD)
    bands = [
        weight
        * np.exp(-2 * (np.pi * across * scale * f[:, None]) ** 2 - 2 * (np.pi * along * scale * f[None, :]) ** 2)
        * across
        for across, along, weight in ((1.3, 22, 1.0), (4.0, 60, 1.3), (11.0, 90, 1.2))
    ]
    texture = np.fft.ifft2(np.fft.fft2(noise) * sum(bands)).real
    low, high = np.percentile(texture, (1, 99))
    return np.tile(np.clip((texture - low) / (high - low) * 255, 0, 255).astype(np.uint8), (3, 3))


def _stain_table() -> NDArray[np.uint8]:
    """Return the RGB of every pair of 8-bit haematoxylin (high byte) and eosin (low byte) amounts, (65536, 3)."""
    h, e = (axis.ravel()[:, None] * _STAIN_UNIT for axis in np.mgrid[0:256, 0:256].astype(np.float64))
    density = h * np.array(_HAEMATOXYLIN) + e * np.array(_EOSIN)
    return np.asarray(np.rint(GLASS * 10.0**-density), np.uint8)

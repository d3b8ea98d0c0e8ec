"""Scenes at 4 to 12 um a pixel with the class of every pixel: tissue on glass, dirt, bubbles, strokes of a pen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_scanner.config import SimConfig
from edge_scanner.sim.specimen import Specimen, open_specimen

Rgb = NDArray[np.uint8]
Floats = NDArray[np.float32]
Labels = NDArray[np.uint8]

CLASSES = ("background", "tissue", "pen")
PIXEL_SIZE_UM = 8.0
_DENSE = 0.05
"""Optical density, mean of the colours, from which a pixel of 8 um is called tissue."""

_INKS = ((20, 30, 120), (15, 15, 20), (20, 110, 60), (160, 25, 40), (60, 40, 140), (10, 90, 150))


@dataclass(frozen=True, slots=True)
class Texture:
    """A slide at low resolution: optical density, (y, x, 3) float32, and where it is tissue."""

    name: str
    density: Floats
    tissue: NDArray[np.bool_]


def read_slide(path: Path, reduce: int) -> Rgb:
    """Return a slide file, (y, x, 3), reduced by a whole factor by the mean of its pixels."""
    return _reduced(open_specimen(SimConfig(slide=str(path)), 1.0), reduce)


def paint(seed: int, side_mm: float = 6.0) -> Rgb:
    """Return synthetic tissue at 4 um a pixel, drawn at half the resolution of a 20x objective."""
    sim = SimConfig(seed=seed, tissue_width_mm=side_mm, tissue_height_mm=side_mm)
    return _reduced(open_specimen(sim, 1.0), 4)


def _reduced(specimen: Specimen, reduce: int) -> Rgb:
    height, width = specimen.height_px // reduce, specimen.width_px // reduce
    out = np.empty((height, width, 3), np.uint8)
    band = max(1, 2048 // reduce)
    for y in range(0, height, band):
        rows = min(band, height - y)
        pixels = specimen.read(y * reduce, 0, rows * reduce, width * reduce)
        out[y : y + rows] = cv2.resize(pixels, (width, rows), interpolation=cv2.INTER_AREA)
    return out


def texture(name: str, picture: Rgb) -> Texture:
    """Return a picture's density against its own glass, its brightest tone, and where it is dense."""
    glass = np.percentile(picture.reshape(-1, 3), 99.5, axis=0).astype(np.float32)
    density = -np.log10((picture.astype(np.float32) + 1) / (glass + 1)).clip(None, 2.5)
    return Texture(name, density, reference(picture, glass))


def reference(picture: Rgb, glass: NDArray[Any]) -> NDArray[np.bool_]:
    """Return where a picture is tissue, by density alone: specks below 20 pixels are dirt, holes below 6 tissue."""
    density = -np.log10((picture.astype(np.float32) + 1) / (np.asarray(glass, np.float32) + 1)).mean(axis=2)
    mask = (cv2.GaussianBlur(density, (0, 0), 0.8) > _DENSE).astype(np.uint8)
    mask = _without_specks(mask, 20)
    return (1 - _without_specks(1 - mask, 6)).astype(bool)


def make_scene(textures: Sequence[Texture], side_px: int, rng: np.random.Generator) -> tuple[Rgb, Labels]:
    """Return a picture, (side, side, 3) uint8, and the class of each of its pixels."""
    density, tissue = _tissue(textures[int(rng.integers(len(textures)))], side_px, rng)
    island = _island(side_px, rng)
    density *= cv2.GaussianBlur(island.astype(np.float32), (0, 0), 0.7)[..., None]
    labels = (tissue & island).astype(np.uint8)
    density += _dirt(side_px, rng)[..., None]
    pen, ink = _pen(side_px, rng)
    density += pen[..., None] * ink
    labels[pen > 0.35] = 2
    return _exposed(density, rng), labels


def _tissue(source: Texture, side_px: int, rng: np.random.Generator) -> tuple[Floats, NDArray[np.bool_]]:
    """Cut a piece at a random scale and turn, and stain it otherwise."""
    scale = float(np.exp(rng.uniform(np.log(0.6), np.log(1.8))))
    need = int(np.ceil(side_px / scale))
    height, width = source.tissue.shape
    y, x = rng.integers(0, max(1, height - need + 1)), rng.integers(0, max(1, width - need + 1))
    piece, mask = source.density[y : y + need, x : x + need], source.tissue[y : y + need, x : x + need]
    missing = [(0, need - piece.shape[0]), (0, need - piece.shape[1])]
    piece, mask = np.pad(piece, [*missing, (0, 0)], mode="symmetric"), np.pad(mask, missing, mode="symmetric")
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    piece = cv2.resize(piece, (side_px, side_px), interpolation=how)
    mask = cv2.resize(mask.astype(np.float32), (side_px, side_px), interpolation=how) > 0.5
    turns, flip = int(rng.integers(4)), bool(rng.integers(2))
    piece, mask = np.rot90(piece, turns), np.rot90(mask, turns)
    if flip:
        piece, mask = piece[:, ::-1], mask[:, ::-1]
    mix = np.eye(3) * rng.uniform(0.6, 1.3, 3) + rng.uniform(-0.15, 0.35, (3, 3)) * rng.uniform(0, 1)
    stained = np.maximum(piece @ mix.T.astype(np.float32), piece.mean(axis=2, keepdims=True) * 0.3)
    return np.ascontiguousarray(stained, np.float32) * np.float32(rng.uniform(0.6, 1.4)), mask


def _island(side_px: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Return where tissue may be: everywhere, nowhere, or pieces with smooth borders."""
    kind = rng.random()
    if kind < 0.25:
        return np.full((side_px, side_px), kind < 0.17)
    coarse = rng.normal(size=(side_px, side_px)).astype(np.float32)
    smooth = cv2.GaussianBlur(coarse, (0, 0), float(rng.uniform(4, 20)))
    return np.asarray(smooth > np.quantile(smooth, rng.uniform(0.2, 0.8)))


def _dirt(side_px: int, rng: np.random.Generator) -> Floats:
    """Return the density of what lies on the glass and is neither tissue nor pen."""
    out = np.zeros((side_px, side_px), np.float32)
    for _ in range(rng.poisson(3)):
        at, radius = rng.integers(0, side_px, 2), int(rng.integers(0, 3))
        cv2.circle(out, (int(at[0]), int(at[1])), radius, float(rng.uniform(0.05, 0.8)), -1, cv2.LINE_AA)
    if rng.random() < 0.3:  # a bubble is a dark ring
        at, radius = rng.integers(0, side_px, 2), int(rng.integers(6, side_px // 2))
        cv2.circle(out, (int(at[0]), int(at[1])), radius, float(rng.uniform(0.1, 0.7)), 1, cv2.LINE_AA)
    if rng.random() < 0.2:  # the edge of the cover slip, or a hair
        ends = rng.integers(-side_px, 2 * side_px, 4)
        start, end = (int(ends[0]), int(ends[1])), (int(ends[2]), int(ends[3]))
        cv2.line(out, start, end, float(rng.uniform(0.05, 0.5)), int(rng.integers(1, 3)), cv2.LINE_AA)
    if rng.random() < 0.4:  # a smudge
        cloud = cv2.GaussianBlur(rng.normal(size=(side_px, side_px)).astype(np.float32), (0, 0), 12)
        out += np.clip(cloud / (np.abs(cloud).max() + 1e-6), 0, 1) * np.float32(rng.uniform(0, 0.03))
    return out


def _pen(side_px: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Return how much ink there is, 0 to 1, and its density."""
    amount = np.zeros((side_px, side_px), np.float32)
    for _ in range(int(rng.integers(1, 4)) if rng.random() < 0.5 else 0):
        corners = rng.uniform(-0.2, 1.2, (4, 2)) * side_px
        t = np.linspace(0, 1, 40)[:, None]
        bezier = (1 - t) ** 3 * corners[0] + 3 * t * (1 - t) ** 2 * corners[1]
        bezier += 3 * t**2 * (1 - t) * corners[2] + t**3 * corners[3]
        stroke = np.zeros_like(amount)
        points = bezier.round().astype(np.int32).reshape(-1, 1, 2)
        cv2.polylines(stroke, [points], False, 1.0, int(rng.integers(8, 60)), cv2.LINE_AA)
        amount = np.maximum(amount, stroke)
    streaks = cv2.GaussianBlur(rng.normal(size=amount.shape).astype(np.float32), (0, 0), 3)
    amount *= np.clip(1 + 2 * streaks * np.float32(rng.uniform(0, 1)), 0.5, 1.3)
    colour = np.array(_INKS[rng.integers(len(_INKS))], np.float32) + rng.uniform(-10, 30, 3)
    ink = -np.log10((colour.clip(5, 250) + 1) / 251) * rng.uniform(0.5, 1.3)
    return cv2.GaussianBlur(amount, (0, 0), float(rng.uniform(0.4, 1.5))), ink.astype(np.float32)


def _exposed(density: Floats, rng: np.random.Generator) -> Rgb:
    """Return the picture: lamp, glass tone, uneven light, blur, noise."""
    side_px = len(density)
    glass = rng.uniform(195, 252) + rng.uniform(-8, 8, 3)
    y, x = np.mgrid[0:side_px, 0:side_px].astype(np.float32) / side_px - 0.5
    light = 1 + rng.uniform(-0.06, 0.06) * x + rng.uniform(-0.06, 0.06) * y
    picture = glass * light[..., None] * 10.0**-density
    picture = cv2.GaussianBlur(picture, (0, 0), float(rng.uniform(0.1, 0.9)))
    noisy = picture + rng.normal(0, rng.uniform(0, 3), picture.shape)
    return np.asarray(noisy.clip(0, 255).round(), np.uint8)


def _without_specks(mask: NDArray[np.uint8], least_px: int) -> NDArray[np.uint8]:
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    keep = stats[:, cv2.CC_STAT_AREA] >= least_px
    keep[0] = False
    return np.asarray(keep[labels], np.uint8)

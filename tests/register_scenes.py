"""Scans cut from one picture by sub-pixel shifts: the truth that registration is held against.

Independent of the simulator: a tile is a crop of the picture, resampled by a 16-tap windowed sinc.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from edge_scanner.geometry import Position
from edge_scanner.plan import ScanPlan, ScanRegion
from edge_scanner.register import Registrar
from edge_scanner.tile import PlacedTile, Tile, Verdict

HALF_TAPS = 8
GLASS = 235.0


def textured(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return an RGB float32 picture with structure at the scales of stained tissue."""
    rng = np.random.default_rng(seed)
    picture = np.zeros((height, width), np.float32)
    for sigma, weight in ((1.5, 8), (3, 12), (8, 20)):
        layer = cv2.GaussianBlur(rng.standard_normal((height, width)).astype(np.float32), (0, 0), sigma)
        picture += weight * layer / layer.std()
    return np.clip(picture[..., None] * [0.8, 1.2, 0.7] + [180, 140, 170], 0, 255).astype(np.float32)


def mirrored(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return a picture continued by reflection to the size asked for."""
    down, right = max(0, height - picture.shape[0]), max(0, width - picture.shape[1])
    return np.pad(picture, ((0, down), (0, right), (0, 0)), "symmetric")[:height, :width].astype(np.float32)


def with_glass(picture: np.ndarray, share: float, seed: int, blob_px: float) -> np.ndarray:
    """Return the picture with bare glass on that share of its area, in blobs."""
    rng = np.random.default_rng(seed)
    h, w = picture.shape[:2]
    field_ = rng.standard_normal((h // 32 + 2, w // 32 + 2)).astype(np.float32)
    field_ = cv2.resize(cv2.GaussianBlur(field_, (0, 0), blob_px / 32), (w, h), interpolation=cv2.INTER_CUBIC)
    bare = (field_ < np.quantile(field_, share)).astype(np.float32)
    bare = cv2.GaussianBlur(bare, (0, 0), 3.0)[..., None]
    return (picture * (1 - bare) + GLASS * bare).astype(np.float32)


def sampled(picture: np.ndarray, y: float, x: float, height: int, width: int) -> np.ndarray:
    """Return the float32 crop whose top-left pixel lies at (y, x)."""
    iy, ix = int(np.floor(y)), int(np.floor(x))
    m = HALF_TAPS
    part = picture[iy - m : iy + height + m, ix - m : ix + width + m]
    assert part.shape[:2] == (height + 2 * m, width + 2 * m), "the scene's margin is too small"
    moved = cv2.sepFilter2D(part, cv2.CV_32F, _sinc(x - ix), _sinc(y - iy), anchor=(m - 1, m - 1))
    return moved[m : m + height, m : m + width]


def _sinc(fraction: float) -> np.ndarray:
    at = np.arange(-HALF_TAPS + 1, HALF_TAPS + 1) - fraction
    taps = np.sinc(at) * np.cos(np.pi * at / (2 * HALF_TAPS + 2)) ** 2
    return taps / taps.sum()


@dataclass(frozen=True)
class Scene:
    """A plan, the true corners of its tiles in mosaic pixels by index, and the tiles."""

    plan: ScanPlan
    truth: np.ndarray
    tiles: list[Tile]
    stage_error_px: float
    margin: int
    picture: np.ndarray = field(repr=False)

    def registrar(self, **options: float | bool) -> Registrar:
        return Registrar(
            self.plan, self.plan.frame(), stage_error_um=self.stage_error_px * self.plan.pixel_size_um, **options
        )

    def run(self, order: Iterable[int] | None = None, **options: float | bool) -> tuple[Registrar, list[PlacedTile]]:
        registrar = self.registrar(**options)
        placed: list[PlacedTile] = []
        for index in order if order is not None else range(len(self.tiles)):
            placed += registrar.add(self.tiles[index])
        return registrar, placed + registrar.finish()

    def pair_errors(self, placed: Sequence[PlacedTile], least_tissue: float = 0.1) -> np.ndarray:
        """Return the error of each neighbouring pair's offset (px) where the overlap holds tissue."""
        found = {t.index: np.array([t.y_px, t.x_px]) for t in placed}
        return np.array(
            [
                np.linalg.norm(found[b] - found[a] - self.truth[b] + self.truth[a])
                for a, b in self.neighbours()
                if a in found and b in found and self.tissue_share(a, b) >= least_tissue
            ]
        )

    def neighbours(self) -> list[tuple[int, int]]:
        at, plan = self.plan.index_at, self.plan
        along = [(at(r, c), at(r, c + 1)) for r in range(plan.rows) for c in range(plan.cols - 1)]
        return along + [(at(r, c), at(r + 1, c)) for r in range(plan.rows - 1) for c in range(plan.cols)]

    def tissue_share(self, a: int, b: int) -> float:
        """Return the share of the true overlap that is not glass."""
        h, w = self.plan.tile_height_px, self.plan.tile_width_px
        low = np.maximum(self.truth[a], self.truth[b]).astype(int) + self.margin
        high = np.minimum(self.truth[a], self.truth[b]).astype(int) + np.array([h, w]) + self.margin
        part = self.picture[low[0] : high[0], low[1] : high[1]].mean(axis=2)
        return float((part < GLASS - 10).mean()) if part.size else 0.0


def scene(
    rows: int,
    cols: int,
    *,
    tile: tuple[int, int] = (512, 512),
    overlap_px: int = 51,
    stage_error_px: float = 5.0,
    seed: int = 0,
    picture: np.ndarray | None = None,
    turn_deg: float = 0.0,
    scale: float = 1.0,
    backlash_px: float = 0.0,
    noise: float = 1.0,
    lamp: float = 0.0,
    shading: float = 0.0,
    glass: float = 0.0,
    glass_blob_px: float = 200.0,
    dtype: str = "uint8",
    channels: int = 3,
    told_error_px: float | None = None,
    lost: Mapping[int, tuple[float, float]] | None = None,
) -> Scene:
    """Cut a scan of rows x cols tiles; the stage's error is normal, clipped at three sigma an axis."""
    rng = np.random.default_rng(seed)
    (h, w), o = tile, overlap_px
    size = ((rows - 1) * (h - o) + h, (cols - 1) * (w - o) + w)
    plan = ScanPlan(ScanRegion(0, 0, size[1] / 1000 * 0.5, size[0] / 1000 * 0.5), h, w, 0.5, o)
    assert (plan.rows, plan.cols) == (rows, cols)
    skew = (abs(turn_deg) / 57 + abs(scale - 1)) * max(size)
    margin = int(4 * stage_error_px + 2 * HALF_TAPS + skew + abs(backlash_px)) + 30
    margin += int(max((abs(v) for shift in (lost or {}).values() for v in shift), default=0))
    whole = mirrored(textured(1200, 1200, seed) if picture is None else picture, *(n + 2 * margin for n in size))
    if glass:
        whole = with_glass(whole, glass, seed, glass_blob_px)
    turn = np.deg2rad(turn_deg)
    rotation = scale * np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    middle = np.array(size) / 2
    y, x = np.mgrid[-1 : 1 : h * 1j, -1 : 1 : w * 1j]
    shade = (1 - shading * (y**2 + x**2) / 2)[..., None].astype(np.float32)
    tiles, truth = [], []
    for target in plan:
        centre = np.add(plan.corner_px(target.row, target.col), [h / 2, w / 2])
        error = np.clip(rng.normal(0, 1, 2), -3, 3) * stage_error_px
        corner = rotation @ (centre - middle) + middle - [h / 2, w / 2] + error
        corner += np.add([0, backlash_px * (target.row % 2)], (lost or {}).get(target.index, (0, 0)))
        truth.append(corner)
        pixels = sampled(whole, *(corner + margin), h, w) * shade * (1 + rng.uniform(-lamp, lamp))
        pixels = pixels + noise * rng.standard_normal(pixels.shape, np.float32) if noise else pixels
        pixels = pixels if channels == 3 else pixels.mean(axis=2, keepdims=True)
        scale = 1 if dtype == "uint8" else 256
        pixels = np.clip(np.rint(pixels * scale), 0, np.iinfo(dtype).max).astype(dtype)
        position = Position(target.x_um, target.y_um, 0.0)
        tiles.append(Tile(target.index, target.row, target.col, position, position, pixels, None, Verdict.ACCEPTED))
    told = stage_error_px if told_error_px is None else told_error_px
    return Scene(plan, np.array(truth), tiles, told, margin, whole)

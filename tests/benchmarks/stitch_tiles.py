"""Tiles of a scan cut from one picture, as files: what every contestant of `stitch_bench` reads.

mild: sub-pixel places, stage sigma 5 px clipped at 15, one grey level of noise.
hard: and the camera turned by 0.2 degrees, a third bare glass, lamp +-1.5 % a tile, 4 % corner shading, 2 grey levels.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import tifffile
from register_scenes import GLASS, sampled, textured

from edge_scanner.plan import ScanPlan, ScanRegion

SIDE, OVERLAP, SIGMA = 1024, 102, 5.0
MARGIN = 120
LEAST_TISSUE = 0.1
SLIDE = "CMU-1-Small-Region.svs"


class Kind(NamedTuple):
    turn_deg: float = 0.0
    glass: float = 0.0
    noise: float = 1.0
    lamp: float = 0.0
    shading: float = 0.0


KINDS = {"mild": Kind(), "hard": Kind(0.2, 1 / 3, 2.0, 0.015, 0.04)}


def plan_of(grid: int) -> ScanPlan:
    side = ((grid - 1) * (SIDE - OVERLAP) + SIDE) / 2000
    return ScanPlan(ScanRegion(0, 0, side, side), SIDE, SIDE, 0.5, OVERLAP)


def picture(data: Path | None) -> np.ndarray:
    """Return real H&E where there is a folder of it, else seeded structure; (y, x, 3), uint8."""
    if data is not None:
        return tifffile.imread(data / "histology" / SLIDE, series=0)[..., :3]
    return textured(2400, 2400).astype(np.uint8)


def make(folder: Path, source: np.ndarray, grid: int, kind: Kind, seed: int = 1) -> None:
    """Write tiles, `tiles.csv` with their nominal places, the canvas they were cut from, and the truth."""
    folder.mkdir()
    plan, rng = plan_of(grid), np.random.default_rng(seed)
    canvas = _canvas(source, plan.height_px + 2 * MARGIN, kind.glass, seed)
    turn = np.deg2rad(kind.turn_deg)
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    middle = np.array([plan.height_px, plan.width_px]) / 2
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    shade = (1 - kind.shading * (y**2 + x**2) / 2)[..., None].astype(np.float32)
    truth, nominal = np.empty((len(plan), 2)), np.empty((len(plan), 2))
    for target in plan:
        nominal[target.index] = corner = np.array(plan.corner_px(target.row, target.col), float)
        error = np.clip(rng.normal(0, 1, 2), -3, 3) * SIGMA
        truth[target.index] = rotation @ (corner + SIDE / 2 - middle) + middle - SIDE / 2 + error
        pixels = sampled(canvas, *(truth[target.index] + MARGIN), SIDE, SIDE)
        pixels = pixels * shade * np.float32(1 + rng.uniform(-kind.lamp, kind.lamp))
        pixels += kind.noise * rng.standard_normal(pixels.shape, np.float32)
        pixels = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
        tifffile.imwrite(folder / name_of(target.index), pixels, photometric="rgb")
    list_places(folder / "tiles.csv", nominal)
    np.save(folder / "canvas.npy", canvas)
    grid_of = [[t.row, t.col] for t in plan]
    told = {"grid": grid, "nominal": nominal.tolist(), "truth": truth.tolist(), "at": grid_of}
    told["pairs"] = [[a, b] for a, b in _neighbours(plan) if _tissue(canvas, truth, a, b) >= LEAST_TISSUE]
    (folder / "told.json").write_text(json.dumps(told))


def name_of(index: int) -> str:
    return f"t{index:04d}.tif"


def list_places(path: Path, places: np.ndarray) -> None:
    rows = [f"{name_of(k)},{x!r},{y!r}" for k, (y, x) in enumerate(places.tolist())]
    path.write_text("\n".join(["file,x_px,y_px", *rows]) + "\n")


def _canvas(source: np.ndarray, side: int, glass: float, seed: int) -> np.ndarray:
    canvas = np.pad(source, [(0, max(0, side - n)) for n in source.shape[:2]] + [(0, 0)], "symmetric")[:side, :side]
    if not glass:
        return canvas
    field = np.random.default_rng(seed).standard_normal((side // 32 + 2,) * 2).astype(np.float32)
    field = cv2.resize(cv2.GaussianBlur(field, (0, 0), 400 / 32), (side, side), interpolation=cv2.INTER_CUBIC)
    bare = cv2.GaussianBlur((field < np.quantile(field, glass)).astype(np.float32), (0, 0), 3.0)
    for top in range(0, side, 512):
        share = bare[top : top + 512, :, None]
        canvas[top : top + 512] = np.rint(canvas[top : top + 512] * (1 - share) + GLASS * share)
    return canvas


def _neighbours(plan: ScanPlan) -> list[tuple[int, int]]:
    at = plan.index_at
    along = [(at(r, c), at(r, c + 1)) for r in range(plan.rows) for c in range(plan.cols - 1)]
    return along + [(at(r, c), at(r + 1, c)) for r in range(plan.rows - 1) for c in range(plan.cols)]


def _tissue(canvas: np.ndarray, truth: np.ndarray, a: int, b: int) -> float:
    """Return the share of the true overlap that is not glass."""
    low = np.maximum(truth[a], truth[b]).astype(int) + MARGIN
    high = np.minimum(truth[a], truth[b]).astype(int) + SIDE + MARGIN
    part = canvas[low[0] : high[0], low[1] : high[1]].mean(axis=2)
    return float((part < GLASS - 10).mean())

"""What a run is measured by: places against the truth, the mosaic against the specimen, the way that was gone."""

from __future__ import annotations

import math
import sqlite3
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_scanner import store
from edge_scanner.config import Config
from edge_scanner.geometry import Box
from edge_scanner.sim.specimen import open_specimen

RIM_PX = 16
Frames = list[tuple[int, float, float, float]]
"""(frame_id, x_um, y_um, z_um) of every exposure, true positions."""


def truth_px_p95(scan: Path, config: Config, frames: Frames) -> float | None:
    """Return p95 of how far the offset of grid neighbours is from the true one, pixels; None without neighbours.

    The true place of a tile is that of the exposure nearest to where the stage said it was.
    """
    shots = np.array([frame[1:3] for frame in frames])
    with sqlite3.connect(f"file:{scan}/journal.sqlite?mode=ro", uri=True) as db:
        rows = db.execute(
            "SELECT row, col, reached_x_um, reached_y_um, place_x_px, place_y_px FROM tile WHERE registered"
        ).fetchall()
    turn = _turn(config)
    errors: dict[tuple[int, int], NDArray[Any]] = {}
    for row, col, x_um, y_um, x_px, y_px in rows:
        true = shots[np.argmin(np.hypot(*(shots - (x_um, y_um)).T))]
        errors[row, col] = np.array((x_px, y_px)) - turn @ true / config.optics.pixel_size_um
    off = [
        float(np.linalg.norm(error - errors[other]))
        for (row, col), error in errors.items()
        for other in ((row + 1, col), (row, col + 1))
        if other in errors
    ]
    return round(float(np.percentile(off, 95)), 3) if off else None


def specimen_psnr_db(scan: Path, config: Config) -> float:
    """Return the PSNR of level 0 against the specimen as the camera lies; one shift of the whole allowed, no rim."""
    opened = store.open(scan / "slide.ome.zarr")
    level = opened.levels[0]
    h, w = level.height_px, level.width_px
    mosaic = opened.read(0, Box(0, 0, h, w)).astype(np.float32)
    true, known = _specimen(config, h, w)
    grey, true_grey = mosaic.mean(axis=2), true.mean(axis=2)
    (dx, dy), _ = cv2.phaseCorrelate(true_grey * known, grey * known, cv2.createHanningWindow((w, h), cv2.CV_32F))
    back = np.array([[1, 0, dx], [0, 1, dy]], np.float32)
    moved = cv2.warpAffine(mosaic, back, (w, h), flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP)
    inside = cv2.erode(known, np.ones((3, 3)), iterations=RIM_PX, borderType=cv2.BORDER_CONSTANT, borderValue=0) > 0
    error = (moved - true)[inside]
    return round(float(10 * np.log10(255**2 / np.mean(error**2))), 2)


def _turn(config: Config) -> NDArray[np.float64]:
    """Return the matrix (x, y) from the stage's axes to the camera's."""
    angle = math.radians(config.sim.rotation_deg)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    return np.diag([-1, 1]) @ turn if config.sim.mirror else turn


def _specimen(config: Config, h: int, w: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the specimen (y, x, c) as a mosaic of that size shows it, and where (1, else 0) it is known."""
    pixel_mm = config.optics.pixel_size_um / 1000
    width, height = round(config.sim.tissue_width_mm / pixel_mm), round(config.sim.tissue_height_mm / pixel_mm)
    specimen = open_specimen(config.sim, config.optics.pixel_size_um).read(0, 0, height, width).astype(np.float32)
    turn = _turn(config)
    corners = turn @ [[0, width, 0, width], [0, 0, height, height]]
    centre = turn @ [[0.5], [0.5]] - 0.5  # pixel centres lie half a pixel inside
    matrix = np.hstack([turn, centre - corners.min(axis=1, keepdims=True)])
    picture = cv2.warpAffine(specimen, matrix, (w, h), flags=cv2.INTER_CUBIC)
    return picture, cv2.warpAffine(np.ones((height, width), np.float32), matrix, (w, h), flags=cv2.INTER_NEAREST)


def path_svg(scan: Path, frames: Frames) -> str:
    """Return a plot of the targets (circles) and of where the exposures truly were (line), as SVG."""
    with sqlite3.connect(f"file:{scan}/journal.sqlite?mode=ro", uri=True) as db:
        targets = db.execute("SELECT target_x_um, target_y_um FROM tile").fetchall()
    every = np.array([*targets, *(frame[1:3] for frame in frames)])
    low, span = every.min(axis=0), max(float(np.ptp(every, axis=0).max()), 1.0)

    def at(x: float, y: float) -> tuple[str, str]:
        return tuple(f"{20 + 560 * (value - least) / span:.1f}" for value, least in zip((x, y), low, strict=True))  # type: ignore[return-value]

    line = " ".join(",".join(at(*frame[1:3])) for frame in frames)
    dots = "".join('<circle cx="{}" cy="{}" r="5" fill="none" stroke="#888"/>'.format(*at(*t)) for t in targets)
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" width="600" height="600"><rect width="600" height="600" fill="#fff"/>'
        f'{dots}<polyline points="{line}" fill="none" stroke="#c33" stroke-width="1.5"/></svg>\n'
    )

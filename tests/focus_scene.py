"""Scenes that the focus and acquisition tests look at: a half-empty slide, and a rig over it."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from edge_scanner.config import Config, load
from edge_scanner.devices.rig import Rig, build_rig

WIDTH_PX, HEIGHT_PX = 320, 256
PIXEL_UM = 0.5


def tissue(height: int, width: int, seed: int = 7) -> np.ndarray:
    """Pink and purple structure at scales from single pixels to half the frame, (y, x, 3) uint8."""
    rng = np.random.default_rng(seed)
    field = np.zeros((height, width), np.float32)
    for sigma in (0.7, 1.5, 4.0, 12.0, 40.0):
        layer = cv2.GaussianBlur(rng.standard_normal((height, width)).astype(np.float32), (0, 0), sigma)
        field += layer / layer.std()
    stain = 1 / (1 + np.exp(np.minimum(-field, 80)))[..., None]  # in a small frame the broad layers are steep
    return np.rint(235 - stain * np.array([70.0, 150.0, 80.0])).astype(np.uint8)


def half_slide(path: Path, height: int = 1024, width: int = 1600) -> Path:
    """Write a specimen whose left half is glass and whose right half is tissue."""
    picture = np.full((height, width, 3), 240, np.uint8)
    picture[:, width // 2 :] = tissue(height, width - width // 2)
    cv2.imwrite(str(path), picture[..., ::-1])
    return path


def scene_config(*overrides: str, slide: Path | None = None) -> Config:
    """A small camera over a slide, everything else as it comes."""
    small = [f"camera.width_px={WIDTH_PX}", f"camera.height_px={HEIGHT_PX}", f"optics.pixel_size_um={PIXEL_UM}"]
    where = [] if slide is None else [f"sim.slide={slide}"]
    return load(None, [*small, *where, *overrides])


def ready(config: Config) -> Rig:
    """A rig that is open, homed and lit."""
    rig = build_rig(config)
    rig.stage.open()
    rig.camera.open()
    rig.stage.home()
    rig.illumination.on()
    return rig

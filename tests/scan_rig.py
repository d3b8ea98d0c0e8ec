"""Small simulated scans for the tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edge_scanner import config as configs
from edge_scanner import store
from edge_scanner.calibrate import prepare
from edge_scanner.devices.rig import build_rig
from edge_scanner.geometry import Box
from edge_scanner.plan import ScanRegion
from edge_scanner.scanner.scan import Scan, make_plan

SMALL = (
    "camera.width_px=256",
    "camera.height_px=192",
    "optics.pixel_size_um=1.0",
    "sim.tissue_width_mm=1.2",
    "sim.tissue_height_mm=0.9",
    "scan.overlap=0.2",
    "storage.reserve_mb=0",
    "mosaic.codec=gzip",
    "mosaic.feather_px=24",
)
EXACT = ("sim.blur=false", "sim.noise=false", "sim.vignetting=false", "sim.surface=false", "focus.mode=off")


def small_config(root: Path, *more: str):
    return configs.load(None, [*SMALL, f'storage.root="{root}"', *more])


def homed_rig(config):
    rig = build_rig(config)
    rig.stage.open()
    rig.camera.open()
    rig.stage.home()
    return rig


def new_scan(config, folder: Path, *, rig=None, region=(0.0, 0.0, 0.8, 0.6), **hooks) -> Scan:
    folder.mkdir(parents=True)
    plan = make_plan(config, ScanRegion(*region))
    return Scan(config, rig or homed_rig(config), plan, folder, scan_id=folder.name, **hooks)


def calibrated_scan(config, folder: Path, *, region=(0.0, 0.0, 0.8, 0.6), **hooks) -> Scan:
    """A scan as the daemon makes it: calibrated first, on the same rig."""
    folder.mkdir(parents=True)
    rig, plan = homed_rig(config), make_plan(config, ScanRegion(*region))
    made = prepare(config, rig, plan, folder)
    return Scan(config, rig, plan, folder, scan_id=folder.name, prepared=made, **hooks)


def levels_of(folder: Path) -> list[np.ndarray]:
    opened = store.open(folder / "slide.ome.zarr")
    return [opened.read(k, Box(0, 0, v.height_px, v.width_px)) for k, v in enumerate(opened.levels)]

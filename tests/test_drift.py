"""The flat field follows a light that shifts, by glass seen in passing: found, applied, resumed, and by glass only."""

import shutil
from itertools import islice

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scan_rig import EXACT, calibrated_scan, homed_rig, levels_of, small_config

from edge_scanner import config as configs
from edge_scanner.abort import Abort
from edge_scanner.buffer import TileBuffer
from edge_scanner.calibrate import prepare
from edge_scanner.drift import LINES, MOST, Drift, followed, largest_change
from edge_scanner.geometry import Position
from edge_scanner.scanner.ending import measure
from edge_scanner.scanner.scan import Scan, run_nested
from edge_scanner.shading import Setting, correction, flat_field
from edge_scanner.state import Outcome
from edge_scanner.tile import Tile, Verdict

SHIFTING = (
    "sim.blur=false",
    "sim.surface=false",
    "focus.mode=off",
    "sim.tissue_width_mm=0.7",
    "sim.tissue_height_mm=1.9",
    "mosaic.feather_px=2",
    "mosaic.chunk_px=256",
)
TALL = (-0.3, 0.0, 1.1, 1.9)
"""Thirteen scan lines of five tiles, with a tile or two of glass in each."""
LEVELS = np.array([232.0, 225.0, 210.0])
HEIGHT, WIDTH = 192, 256
Y, X = (np.broadcast_to(a, (HEIGHT, WIDTH)) for a in np.ogrid[-1 : 1 : HEIGHT * 1j, -1 : 1 : WIDTH * 1j])
VIGNETTE = 1 - 0.12 * (Y**2 + X**2) / 2


def photo(light=1.0, noise=2.0, seed=0):
    """Return glass, vignetted, in a light that is `light` times the one of the start."""
    grain = np.random.default_rng(seed).normal(0, noise, (HEIGHT, WIDTH, 3)) if noise else 0
    return np.clip(np.rint((VIGNETTE * light)[..., None] * LEVELS + grain), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def drift():
    setting = Setting.of(configs.parse({"camera": {"width_px": WIDTH, "height_px": HEIGHT}}))
    flat = flat_field([photo(seed=s) for s in range(4)], None, setting, "now")
    return Drift(flat, correction(flat, balance=False))


def told(index, row, glass):
    where = Position(0, 0, 0)
    return Tile(index, row, 0, where, where, None, None, Verdict.BLANK, glass=glass)


@settings(max_examples=20, deadline=None)
@given(shape=st.tuples(*[st.floats(-0.01, 0.01)] * 5), level=st.floats(0.98, 1.02), noise=st.sampled_from([0.0, 2.0]))
def test_a_known_shift_of_the_light_is_read_and_corrected(drift, shape, level, noise):
    y, x, yy, xy, xx = shape
    light = 1 + y * Y + x * X + yy * (Y**2 - 1 / 3) + xy * X * Y + xx * (X**2 - 1 / 3)
    reading = drift.read(photo(level * light, noise))
    assert reading is not None
    found = np.reshape(reading, (6, 3))
    assert np.abs(found - np.array([level, *shape])[:, None]).max() < 0.0015
    even = drift._changed(found[1:]).apply(photo(level * light, 0)).astype(float)
    for channel in np.moveaxis(even, -1, 0):
        assert np.ptp(cv2.blur(channel, (16, 16))) < 0.006 * channel.mean()


def test_what_is_no_clean_glass_tells_nothing(drift):
    rng = np.random.default_rng(1)
    blobs = cv2.resize(rng.normal(1, 0.01, (6, 8)), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    assert drift.read(photo(blobs)) is None, "pale structure"
    assert drift.read(photo(1.3)) is None, "saturated"
    assert drift.read(photo(0.0, 0)) is None, "dark"


def test_dust_on_glass_leaves_its_reading(drift):
    dusty = photo()
    cv2.circle(dusty, (60, 50), 14, (90, 90, 90), -1)
    clean, seen = (np.array(drift.read(frame)) for frame in (photo(), dusty))
    assert np.abs(clean - seen).max() < 0.001


def test_neither_pale_tissue_nor_a_slanting_veil_bends_the_light(drift):
    """Bands of tissue on every other line; veils of all slants on a third of the tiles of each line."""
    rng = np.random.default_rng(2)
    tiles = []
    for row in range(12):
        clean, paler = drift.read(photo(seed=row)), drift.read(photo(0.95 + 0.03 * X, seed=row))
        veil = drift.read(photo(1 + 0.012 * (rng.uniform(-1, 1) * X + rng.uniform(-1, 1) * Y), seed=row))
        assert paler is not None
        assert veil is not None
        tiles += [told(4 * row, row, clean), told(4 * row + 1, row, veil), told(4 * row + 2, row, clean)]
        tiles.append(told(4 * row + 3, row, paler if row % 2 else clean))
    assert followed(tiles, 12) == []


@settings(max_examples=20)
@given(order=st.permutations(range(30)), before=st.integers(0, 10))
def test_the_order_in_which_tiles_are_told_of_does_not_matter(order, before):
    rng = np.random.default_rng(3)
    slope = np.array([[0.002], [0.001], [0], [0], [0]])
    tiles = [
        told(n, n // 3, tuple(np.concatenate([[[1.0]], slope * (n // 3) + rng.normal(0, 3e-4, (5, 1))]).ravel()))
        for n in range(30)
    ]
    straight, shuffled = followed(tiles, before), followed([tiles[n] for n in order], before)
    assert len(straight) == len(shuffled)
    assert all(np.array_equal(a, b) for a, b in zip(straight, shuffled, strict=True))
    assert (before > 3) == bool(straight) or before in (2, 3)


def test_a_lamp_that_runs_away_is_followed_to_a_limit():
    tiles = [told(n, n, (1.0, 0.01 * n, 0.0, 0.0, 0.0, 0.0)) for n in range(3 * LINES)]
    assert largest_change(followed(tiles, 3 * LINES)) == pytest.approx(MOST)
    broken = [told(n, n, (1.0, 0.2 * (n > 2), 0.0, 0.0, 0.0, 0.0)) for n in range(6)]
    assert followed(broken, 6) == [], "no light shifts so from one line to the next"


def finished(config, folder, region=TALL):
    scan = calibrated_scan(config, folder, region=region)
    run_nested(scan)
    report = measure(scan, TileBuffer(1, Abort()), Outcome.COMPLETED, wall_s=1.0, scan_s=1.0)
    scan.close()
    return scan, report


@pytest.fixture(scope="module")
def followed_scan(tmp_path_factory):
    root = tmp_path_factory.mktemp("followed")
    config = small_config(root, *SHIFTING, "sim.light_drift_per_mm=0.02")
    return config, *finished(config, root / "scan")


def test_seams_of_a_shifting_light_go(followed_scan, tmp_path):
    """Four percent in the corner over thirteen lines, hardly any feather."""
    _, _, report = followed_scan
    config = small_config(tmp_path, *SHIFTING, "sim.light_drift_per_mm=0.02", "scan.glass_update=false")
    _, without = finished(config, tmp_path / "scan")
    assert (without.glass_updates, without.glass_drift) == (0, 0)
    assert without.seam_step > 1.5
    assert report.seam_step <= 0.3
    assert report.psnr_db > without.psnr_db + 2
    assert report.glass_updates >= 8
    assert 0.03 < report.glass_drift <= 0.045


def test_a_resumed_scan_follows_the_light_as_the_whole_one_did(followed_scan, tmp_path):
    config, whole, _ = followed_scan
    live, folder = tmp_path / "live", tmp_path / "scan"
    broken = calibrated_scan(config, live, region=TALL)
    for tile in islice(broken.acquire(), 37):
        for numbered in broken.place(tile):
            broken.write(numbered)
    broken.checkpoint()
    shutil.copytree(live, folder)
    broken.close()
    rig = homed_rig(config)
    made = prepare(config, rig, whole.plan, folder)
    scan = Scan(config, rig, whole.plan, folder, scan_id="scan", prepared=made, resume=True)
    assert [tile.glass for tile in scan.recover()] == [r.tile.glass for r in whole.records.all()[:37]]
    run_nested(scan)
    scan.close()
    assert [r.tile.glass for r in scan.records.all()] == [r.tile.glass for r in whole.records.all()]
    assert all(np.array_equal(a, b) for a, b in zip(levels_of(folder), levels_of(whole.folder), strict=True))


def test_a_steady_light_is_left_bit_for_bit(tmp_path):
    pixels = []
    for update in ("true", "false"):
        config = small_config(tmp_path, *SHIFTING, f"scan.glass_update={update}")
        scan, report = finished(config, tmp_path / update, region=(-0.3, 0.0, 0.7, 0.6))
        assert (report.glass_updates, report.glass_drift) == (0, 0)
        assert report.blank >= 3
        pixels.append(levels_of(scan.folder)[0])
    assert np.array_equal(*pixels)


def test_without_glass_in_the_region_nothing_is_changed(tmp_path):
    coarse = np.random.default_rng(3).integers(60, 200, (60, 80, 3)).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "tissue.png"), cv2.resize(coarse, (1200, 900), interpolation=cv2.INTER_CUBIC))
    config = small_config(
        tmp_path, *EXACT, f'sim.slide="{tmp_path}/tissue.png"', "sim.light_drift_per_mm=0.05", "stage.matrix=nominal"
    )
    scan, report = finished(config, tmp_path / "scan", region=(0.2, 0.1, 0.7, 0.7))
    assert report.blank == 0
    assert {r.tile.glass for r in scan.records.all()} == {None}
    assert report.glass_updates == 0

"""A stage that loses steps in mid-scan: found, put right where several overlaps agree, and said."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from register_scenes import Scene, scene
from scan_rig import EXACT, homed_rig, levels_of, small_config

from edge_scanner.abort import Abort
from edge_scanner.buffer import TileBuffer
from edge_scanner.fuse.slide import fuse_slide
from edge_scanner.fuse.sources import open_source
from edge_scanner.plan import ScanRegion
from edge_scanner.register.slips import offsets
from edge_scanner.scanner.archive import Archive
from edge_scanner.scanner.ending import measure
from edge_scanner.scanner.scan import Scan, make_plan
from edge_scanner.sim.specimen import open_specimen
from edge_scanner.state import Outcome
from edge_scanner.tile import PlacedTile

SMALL = {"tile": (256, 256), "overlap_px": 48, "stage_error_px": 2.0}


def worst(case: Scene, placed: list[PlacedTile]) -> float:
    """Return the largest error (px) of a tile's place, the common offset of all left out."""
    error = np.array([[t.y_px, t.x_px] for t in sorted(placed, key=lambda t: t.index)]) - case.truth
    return float(np.abs(error - np.median(error, axis=0)).max())


def lost_from(first: int, last: int, y: float, x: float) -> dict[int, tuple[float, float]]:
    return dict.fromkeys(range(first, last), (y, x))


@pytest.mark.parametrize("first", [8, 12, 18, 22])
@pytest.mark.parametrize("along", [-100.0, 70.0])
def test_all_tiles_after_lost_steps_are_put_right(first: int, along: float) -> None:
    case = scene(5, 5, seed=first, lost=lost_from(first, 25, 0.0, along), **SMALL)
    registrar, placed = case.run()
    (said,) = registrar.summary().lost_steps
    assert (said.index, said.corrected) == (first, True)
    assert abs(said.x_px - along) < 6
    assert abs(said.y_px) < 6
    assert worst(case, placed) < 6, "relative to the others, no tile lies off by more than the stage's own error"
    assert np.percentile(case.pair_errors(placed), 95) <= 0.06


def test_a_stage_that_finds_its_steps_again_at_the_end_of_the_row() -> None:
    case = scene(5, 6, seed=2, lost=lost_from(14, 18, 0.0, -90.0), **SMALL)
    registrar, placed = case.run()
    assert [(s.index, s.corrected) for s in registrar.summary().lost_steps] == [(14, True), (18, True)]
    assert np.percentile(case.pair_errors(placed), 95) <= 0.06


def test_steps_lost_twice_and_any_order_of_arrival() -> None:
    lost = lost_from(9, 21, 0.0, -60.0) | lost_from(21, 30, 0.0, 30.0)
    case = scene(6, 5, seed=3, lost=lost, **SMALL)
    registrar, expected = case.run()
    assert [s.index for s in registrar.summary().lost_steps] == [9, 21]
    assert np.percentile(case.pair_errors(expected), 95) <= 0.06
    order = list(range(30))
    random.Random(1).shuffle(order)
    shuffled, placed = case.run(order)
    assert placed == expected
    assert shuffled.summary().lost_steps == registrar.summary().lost_steps


def test_lost_steps_that_only_one_pair_shows_are_bounded_and_said() -> None:
    """Lost across the rows: the strips of the rows show other specimen, one pair in the row sees it."""
    case = scene(5, 5, seed=4, lost=lost_from(12, 25, 100.0, 0.0), **SMALL)
    registrar, placed = case.run()
    assert [(s.index, s.corrected) for s in registrar.summary().lost_steps] == [(12, False)]
    stage = np.array([case.plan.corner_px(t.row, t.col) for t in case.plan])
    found = np.array([[t.y_px, t.x_px] for t in sorted(placed, key=lambda t: t.index)])
    assert np.abs(found - stage).max() <= 3 * 2 + 2


def test_no_scan_of_a_good_stage_is_said_to_have_lost_steps() -> None:
    case = scene(5, 5, seed=5, glass=0.5, glass_blob_px=90, **SMALL)
    assert case.run()[0].summary().lost_steps == ()


def test_a_grid_that_repeats_itself_moves_nothing() -> None:
    """Bars 32 px apart everywhere: any multiple of that matches as well, so the stage's place holds."""
    case = scene(4, 4, seed=6, **SMALL)
    y, x = np.mgrid[:256, :256]
    tiles = []
    for tile in case.tiles:
        oy, ox = (round(v) for v in case.truth[tile.index])
        bars = 120 + 60 * (np.sin((y + oy) * np.pi / 16) + np.sin((x + ox) * np.pi / 16))
        tiles.append(replace(tile, pixels=np.repeat(bars[..., None], 3, axis=2).astype(np.uint8)))
    registrar, placed = replace(case, tiles=tiles).run()
    stage = np.array([case.plan.corner_px(t.row, t.col) for t in case.plan])
    found = np.array([[t.y_px, t.x_px] for t in sorted(placed, key=lambda t: t.index)])
    assert np.abs(found - stage).max() <= 3 * 2 + 2
    assert not any(said.corrected for said in registrar.summary().lost_steps)


def test_islands_between_have_the_offset_of_the_tile_before() -> None:
    far = {(0, 4): (0.0, 50.0), (1, 5): (0.0, 51.0), (2, 6): (1.0, 50.0)}
    near = [(0, 1), (1, 2), (4, 5), (5, 6)]
    found = offsets(range(9), {0: (0.0, 5.0)}, near, far, 3.0)
    assert [found[i] for i in (0, 1, 2, 3)] == [(0.0, 5.0)] * 4
    assert [found[i] for i in (4, 5, 6, 7, 8)] == [(0.0, 55.0)] * 5
    apart = {**far, (1, 5): (0.0, 90.0)}
    assert set(offsets(range(9), {0: (0.0, 5.0)}, near, apart, 3.0).values()) == {(0.0, 5.0)}, "no three agree"


@pytest.fixture(scope="module")
def slipped(tmp_path_factory):
    """A scan of an exact stage that loses 90 um in the middle of its second row, and its kept tiles."""
    root = tmp_path_factory.mktemp("scans")
    config = small_config(root, *EXACT, "scan.keep_tiles=true", "mosaic.chunk_px=256")
    return config, run_slipping(config, "slipped")


def run_slipping(config, name):
    rig, plan = homed_rig(config), make_plan(config, ScanRegion(0.1, 0.1, 0.9, 0.7))
    folder = Archive(config).create(name, plan, "2026-01-01T00:00:00Z")
    scan = Scan(config, rig, plan, folder, scan_id=name)
    for tile in scan.acquire():
        if tile.index == 4:
            rig.stage.slip(90.0, 0.0)
        for numbered in scan.place(tile):
            scan.write(numbered)
    for numbered in scan.end():
        scan.write(numbered)
    scan.finish()
    scan.close()
    return scan


def test_the_mosaic_of_a_slipping_stage_is_the_specimen(slipped):
    config, scan = slipped
    (said,) = scan.registrar.summary().lost_steps
    assert (said.index, said.y_px, said.x_px, said.corrected) == (5, 0.0, 90.0, True)
    mosaic = levels_of(scan.folder)[0]
    specimen = open_specimen(config.sim, 1.0).read(100, 100, *mosaic.shape[:2])
    same = (mosaic == specimen).all(axis=2)
    assert same[:, 100:].all(), "where tiles lie, every pixel is the specimen's"
    assert same.mean() > 0.9, "only the band that the stage never came to is missing"


def test_a_slipping_scan_that_kept_its_tiles_fuses_to_the_same_pixels(slipped, tmp_path):
    _, scan = slipped
    fuse_slide(open_source(scan.folder), tmp_path / "slide.ome.zarr")
    for online, again in zip(levels_of(scan.folder), levels_of(tmp_path), strict=True):
        assert np.array_equal(online, again)


def test_the_report_says_where_steps_were_lost(slipped):
    _, scan = slipped
    report = measure(scan, TileBuffer(1, Abort()), Outcome.COMPLETED, wall_s=1.0, scan_s=1.0)
    assert report.lost_steps == [{"index": 5, "row": 1, "col": 2, "y_px": 0.0, "x_px": 90.0, "corrected": True}]
    assert report.truth_px_p95 == 0.0
    page = (scan.folder / "report.html").read_text()
    assert "Tile 5 (row 1, column 2): from here on the stage stood 90 px in x" in page

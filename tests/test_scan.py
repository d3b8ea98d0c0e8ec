"""Whole scans on the simulator: nested loops, threads, shuffled arrival, holes, blanks, exactness."""

import json
import random
from dataclasses import replace

import numpy as np
import pytest
from scan_rig import EXACT, homed_rig, levels_of, new_scan, small_config

from edge_scanner.abort import Abort
from edge_scanner.devices.illumination import Illumination
from edge_scanner.errors import AbortedError, DeviceError
from edge_scanner.geometry import Box
from edge_scanner.scanner.pipeline import Pipeline
from edge_scanner.scanner.scan import run_nested
from edge_scanner.sim.specimen import open_specimen
from edge_scanner.tile import Verdict

WRONG = ("sim.stage_error_um=3", "sim.backlash_um=2")


def same(a, b):
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def finished(scan):
    run_nested(scan)
    scan.close()
    return levels_of(scan.folder)


def test_threads_and_nested_loops_give_the_same_pixels(tmp_path):
    config = small_config(tmp_path, *WRONG, "scan.buffer_mb=0.3")
    nested = finished(new_scan(config, tmp_path / "nested"))
    scan = new_scan(config, tmp_path / "threads")
    pipeline = Pipeline(scan, Abort(), cancelled=lambda: False, on_tile=lambda _: None)
    pipeline.run()
    scan.close()
    assert same(nested, levels_of(scan.folder))
    assert pipeline.tiles.high_water_bytes <= 300_000
    assert nested[0].std() > 5, "the scan shows tissue"


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_order_in_which_tiles_arrive_changes_nothing(tmp_path, seed):
    config = small_config(tmp_path, *WRONG)
    scan = new_scan(config, tmp_path / "straight")
    tiles = list(scan.acquire())
    places = []
    for name, order in (("straight", tiles), ("shuffled", random.Random(seed).sample(tiles, len(tiles)))):
        other = scan if name == "straight" else new_scan(config, tmp_path / name)
        chunks = [c for tile in order for c in other.place(tile)] + list(other.end())
        for numbered in random.Random(seed).sample(chunks, len(chunks)):
            other.write(numbered)
        other.finish()
        other.close()
        places.append([r.placed for r in other.records.all()])
    assert places[0] == places[1]
    assert same(levels_of(tmp_path / "straight"), levels_of(tmp_path / "shuffled"))


def test_an_exact_rig_gives_back_the_specimen(tmp_path):
    config = small_config(tmp_path, *EXACT)
    level0 = finished(new_scan(config, tmp_path / "exact"))[0]
    truth = open_specimen(config.sim, 1.0).read(0, 0, *level0.shape[:2])
    assert np.array_equal(level0, truth)


@pytest.mark.parametrize("camera", [(1, 8), (1, 16), (3, 16)])
def test_mono_and_16_bit_cameras(tmp_path, camera):
    channels, bits = camera
    config = small_config(tmp_path, *EXACT, f"camera.channels={channels}", f"camera.bits={bits}")
    levels = finished(new_scan(config, tmp_path / "scan"))
    assert levels[0].shape == (600, 800, channels)
    assert levels[0].dtype == (np.uint8 if bits == 8 else np.uint16)
    assert levels[0].std() > (2 if bits == 8 else 500)


def with_hole(scan, index, verdict):
    """Run a scan in which one target's tile is rejected, or declared blank."""
    for tile in scan.acquire():
        if tile.index == index:
            pixels = None if verdict is Verdict.REJECTED else tile.pixels
            tile = replace(tile, pixels=pixels, verdict=verdict, reason="for the test")
        for numbered in scan.place(tile):
            scan.write(numbered)
    for numbered in scan.end():
        scan.write(numbered)
    scan.finish()
    scan.close()
    return levels_of(scan.folder)[0], scan


def test_a_rejected_tile_leaves_exactly_its_exclusive_area_and_a_blank_one_none(tmp_path):
    config = small_config(tmp_path, *EXACT, "mosaic.background=black")
    scan = new_scan(config, tmp_path / "rejected")
    gone = scan.plan.index_at(1, 1)
    covered = np.zeros((600, 800), bool)
    for t in scan.plan:
        if t.index != gone:
            y, x = scan.plan.corner_px(t.row, t.col)
            covered[max(0, y) : max(0, y + 192), max(0, x) : max(0, x + 256)] = True
    holed, scan = with_hole(scan, gone, Verdict.REJECTED)
    full = finished(new_scan(config, tmp_path / "full"))[0]
    assert (~covered).sum() > 10_000
    assert np.array_equal(holed[covered], full[covered])
    assert (holed[~covered] == 0).all()
    assert scan.mosaic.coverage == pytest.approx(covered.mean())
    blank, scan = with_hole(new_scan(config, tmp_path / "blank"), gone, Verdict.BLANK)
    assert np.array_equal(blank, full)
    assert scan.mosaic.coverage == 1


def test_a_cancelled_scan_is_completed_with_holes(tmp_path):
    config = small_config(tmp_path, *EXACT)
    count = [0]

    def cancelled():
        return count[0] >= 5

    scan = new_scan(config, tmp_path / "scan", aborted=cancelled)

    def on_tile(tile):
        count[0] += 1

    Pipeline(scan, Abort(), cancelled=cancelled, on_tile=on_tile).run()
    scan.close()
    records = scan.records.all()
    assert len(records) == len(scan.plan)
    assert sum(r.tile.verdict is Verdict.REJECTED for r in records) == len(scan.plan) - 5
    assert 0 < scan.mosaic.coverage < 1
    assert len(levels_of(scan.folder)) == len(scan.store.levels)


@pytest.mark.parametrize("where", ["stage", "store", "spool"])
def test_the_first_failure_of_any_thread_ends_the_scan_and_is_the_cause(tmp_path, where):
    config = small_config(tmp_path, *EXACT)
    scan = new_scan(config, tmp_path / "scan")
    failure = DeviceError("It broke.")

    def broken(*_args):
        raise failure

    if where == "stage":
        original = scan.acquire
        scan.acquire = lambda: (t if t.index < 4 else broken() for t in original())
    elif where == "store":
        scan.store.append = broken
    else:
        scan.spool.put = broken
    with pytest.raises(DeviceError) as caught:
        Pipeline(scan, Abort(), cancelled=lambda: False, on_tile=lambda _: None).run()
    assert caught.value is failure
    scan.close()


def test_an_abort_without_a_cause_ends_quietly_and_wakes_everybody(tmp_path):
    config = small_config(tmp_path, *EXACT, "scan.buffer_mb=0.2")
    abort = Abort()
    scan = new_scan(config, tmp_path / "scan", aborted=lambda: bool(abort))
    with pytest.raises(AbortedError):
        Pipeline(scan, abort, cancelled=lambda: False, on_tile=lambda t: abort.set() if t.index == 3 else None).run()
    scan.close()


class Stuck(Illumination):
    """Cannot be put off."""

    def on(self):
        pass

    def off(self):
        raise DeviceError("The lamp does not answer.")


def test_a_light_that_an_aborted_scan_leaves_on_is_told(tmp_path, caplog):
    config = small_config(tmp_path, *EXACT)
    abort = Abort()
    rig = replace(homed_rig(config), illumination=Stuck())
    scan = new_scan(config, tmp_path / "scan", rig=rig)
    with pytest.raises(AbortedError):
        Pipeline(scan, abort, cancelled=lambda: False, on_tile=lambda t: abort.set() if t.index == 3 else None).run()
    assert "While the scan was ending: The lamp does not answer." in caplog.text
    scan.close()


def test_spool_is_empty_afterwards_and_keeps_tiles_on_request(tmp_path):
    config = small_config(tmp_path, *EXACT)
    finished(new_scan(config, tmp_path / "plain"))
    assert not (tmp_path / "plain" / "spool").exists()
    kept = small_config(tmp_path, *EXACT, "scan.keep_tiles=true")
    scan = new_scan(kept, tmp_path / "kept")
    finished(scan)
    assert len(list((tmp_path / "kept" / "tiles").glob("*.tif"))) == len(scan.plan)


def test_the_journal_tells_every_target_and_every_chunk(tmp_path):
    import sqlite3

    config = small_config(tmp_path, *WRONG)
    scan = new_scan(config, tmp_path / "scan")
    finished(scan)
    db = sqlite3.connect(tmp_path / "scan" / "journal.sqlite")
    tiles = db.execute("SELECT idx, verdict, place_y_px, timings_ms FROM tile ORDER BY idx").fetchall()
    assert [t[0] for t in tiles] == list(range(len(scan.plan)))
    assert all(t[2] is not None and json.loads(t[3]) for t in tiles)
    stored = set(db.execute("SELECT level, row, col FROM chunk"))
    have = {
        (k, r, c)
        for k, level in enumerate(scan.store.levels)
        for r in range(level.rows)
        for c in range(level.cols)
        if scan.store.has(k, r, c)
    }
    assert stored == have


@pytest.mark.data
def test_a_real_slide_comes_out_as_it_went_in(tmp_path, shared_data):
    slide = shared_data / "histology" / "CMU-1-Small-Region.svs"
    more = ("camera.width_px=700", "camera.height_px=500", "mosaic.placement=pixel", f'sim.slide="{slide}"')
    config = small_config(tmp_path, *EXACT, *more)
    specimen = open_specimen(config.sim, 1.0)
    region = (0, 0, specimen.width_px / 1000, specimen.height_px / 1000)
    scan = new_scan(config, tmp_path / "scan", rig=homed_rig(config), region=region)
    level0 = finished(scan)[0]
    assert np.array_equal(level0, specimen.read(0, 0, *level0.shape[:2]))
    assert Box(0, 0, *level0.shape[:2]) == scan.frame.canvas

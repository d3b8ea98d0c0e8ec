"""A scan that was broken off anywhere goes on to the very same pixels, and captures nothing durable again."""

import json
import shutil
import sqlite3
from contextlib import closing
from itertools import chain, islice

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scan_rig import homed_rig, levels_of, new_scan, small_config

from edge_scanner.errors import ScannerError
from edge_scanner.journal import Journal
from edge_scanner.plan import ScanRegion
from edge_scanner.scanner import build
from edge_scanner.scanner.archive import Archive
from edge_scanner.scanner.scan import Scan, make_plan, run_nested

WRONG = ("sim.stage_error_um=3", "sim.backlash_um=2", "mosaic.codec=jpeg", "mosaic.chunk_px=256")
REGION = (0.0, 0.0, 1.0, 0.9)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """An uninterrupted scan: configuration, folder, levels."""
    root = tmp_path_factory.mktemp("straight")
    config = small_config(root, *WRONG)
    scan = new_scan(config, root / "scan", region=REGION)
    run_nested(scan)
    scan.close()
    return config, scan, levels_of(root / "scan")


def crashed(config, folder, tiles, chunks, checkpoint, commit):
    """Run a part of a scan, and leave its folder as a crash would: nothing flushed, nothing closed."""
    live = folder.with_name("live")
    scan = new_scan(config, live, region=REGION)
    written = 0
    for n, tile in enumerate(islice(scan.acquire(), tiles)):
        for numbered in scan.place(tile):
            if written < chunks:
                scan.write(numbered)
                written += 1
        if checkpoint and n % checkpoint == checkpoint - 1:
            scan.checkpoint()
        if commit and n % commit == commit - 1:
            scan.commit()
    shutil.copytree(live, folder)
    scan.close()
    shutil.rmtree(live)
    return scan.durable_tiles


def resumed(config, plan, folder):
    captured = []
    scan = Scan(config, homed_rig(config), plan, folder, scan_id="scan", resume=True)
    scan.recover()
    acquire = scan.acquirer.run

    def counting(targets):
        for tile in acquire(targets):
            captured.append(tile.index)
            yield tile

    scan.acquirer.run = counting
    run_nested(scan)
    scan.close()
    return scan, captured


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    tiles=st.integers(0, 30), chunks=st.integers(0, 40), checkpoint=st.integers(0, 5), commit=st.integers(0, 9)
)  # fmt: skip
def test_resumed_equals_uninterrupted(straight, tmp_path_factory, tiles, chunks, checkpoint, commit):
    config, whole, expected = straight
    folder = tmp_path_factory.mktemp("crash") / "scan"
    durable = crashed(config, folder, tiles, chunks, checkpoint, commit)
    scan, captured = resumed(config, whole.plan, folder)
    assert len(captured) == len(whole.plan) - durable, "durable tiles are not captured again"
    places = [(r.placed.y_px, r.placed.x_px, r.placed.registered) for r in scan.records.all()]
    assert places == [(r.placed.y_px, r.placed.x_px, r.placed.registered) for r in whole.records.all()]
    for ours, theirs in zip(levels_of(folder), expected, strict=True):
        assert np.array_equal(ours, theirs)
    assert not (folder / "spool").exists()


def test_a_damaged_spooled_frame_is_captured_again_and_a_damaged_chunk_made_again(straight, tmp_path):
    config, whole, expected = straight
    folder = tmp_path / "scan"
    durable = crashed(config, folder, 14, 99, 1, 7)
    frame = sorted((folder / "spool").glob("*.tif"))[-1]
    data = bytearray(frame.read_bytes())
    data[-1000:-900] = bytes(100)
    frame.write_bytes(data)
    _, captured = resumed(config, whole.plan, folder)
    assert int(frame.stem) in captured
    assert len(captured) == len(whole.plan) - durable + 1
    for ours, theirs in zip(levels_of(folder), expected, strict=True):
        assert np.array_equal(ours, theirs)


def test_the_list_tells_what_a_cancelled_scan_took_of_what_was_planned(tmp_path):
    archive = Archive(config := small_config(tmp_path))
    plan = make_plan(config, ScanRegion(0.0, 0.0, 0.8, 0.6))
    folder = archive.create("scan", plan, "2026-01-01T00:00:00Z")
    with closing(Scan(config, homed_rig(config), plan, folder, scan_id="scan")) as scan:
        tiles = islice(scan.acquire(), 5)
        for tile in chain(tiles, scan.skip("cancelled")):
            for numbered in scan.place(tile):
                scan.write(numbered)
        scan.commit()
        scan.journal.note("outcome", "cancelled")
    (entry,) = archive.list()
    assert (entry["outcome"], entry["done"], entry["tiles"]) == ("cancelled", 5, len(plan))


def test_a_scan_of_an_earlier_version_goes_on_where_new_keys_have_their_defaults(tmp_path):
    config = small_config(tmp_path)
    plan = make_plan(config, ScanRegion(0.0, 0.0, 0.8, 0.6))
    told = Archive(config).create("scan", plan, "2026-01-01T00:00:00Z") / "scan.json"
    earlier = json.loads(told.read_text())
    del earlier["config"]["scan"]["glass_update"], earlier["config"]["illumination"]
    told.write_text(json.dumps(earlier))
    harmless = ("focus.max_failed=7", "scan.buffer_mb=64", "stage.timeout_s=9", "export.auto=false")
    for changed in ((), harmless):
        assert Archive(small_config(tmp_path, *changed)).unfinished("scan")[1] == plan
    for other in ("scan.glass_update=false", "illumination.level=0.5", "focus.max_frames=9", "sim.seed=7"):
        with pytest.raises(ScannerError, match=other.split("=")[0]) as refused:
            Archive(small_config(tmp_path, other)).unfinished("scan")
        assert refused.value.code == "plan.differs"


def test_a_closed_journal_is_one_file_and_reading_leaves_it_so(tmp_path):
    archive = Archive(config := small_config(tmp_path))
    folder = archive.create("sc?n", make_plan(config, ScanRegion(0.0, 0.0, 0.8, 0.6)), "2026-01-01T00:00:00Z")
    path = folder / "journal.sqlite"
    with closing(Journal(path)) as journal:
        journal.note("outcome", "failed")
        assert archive.list()[0]["outcome"] == "failed", "read while it is written"
    assert archive.list()[0]["outcome"] == "failed"
    assert [file.name for file in folder.glob("journal*")] == [path.name]
    journal = Journal(path)
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as reader:
        reader.execute("SELECT * FROM scan").fetchall()
        journal.note("outcome", "completed")
        journal.close()
        shutil.copy(path, tmp_path / "alone.sqlite")
    with closing(sqlite3.connect(tmp_path / "alone.sqlite")) as alone:
        assert alone.execute("SELECT value FROM scan WHERE key = 'outcome'").fetchone() == ('"completed"',)


def test_group_sizes_do_not_show(straight, tmp_path, monkeypatch):
    config, _, expected = straight
    monkeypatch.setattr(build, "COMMIT_CHUNKS", 3)
    monkeypatch.setattr(build, "CHECKPOINT_TILES", 2)
    scan = new_scan(config, tmp_path / "scan", region=REGION)
    run_nested(scan)
    scan.close()
    for ours, theirs in zip(levels_of(tmp_path / "scan"), expected, strict=True):
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize(("change", "says"), [("sim.scale_error=0.04", "has moved by"), ("sim.seed=99", "recognised")])
def test_another_slide_or_a_moved_one_is_refused(straight, tmp_path, change, says):
    config, whole, _ = straight
    folder = tmp_path / "scan"
    crashed(config, folder, 14, 99, 1, 7)
    rig = homed_rig(small_config(tmp_path, *WRONG, change))
    scan = Scan(config, rig, whole.plan, folder, scan_id="scan", resume=True)
    scan.recover()
    with pytest.raises(ScannerError, match=says) as refused:
        scan.check_slide()
    assert refused.value.code == "plan.differs"
    scan.close()
    same = Scan(config, homed_rig(config), whole.plan, folder, scan_id="scan", resume=True)
    same.recover()
    same.check_slide()
    same.close()

"""The settle pass: what the whole solve knows better comes into the store, and no instant of it can lose the slide."""

from __future__ import annotations

import shutil
from contextlib import closing
from dataclasses import replace
from itertools import count

import numpy as np
import pytest
from register_scenes import GLASS, Scene, scene
from scan_rig import levels_of, small_config
from scene_build import build

from edge_scanner import config as configs
from edge_scanner.errors import AbortedError, ConfigError
from edge_scanner.fuse.slide import fuse_slide
from edge_scanner.fuse.sources import open_source
from edge_scanner.journal import Journal
from edge_scanner.plan import ScanRegion
from edge_scanner.scanner import settling
from edge_scanner.scanner.archive import Archive
from edge_scanner.scanner.scan import make_plan, run_nested
from edge_scanner.scanner.settling import settle
from edge_scanner.tile import PlacedTile


def arch() -> Scene:
    """Two pillars of tissue with glass between, which only the last of seven rows joins."""
    size = {"tile": (192, 192), "overlap_px": 40}
    made = scene(7, 5, seed=31, stage_error_px=3.0, noise=1.0, **size)
    tiles = []
    for tile in made.tiles:
        if tile.col == 2 and tile.row < 6:
            tile = replace(tile, pixels=np.full_like(tile.pixels, round(GLASS)))
        tiles.append(tile)
    return replace(made, tiles=tiles)


@pytest.fixture(scope="module")
def case():
    return arch()


@pytest.fixture
def scanned(case, tmp_path):
    made = build(case, tmp_path, "arch")
    run_nested(made)
    yield made
    made.close()


def places(made) -> list[PlacedTile]:
    return [r.placed for r in made.records.all()]


def joint_error(made, case: Scene) -> float:
    """Return the largest error (px) between neighbours of tissue."""
    found = {t.index: np.array([t.y_px, t.x_px]) for t in places(made)}
    glass = {t.index for t in case.tiles if t.col == 2 and t.row < 6}
    return max(
        float(np.linalg.norm(found[b] - found[a] - case.truth[b] + case.truth[a]))
        for a, b in case.neighbours()
        if not {a, b} & glass
    )


def test_what_joins_late_is_settled(scanned, case, tmp_path):
    online, before = joint_error(scanned, case), levels_of(scanned.folder)[0]
    assert online > 0.3, "or there would be nothing to settle"
    moved = settle(scanned)
    assert moved is not None
    assert moved > 3
    assert joint_error(scanned, case) < 0.15
    after = levels_of(scanned.folder)[0]
    assert after.shape == before.shape
    assert not np.array_equal(after, before)
    assert np.array_equal(scanned.store.read(0, scanned.frame.canvas), after), "the build goes on with the new store"
    fuse_slide(open_source(scanned.folder), tmp_path / "slide.ome.zarr")
    for a, b in zip(levels_of(scanned.folder), levels_of(tmp_path), strict=True):
        assert np.array_equal(a, b), "the journal has the settled places"
    scanned.commit()
    assert np.array_equal(levels_of(scanned.folder)[0], after), "nothing of the old store is written into the new one"
    settling.discard(scanned.folder)
    assert not (scanned.folder / "settling").exists()


def test_a_scan_broken_off_after_the_pass_takes_its_own_store_back(scanned, case, tmp_path):
    before, online = levels_of(scanned.folder), places(scanned)
    assert settle(scanned)
    settled = levels_of(scanned.folder)
    scanned.close()
    again = build(case, tmp_path, "arch", resume=True)
    assert "settled" not in again.store.metadata.settings
    assert len(again.recover()) == len(case.tiles)
    run_nested(again)
    assert places(again) == online
    for a, b in zip(levels_of(again.folder), before, strict=True):
        assert np.array_equal(a, b)
    assert settle(again)
    for a, b in zip(levels_of(again.folder), settled, strict=True):
        assert np.array_equal(a, b)
    again.close()


def test_a_scan_broken_off_within_the_pass_keeps_its_store(scanned, case, tmp_path):
    before = levels_of(scanned.folder)
    assert settle(scanned, cancelled=lambda: True) is None
    assert not (scanned.folder / "settling").exists()
    (scanned.folder / "settling").mkdir()
    shutil.copytree(scanned.folder / "slide.ome.zarr", scanned.folder / "settling" / "slide.ome.zarr.partial")
    scanned.close()
    again = build(case, tmp_path, "arch", resume=True)
    again.recover()
    run_nested(again)
    assert not (again.folder / "settling").exists()
    for a, b in zip(levels_of(again.folder), before, strict=True):
        assert np.array_equal(a, b)
    again.close()


def test_a_start_removes_what_a_kill_behind_the_outcome_left_and_nothing_of_unfinished_scans(tmp_path):
    archive = Archive(small_config(tmp_path))
    plan = make_plan(small_config(tmp_path), ScanRegion(0.0, 0.0, 0.8, 0.6))
    for name in ("completed", "cancelled", "failed", "unfinished"):
        folder = archive.create(name, plan, "2026-01-01T00:00:00Z")
        with closing(Journal(folder / "journal.sqlite")) as journal:
            journal.note("outcome", None if name == "unfinished" else name)
        (folder / "settling" / "slide.ome.zarr").mkdir(parents=True)
        (folder / "spool").mkdir()
        (folder / "spool" / "000000.half").touch()
    for part in ("settling", "spool"):
        (archive.create(f"bare-{part}", plan, "2026-01-01T00:00:00Z") / part).mkdir()
    archive.prepare()
    for part in ("settling", "spool"):
        left = {path.parent.name for path in tmp_path.glob(f"*/{part}")}
        assert left == {"failed", "unfinished", f"bare-{part}"}, "a scan that is gone on with takes its own back"


def test_a_scan_that_is_right_is_left_alone(tmp_path):
    fine = scene(4, 3, seed=32, tile=(192, 192), overlap_px=40, stage_error_px=2.0)
    made = build(fine, tmp_path, "fine")
    run_nested(made)
    before = (made.folder / "slide.ome.zarr").stat().st_ino
    assert settle(made) == 0
    assert (made.folder / "slide.ome.zarr").stat().st_ino == before
    made.close()


def test_a_cancelled_pass_ends_at_once_within_the_solve_too(tmp_path):
    small = scene(3, 2, seed=32, tile=(192, 192), overlap_px=40, stage_error_px=2.0)
    made = build(small, tmp_path, "small")
    run_nested(made)
    polls = count()
    made.solve_whole(lambda: next(polls) < 0)
    whole = next(polls)
    assert whole > len(small.tiles), "asked at every tile, and at every solve"
    for last in range(whole):
        polls = count()
        with pytest.raises(AbortedError):
            made.solve_whole(lambda last=last, polls=polls: next(polls) >= last)
        assert next(polls) == last + 1, "nothing is done once it is cancelled"
    before = levels_of(made.folder)
    polls = count()
    assert settle(made, lambda: next(polls) >= whole - 1) is None
    assert all(np.array_equal(a, b) for a, b in zip(levels_of(made.folder), before, strict=True))
    made.close()


def test_a_pass_without_tiles_is_refused():
    with pytest.raises(ConfigError, match="settle_pass"):
        configs.load(None, ["scan.settle_pass=true"])
    assert configs.load(None, ["scan.settle_pass=true", "scan.keep_tiles=true"]).scan.settle_pass

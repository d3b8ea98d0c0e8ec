"""A scan that kept its tiles, fused again: its own mosaic, bit for bit."""

import json
import shutil
import sqlite3
from contextlib import closing

import numpy as np
import pytest
from scan_rig import homed_rig, levels_of, small_config

from edge_scanner.errors import SourceError
from edge_scanner.fuse.slide import fuse_slide
from edge_scanner.fuse.sources import open_source
from edge_scanner.plan import ScanRegion
from edge_scanner.scanner.archive import Archive
from edge_scanner.scanner.scan import Scan, make_plan, run_nested
from edge_scanner.store import SlideStore


@pytest.fixture(
    scope="module",
    params=[["placement=cubic"], ["placement=pixel"], ["blend=seam", "registration=false"]],
    ids=["cubic", "pixel", "seam"],
)
def scanned(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("scans")
    config = small_config(
        root, "scan.keep_tiles=true", "sim.stage_error_um=3", "sim.noise=false", "focus.mode=off",
        "mosaic.chunk_px=256", *(f"mosaic.{option}" for option in request.param),
    )  # fmt: skip
    plan = make_plan(config, ScanRegion(0.0, 0.0, 0.6, 0.5))
    folder = Archive(config).create("kept", plan, "2026-01-01T00:00:00Z")
    scan = Scan(config, homed_rig(config), plan, folder, scan_id="kept")
    run_nested(scan)
    scan.close()
    return folder


def test_fusing_a_kept_scan_gives_its_mosaic_again(scanned, tmp_path):
    report = fuse_slide(open_source(scanned), tmp_path / "slide.ome.zarr")
    online, again = levels_of(scanned), levels_of(tmp_path)
    assert report.tiles == 9
    assert len(online) == len(again) > 1
    assert online[0].std() > 5, "an empty picture would prove nothing"
    for a, b in zip(online, again, strict=True):
        assert np.array_equal(a, b)
    cut = json.loads((scanned / "scan.json").read_text())["config"]["mosaic"]["blend"] == "seam"
    fuse_slide(open_source(scanned), tmp_path / "o" / "slide.ome.zarr", blend="linear")
    assert np.array_equal(online[0], levels_of(tmp_path / "o")[0]) != cut, "seam is another picture than linear"
    a, b = (SlideStore.open(p) for p in (scanned / "slide.ome.zarr", tmp_path / "slide.ome.zarr"))
    assert a.metadata == b.metadata


def test_a_scan_of_a_version_without_gains_is_fused_as_it_was(scanned, tmp_path):
    shutil.copytree(scanned, tmp_path / "old")
    with closing(sqlite3.connect(tmp_path / "old" / "journal.sqlite")) as db:
        db.execute("ALTER TABLE tile DROP COLUMN gain")
    told = open_source(tmp_path / "old")
    assert told.gains == (1.0,) * len(told.tiles)


def test_a_scan_without_tiles_is_refused(scanned, tmp_path):
    (tmp_path / "scan.json").write_text((scanned / "scan.json").read_text())
    with pytest.raises(SourceError, match="did not keep"):
        open_source(tmp_path)

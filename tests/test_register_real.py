"""A real scan: nine camera tiles from a wrong grid to where they belong."""

import csv

import numpy as np
import pytest

from edge_scanner.fuse.align import align
from edge_scanner.fuse.sources import open_source

SIGMA_PX = 30.0
GIVEN_TO_PX = 4.0
"""The given positions' own accuracy."""


@pytest.mark.data
def test_nine_camera_tiles_find_their_places(shared_data, tmp_path):
    folder = shared_data / "tile_scans" / "HE_3x3_serpentine"
    with (folder / "positions.csv").open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    given = np.array([[float(r["y_px"]), float(r["x_px"])] for r in rows])
    wrong = given + np.random.default_rng(1).normal(0, SIGMA_PX, given.shape)
    listed = ["file,x_px,y_px"]
    for r, (y, x) in zip(rows, wrong.tolist(), strict=True):
        (tmp_path / r["file"]).symlink_to(folder / r["file"])
        listed.append(f"{r['file']},{x!r},{y!r}")
    (tmp_path / "tiles.csv").write_text("\n".join(listed) + "\n")
    found = align(open_source(tmp_path / "tiles.csv"), SIGMA_PX, 100_000_000)
    off = np.array([[m[1, 2], m[0, 2]] for m in found.transforms]) - given
    off -= np.median(off, axis=0)
    assert np.abs(wrong - given - np.median(wrong - given, axis=0)).max() > 40, "they start far off"
    assert np.abs(off).max() <= GIVEN_TO_PX
    assert found.edges >= 2 * 6
    assert found.residual_px_p95 < 2.0

"""The report's figures and map of the overlaps, against loops and residuals that were put in."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import numpy as np
import pytest

from edge_scanner.geometry import Position
from edge_scanner.plan import ScanPlan, ScanRegion
from edge_scanner.record import TileRecord
from edge_scanner.register import Match, Pair
from edge_scanner.register.pairwise import NO_MATCH
from edge_scanner.report.registration import LEFT_OUT, USED, agreement, write_svg
from edge_scanner.tile import PlacedTile, Tile, Verdict

PLAN = ScanPlan(ScanRegion(0, 0, 0.260, 0.180), 100, 100, 1.0, 20)


def neighbours():
    at = PLAN.index_at
    along = [(at(r, c), at(r, c + 1)) for r in range(PLAN.rows) for c in range(PLAN.cols - 1)]
    return along + [(at(r, c), at(r + 1, c)) for r in range(PLAN.rows - 1) for c in range(PLAN.cols)]


def pairs_of(displacement, wrong=None, unseen=()):
    """Pairs that measure the displacement (n, 2) of tiles exactly, but for one that is off by (3, 4)."""
    made = []
    for a, b in neighbours():
        dy, dx = displacement[b] - displacement[a] + ((3, 4) if (a, b) == wrong else (0, 0))
        found = NO_MATCH if (a, b) in unseen else Match(float(dy), float(dx), 0.01, 1.0, 1.0)
        used = (a, b) != wrong and (a, b) not in unseen
        made.append(Pair(a, b, found, used, 0.0))
    return made


def records_at(displacement):
    made = []
    for t in PLAN:
        y, x = np.add(PLAN.corner_px(t.row, t.col), displacement[t.index])
        tile = Tile(t.index, t.row, t.col, Position(t.x_um, t.y_um, 0.0), None, None, None, Verdict.ACCEPTED)
        made.append(TileRecord(tile, PlacedTile(t.index, float(y), float(x), Verdict.ACCEPTED, True, 0.0)))
    return made


@pytest.fixture
def displacement():
    return np.random.default_rng(1).normal(0, 2, (len(PLAN), 2))


def test_loops_of_true_shifts_close(displacement):
    found = agreement(pairs_of(displacement), PLAN, PLAN.frame())
    assert (PLAN.rows, PLAN.cols) == (2, 3)
    assert (found.pairs, found.used) == (7, 7)
    assert found.closure_px.shape == (2,)
    assert found.closure_px.max() < 1e-9


def test_a_wrong_pair_opens_the_loops_that_it_is_in(displacement):
    middle = PLAN.index_at(0, 1), PLAN.index_at(1, 1)
    found = agreement(pairs_of(displacement, wrong=middle), PLAN, PLAN.frame())
    assert np.allclose(found.closure_px, 5.0)
    assert (found.pairs, found.used) == (7, 6)
    corner = PLAN.index_at(0, 0), PLAN.index_at(0, 1)
    assert agreement(pairs_of(displacement, unseen=[corner]), PLAN, PLAN.frame()).closure_px.size == 1


def test_the_map_shows_every_pair_where_it_lies(displacement, tmp_path):
    wrong, unseen = (PLAN.index_at(0, 1), PLAN.index_at(1, 1)), (PLAN.index_at(0, 0), PLAN.index_at(0, 1))
    path = tmp_path / "registration.svg"
    write_svg(path, pairs_of(displacement, wrong, [unseen]), PLAN, PLAN.frame(), records_at(displacement))
    svg = ET.fromstring(path.read_text())
    space = {"s": "http://www.w3.org/2000/svg"}
    lines, dots = svg.findall(".//s:g/s:line", space), svg.findall(".//s:circle", space)
    assert (len(lines), len(dots)) == (6, 7)
    (red,) = [line for line in lines if line.get("stroke") == LEFT_OUT]
    dy, dx = (float(red.get(f"{a}2")) - float(red.get(f"{a}1")) for a in "yx")
    assert dy / dx == pytest.approx(3 / 4, rel=0.05)
    still = [line for line in lines if line.get("stroke") == USED]
    assert all(line.get("x1") == line.get("x2") and line.get("y1") == line.get("y2") for line in still)
    scale = 900 / PLAN.width_px
    assert float(red.get("x1")) / scale == pytest.approx(PLAN.corner_px(0, 1)[1] + 50, abs=5)
    assert float(red.get("y1")) / scale == pytest.approx(90, abs=5)


def test_a_scan_without_pairs_has_a_map_too(tmp_path):
    none = np.zeros((len(PLAN), 2))
    assert agreement([], PLAN, PLAN.frame()).closure_px.size == 0
    write_svg(tmp_path / "registration.svg", [], PLAN, PLAN.frame(), records_at(none))
    assert ET.fromstring((tmp_path / "registration.svg").read_text()).tag.endswith("svg")

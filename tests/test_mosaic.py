"""The mosaic against a brute-force canvas: any order, any verdicts, holes of exactly the exclusive area."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from edge_scanner.geometry import Box
from edge_scanner.mosaic import Mosaic
from edge_scanner.mosaic.kernel import gather
from edge_scanner.mosaic.source import Source, place, resampled, typed
from edge_scanner.mosaic.weights import ramp
from edge_scanner.plan import ScanPlan, ScanRegion
from edge_scanner.tile import PlacedTile, Verdict

CHUNK = 32
FILL = 255


class Frames:
    """Frames in memory; counts what is dropped."""

    def __init__(self, frames):
        self.frames = frames
        self.dropped = []

    def crop(self, index, box):
        return self.frames[index][box.y0 : box.y1, box.x0 : box.x1]

    def drop(self, index):
        self.dropped.append(index)


def canvas_of(mosaic, plan, placed):
    out = np.full((plan.height_px, plan.width_px, 3), FILL, np.uint8)
    seen = []
    for p in placed:
        for chunk in mosaic.add(p):
            seen.append((chunk.row, chunk.col))
            if chunk.pixels is not None:
                h, w = chunk.pixels.shape[:2]
                out[chunk.row * CHUNK :, chunk.col * CHUNK :][:h, :w] = chunk.pixels
    rows, cols = -(-plan.height_px // CHUNK), -(-plan.width_px // CHUNK)
    assert sorted(seen) == [(r, c) for r in range(rows) for c in range(cols)], "each chunk exactly once"
    return out


def brute(plan, placed, frames, feather):
    """The whole canvas at once, in double precision."""
    h, w = plan.tile_height_px, plan.tile_width_px
    pad = 200
    total = np.zeros((plan.height_px + 2 * pad, plan.width_px + 2 * pad, 3))
    weight = np.zeros(total.shape[:2])
    weights = np.outer(ramp(h, feather), ramp(w, feather)).astype(float)
    for p in placed:
        if p.verdict is not Verdict.REJECTED:
            y, x = int(np.floor(p.y_px + 0.5)) + pad, int(np.floor(p.x_px + 0.5)) + pad
            total[y : y + h, x : x + w] += frames[p.index] * weights[..., None]
            weight[y : y + h, x : x + w] += weights
    covered = weight > 0
    mean = np.where(covered[..., None], total / np.maximum(weight, 1e-9)[..., None], FILL)
    inner = slice(pad, -pad)
    return mean[inner, inner], covered[inner, inner]


@st.composite
def scans(draw):
    tile_h, tile_w = draw(st.integers(20, 70)), draw(st.integers(20, 70))
    overlap = draw(st.integers(0, min(tile_h, tile_w) // 2))
    height, width = draw(st.integers(1, 150)), draw(st.integers(1, 150))
    plan = ScanPlan(ScanRegion(0, 0, width / 1000, height / 1000), tile_h, tile_w, 1.0, overlap)
    seed = draw(st.integers(0, 2**16))
    return plan, seed, draw(st.integers(1, 40))


@settings(deadline=None, max_examples=60)
@given(scans())
def test_equals_brute_force_in_any_order(scan):
    plan, seed, feather = scan
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (len(plan), plan.tile_height_px, plan.tile_width_px, 3), dtype=np.uint8)
    placed = []
    for t in plan:
        y, x = plan.corner_px(t.row, t.col)
        dy, dx = rng.integers(-6, 7, 2)
        verdict = rng.choice([Verdict.ACCEPTED, Verdict.BLANK, Verdict.REJECTED], p=[0.6, 0.2, 0.2])
        placed.append(PlacedTile(t.index, float(y + dy), float(x + dx), verdict))
    expected, covered = brute(plan, placed, frames, feather)
    results = []
    for order in (placed, random.Random(seed).sample(placed, len(placed))):
        source = Frames(frames)
        mosaic = Mosaic(plan, plan.frame(), source, margin_px=6, channels=3, dtype=np.dtype(np.uint8), fill=FILL,
                        feather_px=feather, cubic=False, chunk_px=CHUNK)  # fmt: skip
        results.append(canvas_of(mosaic, plan, order))
        assert mosaic.complete
        assert mosaic.coverage == pytest.approx(covered.mean())
        kept = {p.index for p in placed if p.verdict is not Verdict.REJECTED}
        assert len(source.dropped) == len(set(source.dropped))
        assert set(source.dropped) <= kept
    assert np.array_equal(*results), "the order of arrival shows"
    assert np.abs(results[0] - expected).max() <= 0.501
    assert (results[0][~covered] == FILL).all()


def test_a_hole_is_exactly_the_exclusive_area():
    plan = ScanPlan(ScanRegion(0, 0, 0.16, 0.16), 64, 64, 1.0, 16)
    frames = np.zeros((len(plan), 64, 64, 3), np.uint8)
    gone = plan.index_at(1, 1)

    def scanned(verdict):
        mosaic = Mosaic(plan, plan.frame(), Frames(frames), margin_px=4, channels=3, dtype=np.dtype(np.uint8),
                        fill=FILL, feather_px=16, chunk_px=CHUNK)  # fmt: skip
        places = [(t.index, *plan.corner_px(t.row, t.col)) for t in plan]
        tiles = [PlacedTile(i, y, x, verdict if i == gone else Verdict.ACCEPTED) for i, y, x in places]
        return canvas_of(mosaic, plan, tiles)

    y, x = plan.corner_px(1, 1)
    exclusive = np.zeros((160, 160), bool)
    exclusive[y + 16 : y + 48, x + 16 : x + 48] = True
    assert np.array_equal((scanned(Verdict.REJECTED) == FILL).all(axis=2), exclusive)
    assert not (scanned(Verdict.BLANK) == FILL).any(), "a blank tile keeps its pixels"


def test_a_target_settles_once():
    plan = ScanPlan(ScanRegion(0, 0, 0.05, 0.05), 64, 64, 1.0, 0)
    mosaic = Mosaic(plan, plan.frame(), Frames(np.zeros((1, 64, 64, 3), np.uint8)), margin_px=0, channels=3,
                    dtype=np.dtype(np.uint8), fill=FILL, feather_px=1)  # fmt: skip
    placed = PlacedTile(0, 0.0, 0.0, Verdict.ACCEPTED)
    assert len(list(mosaic.add(placed))) == 1
    with pytest.raises(KeyError):
        list(mosaic.add(placed))


@given(st.floats(-0.5, 0.5), st.floats(-0.5, 0.5))
@settings(deadline=None, max_examples=25)
def test_cubic_placement_moves_a_smooth_image_by_the_remainder(dy, dx):
    rng = np.random.default_rng(3)
    smooth = ndimage.gaussian_filter(rng.normal(size=(80, 90)), 3)
    image = np.rint(128 + 100 * smooth / np.abs(smooth).max()).astype(np.uint8)[..., None]
    box, shift = place(10 + dy, 20 + dx, 80, 90, cubic=True)
    source = Source(0, box, box, shift, lambda b: image[b.y0 : b.y1, b.x0 : b.x1])
    part = Box(box.y0 + 10, box.x0 + 10, box.y1 - 10, box.x1 - 10)
    got = resampled(source, part)[..., 0].astype(float)
    truth = ndimage.shift(image[..., 0].astype(float), shift, order=5)[10:-10, 10:-10]
    assert np.abs(got - truth).max() < 2.5
    parts = [resampled(source, Box(y, part.x0, y + 1, part.x1))[..., 0] for y in range(part.y0, part.y1)]
    assert np.array_equal(np.concatenate(parts), got), "the crop does not show"


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
def test_equal_tiles_blend_to_themselves(dtype, channels):
    top = np.iinfo(dtype).max
    for value in (0, 1, top // 3, top):
        image = np.full((40, 40, channels), value, dtype)
        sources = [
            Source(n, b, b, (0.0, 0.0), lambda p, i=image: i[p.y0 : p.y1, p.x0 : p.x1])
            for n, b in enumerate([Box(0, 0, 40, 40), Box(0, 20, 40, 60), Box(25, 0, 65, 40), Box(25, 20, 65, 60)])
        ]
        out = gather(Box(0, 0, 65, 60), sources, channels=channels, dtype=np.dtype(dtype), fill=7, feather=10)
        assert out.dtype == dtype
        assert (out == value).all()


@given(st.integers(1, 300), st.integers(1, 100))
def test_weights_are_positive_and_symmetric(length, feather):
    w = ramp(length, feather)
    assert (w >= 1).all()
    assert np.array_equal(w, w[::-1])


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_averages_are_rounded_to_even_and_clipped(dtype):
    full = np.iinfo(dtype).max
    values = np.linspace(-0.2 * full, 1.2 * full, 4 * 1001 * 3).astype(np.float32).reshape(4, 1001, 3)
    values[0, :6] = np.arange(18, dtype=np.float32).reshape(6, 3) + np.float32(0.5)
    wanted = np.clip(np.rint(values), 0, full).astype(dtype)
    into = np.zeros(values.shape, dtype)
    assert np.array_equal(typed(values.copy(), np.dtype(dtype)), wanted)
    assert np.array_equal(typed(values.copy()[:, 100:200], np.dtype(dtype)), wanted[:, 100:200])
    assert typed(values.copy(), np.dtype(dtype), into) is into
    assert np.array_equal(into, wanted)

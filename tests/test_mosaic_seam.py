"""The `seam` blend: tiles that do not agree are parted where they differ least; nothing is shown twice."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from register_scenes import textured

from edge_scanner.geometry import Box
from edge_scanner.mosaic import Mosaic
from edge_scanner.mosaic.kernel import gather
from edge_scanner.mosaic.source import Source
from edge_scanner.plan import ScanPlan, ScanRegion
from edge_scanner.tile import PlacedTile, Verdict

RGB8 = {"channels": 3, "dtype": np.dtype(np.uint8), "fill": 255, "feather": 64}


def source(order, image, y, x, residual_px=3.0, shift=(0.0, 0.0)):
    box = Box(y, x, y + image.shape[0], x + image.shape[1])
    return Source(order, box, box, shift, lambda b: image[b.y0 : b.y1, b.x0 : b.x1], residual_px=residual_px)


def nuclei(height, width, seed=0):
    """Return dark discs on pink, sharp enough to be seen twice at 3 px."""
    rng = np.random.default_rng(seed)
    picture = textured(height, width, seed).clip(150, 220).astype(np.uint8)
    for y, x, r in zip(rng.integers(0, height, 400), rng.integers(0, width, 400), rng.integers(4, 9, 400), strict=True):
        cv2.circle(picture, (int(x), int(y)), int(r), (90, 40, 120), -1, cv2.LINE_AA)
    return picture


def four_misplaced(off=3):
    """Return four tiles of 200 px, overlaps of 60 px, each lying `off` px wrong in another direction, and the truth."""
    picture = nuclei(400, 400)
    wrong = [(0, 0), (off, 0), (0, -off), (-off, off)]
    places = [(20, 20), (20, 160), (160, 20), (160, 160)]
    tiles = []
    for k, ((y, x), (dy, dx)) in enumerate(zip(places, wrong, strict=True)):
        tiles.append(source(k, picture[y + dy : y + dy + 200, x + dx : x + dx + 200], y, x))
    return tiles, picture, wrong


def ghosts(mosaic, tiles):
    """Return the mean square, over the overlaps, of how far a pixel is from what any one tile shows there."""
    least, count = np.full(mosaic.shape[:2], np.inf), np.zeros(mosaic.shape[:2], int)
    for t in tiles:
        part = (slice(t.box.y0, t.box.y1), slice(t.box.x0, t.box.x1))
        own = t.crop(Box(0, 0, t.box.height, t.box.width)).astype(float)
        least[part] = np.minimum(least[part], ((mosaic[part] - own) ** 2).mean(axis=2))
        count[part] += 1
    return least[count > 1].mean()


def test_misplaced_tiles_are_not_shown_twice():
    tiles, _, _ = four_misplaced()
    canvas = Box(0, 0, 400, 400)
    seam, linear, first = (gather(canvas, tiles, blend=blend, **RGB8) for blend in ("seam", "linear", "first"))
    assert ghosts(first, tiles) == 0
    assert ghosts(seam, tiles) < 0.1 * ghosts(linear, tiles)
    step = np.abs(np.diff(seam.astype(int), axis=1))[30:350, 30:350].max()
    assert step <= np.abs(np.diff(first.astype(int), axis=1))[30:350, 30:350].max()


def test_the_line_goes_round_what_only_one_tile_shows():
    plain = np.full((300, 120, 3), 200, np.uint8)
    speck = cv2.circle(plain.copy(), (90, 150), 12, (40, 20, 60), -1)  # in the very middle of the overlap
    mosaic = gather(Box(0, 0, 300, 180), [source(0, speck, 0, 0), source(1, plain, 0, 60)], blend="seam", **RGB8)
    around = mosaic[130:170, 70:110]
    whole, none = speck[130:170, 70:110], plain[130:170, 70:110]
    assert min(np.abs(around.astype(int) - v).max() for v in (whole, none)) <= 1
    assert (mosaic[:, :60] == speck[:, :60]).all()
    assert (mosaic[:, 120:] == plain[:, 60:]).all()


@given(st.lists(st.tuples(st.integers(-8, 70), st.integers(-8, 70)), min_size=2, max_size=4), st.integers(5, 60))
@settings(max_examples=40)
def test_where_the_block_is_cut_does_not_show_and_every_covered_pixel_has_weight(places, cut):
    picture = nuclei(200, 200)
    tiles = [
        source(k, picture[k : k + 60 + 4 * k, 2 * k : 2 * k + 70], y, x, shift=(0.0, 0.25 * (k % 2)))
        for k, (y, x) in enumerate(places)
    ]
    canvas = Box(-8, -8, 150, 150)
    whole = gather(canvas, tiles, blend="seam", **RGB8)
    for rows in (Box(-8, -8, cut, 150), Box(cut, -8, 150, 150)):
        part = gather(rows, tiles[::-1], blend="seam", **RGB8)
        expected = whole[rows.y0 + 8 : rows.y1 + 8]
        assert np.array_equal(expected, np.full_like(expected, 255) if part is None else part)
    covered = np.zeros(whole.shape[:2], bool)
    for t in tiles:
        covered[t.box.y0 + 8 : t.box.y1 + 8, t.box.x0 + 8 : t.box.x1 + 8] = True
    grey = [np.full((t.box.height, t.box.width, 3), 77, np.uint8) for t in tiles]
    even = [source(k, grey[k], t.box.y0, t.box.x0) for k, t in enumerate(tiles)]
    constant = gather(canvas, even, blend="seam", **RGB8)
    assert (constant[covered] == 77).all()
    assert (constant[~covered] == 255).all()


@pytest.mark.parametrize("residual_px", [0.0, 1.0])
def test_tiles_that_agree_are_faded_as_ever(residual_px):
    tiles = [source(t.order, t.crop(Box(0, 0, 200, 200)), t.box.y0, t.box.x0, residual_px) for t in four_misplaced()[0]]
    canvas = Box(0, 0, 400, 400)
    assert np.array_equal(gather(canvas, tiles, blend="seam", **RGB8), gather(canvas, tiles, **RGB8))


def test_the_order_of_arrival_does_not_show():
    plan = ScanPlan(ScanRegion(0, 0, 0.34, 0.34), 200, 200, 1.0, 60)
    picture = nuclei(420, 420)
    rng = np.random.default_rng(1)
    frames, placed = {}, []
    for t in plan:
        y, x = plan.corner_px(t.row, t.col)
        dy, dx = rng.integers(-3, 4, 2)
        frames[t.index] = picture[y + 20 : y + 220, x + 20 : x + 220]
        residual = (None, 0.1, 3.0, 4.0)[t.index % 4]
        placed.append(PlacedTile(t.index, y + dy, x + dx, Verdict.ACCEPTED, residual is not None, residual))
    canvases = []
    for order in (placed, placed[::-1]):
        waiting = type("Frames", (), {"crop": lambda _, i, b: frames[i][b.y0 : b.y1, b.x0 : b.x1], "drop": print})()
        mosaic = Mosaic(plan, plan.frame(), waiting, margin_px=6, channels=3, dtype=np.dtype(np.uint8), fill=255,
                        feather_px=64, chunk_px=64, blend="seam")  # fmt: skip
        canvas = np.zeros((plan.height_px, plan.width_px, 3), np.uint8)
        for chunk in (c for p in order for c in mosaic.add(p)):
            h, w = chunk.pixels.shape[:2]
            canvas[chunk.row * 64 :, chunk.col * 64 :][:h, :w] = chunk.pixels
        canvases.append(canvas)
    assert np.array_equal(*canvases)
    assert canvases[0].any(axis=2).all()

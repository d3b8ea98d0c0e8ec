"""Seamless inference: every size, tile and overlap; each tile once, every pixel once, no step steeper than the fade."""

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from edge_scanner.errors import UsageError
from edge_scanner.seamless import plan, run
from edge_scanner.seamless.run import ModelError


@st.composite
def layouts(draw):
    sides, overlaps, shape = [], [], []
    for _ in range(2):
        tile = draw(st.integers(1, 80))
        overlap = draw(st.integers(0, tile - 1))
        sides.append(tile)
        overlaps.append(overlap)
        shape.append(draw(st.integers(1, tile + 12 * (tile - overlap))))
    return tuple(shape), tuple(sides), tuple(overlaps)


class Canvas:
    """What `run` writes, and how often."""

    def __init__(self, shape, outputs):
        self.values = np.full((*shape, outputs), np.nan, np.float32)
        self.count = np.zeros(shape, int)

    def write(self, y0, x0, block):
        place = (slice(y0, y0 + block.shape[0]), slice(x0, x0 + block.shape[1]))
        self.values[place] = block
        self.count[place] += 1


def of_image(image, reads=None):
    def read(y0, y1, x0, x1):
        if reads is not None:
            reads.append((y0, x0, y1, x1))
        assert 0 <= y0 < y1 <= image.shape[0]
        assert 0 <= x0 < x1 <= image.shape[1]
        return image[y0:y1, x0:x1]

    return read


@settings(deadline=None, max_examples=150)
@given(layouts(), st.integers(1, 5), st.integers(0, 3), st.integers(0, 10**6))
@example(((840, 840), (256, 256), (64, 64)), 1, 0, 0)
@example(((848, 856), (256, 256), (64, 64)), 4, 2, 1)
@example(((300, 301), (256, 256), (255, 255)), 3, 0, 2)
def test_random_constant_tiles_leave_no_seam(layout, batch, prefetch, seed):
    shape, tile, overlap = layout
    laid = plan(shape, tile, overlap)
    rng = np.random.default_rng(seed)
    reads, canvas = [], Canvas(shape, 2)

    def model(tiles):
        return np.broadcast_to(rng.integers(0, 2, (len(tiles), 1, 1, 2)), (*tiles.shape[:3], 2)).astype(np.float32)

    run(laid, model, of_image(np.zeros(shape, np.uint8), reads), canvas.write, batch=batch, prefetch=prefetch)
    assert sorted(reads) == sorted(laid.tiles), "each tile is read once"
    assert len(set(reads)) == len(reads)
    assert prefetch or tuple(reads) == laid.tiles, "in the order of the plan"
    assert (canvas.count == 1).all(), "each pixel is written once"
    for axis, shared in enumerate(overlap):
        step = np.abs(np.diff(canvas.values, axis=axis)).max(initial=0)
        assert step * shared <= 1.1


@settings(deadline=None, max_examples=60)
@given(layouts(), st.integers(0, 10**6))
def test_a_pointwise_model_gives_the_whole_image(layout, seed):
    shape, tile, overlap = layout
    image = np.random.default_rng(seed).random((*shape, 3)).astype(np.float32)
    canvas = Canvas(shape, 3)
    run(plan(shape, tile, overlap), np.sqrt, of_image(image), canvas.write)
    np.testing.assert_allclose(canvas.values, np.sqrt(image), atol=1e-6)


@settings(deadline=None, max_examples=40)
@given(layouts(), st.integers(0, 10**6), st.integers(1, 3))
def test_a_convolution_within_the_margin_gives_the_whole_image(layout, seed, radius):
    """Zero padding at a tile's edges, as networks have it, does not reach the result; at the image's edges it does."""
    shape, tile, overlap = layout
    assume(min(overlap) >= 2 * radius)
    rng = np.random.default_rng(seed)
    image = rng.random(shape)
    kernel = rng.normal(size=(2 * radius + 1,) * 2)

    def model(tiles):
        return np.stack([ndimage.convolve(t, kernel, mode="constant") for t in tiles])[..., None]

    canvas = Canvas(shape, 1)
    run(plan(shape, tile, overlap, margin=radius), model, of_image(image), canvas.write, batch=2)
    np.testing.assert_allclose(canvas.values[..., 0], ndimage.convolve(image, kernel, mode="constant"), atol=1e-5)


def test_the_default_margin_takes_a_small_convolution():
    image = np.random.default_rng(0).random((200, 333))
    canvas = Canvas(image.shape, 1)

    def model(tiles):
        return np.stack([ndimage.uniform_filter(t, 7, mode="constant") for t in tiles])[..., None]

    run(plan(image.shape, 128, 64), model, of_image(image), canvas.write)
    np.testing.assert_allclose(canvas.values[..., 0], ndimage.uniform_filter(image, 7, mode="constant"), atol=1e-5)


@settings(deadline=None, max_examples=40)
@given(layouts(), st.integers(0, 10**6))
def test_a_mask_skips_tiles_and_the_rest_is_unchanged(layout, seed):
    shape, tile, overlap = layout
    rng = np.random.default_rng(seed)
    mask = rng.random((rng.integers(1, 9), rng.integers(1, 9))) < 0.3
    image = rng.random((*shape, 2)).astype(np.float32)
    laid, reads, canvas = plan(shape, tile, overlap, mask=mask), [], Canvas(shape, 2)
    run(laid, lambda tiles: tiles, of_image(image, reads), canvas.write, batch=3)
    assert len(reads) == len(laid.tiles) <= len(plan(shape, tile, overlap).tiles)
    assert canvas.count.max(initial=0) <= 1
    ys, xs = (np.arange(n) * m // n for n, m in zip(shape, mask.shape, strict=True))
    wanted = mask[np.ix_(ys, xs)]
    assert (canvas.count[wanted] == 1).all(), "what the mask shows is there"
    np.testing.assert_allclose(canvas.values[wanted], image[wanted], atol=1e-5)


@settings(deadline=None, max_examples=60)
@given(layouts())
def test_steps_say_what_is_done(layout):
    shape, tile, overlap = layout
    laid = plan(shape, tile, overlap)
    held, written = set(), np.zeros(shape, int)
    loaded = []
    for step in laid.steps:
        if step.kind == "load":
            loaded.append((step.box.y0, step.box.x0, step.box.y1, step.box.x1))
            held.add(step.tile)
        elif step.kind == "run":
            assert step.tile in held
        elif step.kind == "write":
            written[step.box.y0 : step.box.y1, step.box.x0 : step.box.x1] += 1
        else:
            assert step.kind == "unload"
            held.remove(step.tile)
        assert len(held) <= 1
    assert tuple(loaded) == laid.tiles
    assert not held
    assert (written == 1).all()


@settings(deadline=None, max_examples=40)
@given(layouts())
def test_no_more_is_held_than_the_plan_says(layout):
    """Pixels that some tile has touched and that are not written yet, and the tile at hand."""
    shape, tile, overlap = layout
    laid = plan(shape, tile, overlap)
    touched, done, most = np.zeros(shape, bool), np.zeros(shape, bool), 0
    for cell in laid.cells:
        (top, bottom), (left, right) = laid.rows.used(cell[0]), laid.cols.used(cell[1])
        touched[top:bottom, left:right] = True
        box = laid.finished(*cell)
        done[box.y0 : box.y1, box.x0 : box.x1] = True
        most = max(most, int((touched & ~done).sum()))
    assert done.all()
    assert most <= laid.held_fraction * touched.size + 1e-6


def test_a_large_slide_is_held_in_strips():
    laid = plan((40_000, 40_000), 256, 64)
    assert laid.held_fraction <= 0.002
    assert len(laid.tiles) == 208 * 208
    assert plan((40_000, 8_000), 256, 64).held_fraction < 0.0019, "strips run along the shorter side"
    assert plan((8_000, 40_000), 256, 64).held_fraction == plan((40_000, 8_000), 256, 64).held_fraction


@pytest.mark.parametrize(
    "shape, tile, overlap",
    [
        ((0, 5), 4, 1),
        ((5, 5), 4, 4),
        ((5, 5), 4, -1),
        ((5, 5), 0, 0),
        ((5,), 4, 1),
        ((5, 5), (4, 4, 4), 1),
        ("ab", 4, 1),
    ],
)
def test_sizes_that_cannot_be_are_refused(shape, tile, overlap):
    with pytest.raises(UsageError):
        plan(shape, tile, overlap)


def test_a_model_of_another_size_is_named():
    laid = plan((50, 50), 20, 5)
    for bad in (lambda t: t, lambda t: t[..., None][:, ::2], lambda t: t[:0, ..., None]):
        with pytest.raises(ModelError, match="must give"):
            run(laid, bad, of_image(np.zeros((50, 50))), lambda *_: None)
    with pytest.raises(UsageError):
        plan((50, 50), 20, 5, margin=3)
    with pytest.raises(UsageError):
        run(laid, lambda t: t, of_image(np.zeros((50, 50))), lambda *_: None, batch=0)


def test_a_reader_that_fails_ends_the_run():
    def read(y0, y1, x0, x1):
        if y0 > 20:
            raise OSError("gone")
        return np.zeros((y1 - y0, x1 - x0))

    for prefetch in (0, 3):
        with pytest.raises(OSError, match="gone"):
            run(plan((90, 90), 20, 5), lambda t: t[..., None], read, lambda *_: None, prefetch=prefetch)

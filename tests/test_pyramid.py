"""The cascade: every level complete, each chunk once, equal to halving the whole level."""

import random
from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_scanner.pyramid import Pyramid, halved
from edge_scanner.tile import Chunk

CHUNK = 16


def level_shapes(height, width):
    shapes = [(height, width)]
    while max(shapes[-1]) > CHUNK:
        shapes.append(((shapes[-1][0] + 1) // 2, (shapes[-1][1] + 1) // 2))
    return shapes


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from([1, 3]), st.integers(0, 999))
def test_levels_are_the_halved_level_below(height, width, channels, seed):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 65536, (height, width, channels), dtype=np.uint16)
    shapes = level_shapes(height, width)
    pyramid = Pyramid(shapes, channels=channels, dtype=image.dtype, fill=0, chunk_px=CHUNK)
    chunks = [
        Chunk(0, r, c, image[r * CHUNK : (r + 1) * CHUNK, c * CHUNK : (c + 1) * CHUNK].copy())
        for r in range(-(-height // CHUNK))
        for c in range(-(-width // CHUNK))
    ]
    random.Random(seed).shuffle(chunks)
    out = [np.zeros((*shape, channels), image.dtype) for shape in shapes]
    seen = set()
    for chunk in pyramid.cascade(chunks):
        assert chunk.key not in seen
        seen.add(chunk.key)
        h, w = chunk.pixels.shape[:2]
        out[chunk.level][chunk.row * CHUNK :, chunk.col * CHUNK :][:h, :w] = chunk.pixels
    assert pyramid.complete
    for fine, coarse in pairwise(out):
        assert np.array_equal(coarse, halved(fine))


@given(st.integers(1, 40), st.integers(1, 40))
def test_of_chunks_row_by_row_half_a_row_waits_at_most(rows, cols):
    pyramid = Pyramid(
        level_shapes(rows * CHUNK, cols * CHUNK), channels=1, dtype=np.dtype(np.uint8), fill=0, chunk_px=CHUNK
    )
    pixels = np.zeros((CHUNK, CHUNK, 1), np.uint8)
    most = 0
    for _ in pyramid.cascade(Chunk(0, r, c, pixels) for r in range(rows) for c in range(cols)):
        most = max(most, pyramid.held_bytes)
    assert pyramid.held_bytes == 0
    assert most <= (cols / 2 + 4) * pixels.nbytes


@given(st.integers(0, 255), st.integers(1, 9), st.integers(1, 9))
def test_halving_is_the_rounded_mean_of_four(seed, h, w):
    image = np.random.default_rng(seed).integers(0, 256, (2 * h, 2 * w, 3), dtype=np.uint8)
    mean = image.reshape(h, 2, w, 2, 3).mean(axis=(1, 3))
    assert np.abs(halved(image) - mean).max() <= 0.5


def test_a_parent_without_any_child_is_absent_and_a_partial_one_is_filled():
    pyramid = Pyramid([(32, 64), (16, 32), (8, 16)], channels=3, dtype=np.dtype(np.uint8), fill=255, chunk_px=CHUNK)
    black = np.zeros((16, 16, 3), np.uint8)
    chunks = [Chunk(0, r, c, black if (r, c) == (0, 0) else None) for r in range(2) for c in range(4)]
    done = {(c.level, c.row, c.col): c.pixels for c in pyramid.cascade(chunks)}
    assert done[1, 0, 1] is None
    assert (done[1, 0, 0][:8, :8] == 0).all()
    assert (done[1, 0, 0][8:] == 255).all()
    assert (done[2, 0, 0][:4, :4] == 0).all()
    assert (done[2, 0, 0][:, 4:] == 255).all()

"""Synthetic tissue: a pure function of seed and place, seamless, and tissue to look at."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_scanner.sim.tissue import BLOCK, GLASS, MEMORY_BOUND, TissueSpecimen


def tissue(seed: int = 3, pixel_size_um: float = 0.5) -> TissueSpecimen:
    return TissueSpecimen(seed, 1200, 1500, pixel_size_um)


ONE = tissue()
"""Shared where no test depends on what was read before."""


def test_order_of_reading_does_not_matter() -> None:
    one, other = tissue(), tissue()
    boxes = [(700, 900), (1100, 600), (20, 1800), (1400, 1500)]
    first = [one.read(y, x, 300, 280) for y, x in boxes]
    second = [other.read(y, x, 300, 280) for y, x in boxes[::-1]][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@settings(max_examples=15, deadline=None)
@given(st.integers(-100, 2300), st.integers(-100, 2900))
def test_a_box_is_a_part_of_a_larger_box(y: int, x: int) -> None:
    specimen = ONE
    assert np.array_equal(specimen.read(y + 37, x + 21, 90, 110), specimen.read(y, x, 200, 200)[37:127, 21:131])


def test_blocks_meet_without_a_seam() -> None:
    picture = ONE.read(0, 0, 4 * BLOCK, 5 * BLOCK).astype(float)
    steps = np.abs(np.diff(picture, axis=1)).mean(axis=(0, 2))
    seams, rest = steps[BLOCK - 1 :: BLOCK], np.delete(steps, np.s_[BLOCK - 1 :: BLOCK])
    assert seams.mean() < rest.mean() + 3 * rest.std() / np.sqrt(len(seams))
    steps = np.abs(np.diff(picture, axis=0)).mean(axis=(1, 2))
    seams, rest = steps[BLOCK - 1 :: BLOCK], np.delete(steps, np.s_[BLOCK - 1 :: BLOCK])
    assert seams.mean() < rest.mean() + 3 * rest.std() / np.sqrt(len(seams))


def test_seeds_differ_and_beyond_the_specimen_is_glass() -> None:
    middle = (1100, 1500, 256, 256)
    assert not np.array_equal(tissue(3).read(*middle), tissue(4).read(*middle))
    assert (ONE.read(-300, -300, 200, 200) == GLASS).all()


@pytest.mark.parametrize("seed", range(3))
def test_it_looks_stained(seed: int) -> None:
    picture = tissue(seed).read(0, 0, 2400, 3000)[::4, ::4].reshape(-1, 3).astype(int)
    red, green, blue = picture.T
    glass = (picture.min(axis=1) > 235).mean()
    eosin = ((red > blue + 15) & (red > green + 40)).mean()
    nuclei = ((blue > red + 15) & (red < 150)).mean()
    assert 0.15 < glass < 0.75
    assert eosin > 0.08
    assert nuclei > 0.02


def test_structures_grow_as_pixels_shrink() -> None:
    def unlike(pixel_size_um: float, lag_px: int) -> float:
        at, size = round(500 / pixel_size_um), round(300 / pixel_size_um)
        green = tissue(3, pixel_size_um).read(at, at, size, size)[..., 1].astype(float)
        return float(((green[:, lag_px:] - green[:, :-lag_px]) ** 2).mean() / green.var())

    assert unlike(0.25, 16) == pytest.approx(unlike(0.5, 8), rel=0.25)
    assert unlike(0.25, 8) < 0.75 * unlike(0.5, 8)


def test_memory_is_bounded() -> None:
    specimen = TissueSpecimen(1, 100_000, 100_000, 0.5)
    for k in range(80):
        specimen.read(0, k * BLOCK, 4, 4)
    assert sum(b.nbytes for b in specimen._blocks.values()) <= MEMORY_BOUND

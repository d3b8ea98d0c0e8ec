"""The pair shift against shifts that were put in: exact where it must be, honest where it cannot be."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from register_scenes import sampled, textured

from edge_scanner.register import Match, match

PICTURE = textured(420, 620, seed=3)
REACH = 24.0


def strips(dy: float, dx: float, noise: float = 0.0, contrast: float = 1.0, seed: int = 0) -> list[np.ndarray]:
    """Return two luminance strips, 320 x 64, of which the second lies at (dy, dx) as `match` means it."""
    rng = np.random.default_rng(seed)
    both = []
    for y, x in ((0.0, 0.0), (dy, dx)):
        gray = 128 + contrast * (sampled(PICTURE, 50 + y, 200 + x, 320, 64).mean(axis=2) - 128)
        both.append(np.clip(np.rint(gray + noise * rng.standard_normal(gray.shape)), 0, 255).astype(np.uint8))
    return both


def error(found: Match, dy: float, dx: float) -> float:
    return float(np.hypot(found.dy_px - dy, found.dx_px - dx))


@settings(max_examples=25, deadline=None)
@given(st.floats(-20, 20), st.floats(-20, 20))
def test_any_shift_within_reach_is_found_to_two_hundredths(dy: float, dx: float) -> None:
    found = match(*strips(dy, dx, noise=1.0), REACH)
    assert found.trusted
    assert error(found, dy, dx) < 0.02


def test_swapped_strips_give_the_opposite_shift() -> None:
    a, b = strips(3.3, -4.7, noise=1.0)
    there, back = match(a, b, REACH), match(b, a, REACH)
    assert error(there, -back.dy_px, -back.dx_px) < 0.01


@pytest.mark.parametrize("shift", [(0, 0), (5, -3), (-11, 8)])
def test_whole_pixel_shifts_of_equal_pixels_are_exact(shift: tuple[int, int]) -> None:
    found = match(*strips(*shift), REACH)
    assert error(found, *shift) <= (0 if shift == (0, 0) else 1e-4)
    assert found.trusted


@pytest.mark.parametrize("level", [0, 255])
def test_nothing_to_see_gives_no_match(level: int) -> None:
    flat = np.full((320, 64), level, np.uint8)
    assert not match(flat, flat, REACH).trusted
    assert not match(strips(0, 0)[0], flat, REACH).trusted


@pytest.mark.parametrize("seed", range(10))
def test_noisy_glass_and_strangers_are_not_trusted(seed: int) -> None:
    rng = np.random.default_rng(seed)
    glass = [np.clip(235 + 2 * rng.standard_normal((320, 64)), 0, 255).astype(np.uint8) for _ in range(2)]
    assert not match(*glass, REACH).trusted
    stranger = textured(320, 64, seed=100 + seed).mean(axis=2).astype(np.uint8)
    assert not match(strips(0, 0)[0], stranger, REACH).trusted


def test_a_repeated_texture_is_ambiguous() -> None:
    y, x = np.mgrid[:320, :64]
    grid = (128 + 60 * np.sign(np.sin(y * np.pi / 6)) * np.sign(np.sin(x * np.pi / 6))).astype(np.uint8)
    assert not match(grid, np.roll(grid, (3, 2), (0, 1)), REACH).trusted


def test_stripes_fix_only_one_axis_and_are_not_trusted() -> None:
    rng = np.random.default_rng(0)
    stripes = cv2.GaussianBlur(np.repeat(rng.uniform(60, 200, (320, 1)), 64, axis=1), (0, 0), 2)
    both = [np.clip(stripes + rng.standard_normal(stripes.shape), 0, 255).astype(np.uint8) for _ in range(2)]
    assert not match(*both, REACH).trusted


def test_a_shift_beyond_reach_is_not_believed() -> None:
    found = match(*strips(0, 30), 10.0)
    assert not found.trusted or max(abs(found.dy_px), abs(found.dx_px)) <= 11


def test_gain_and_shading_do_not_move_the_shift() -> None:
    a, b = strips(2.4, 5.6, noise=1.0)
    slope = np.linspace(0.92, 1.02, 64)
    found = match(a, np.clip(b * slope * 0.97, 0, 255).astype(np.uint8), REACH)
    assert error(found, 2.4, 5.6) < 0.03


def test_sixteen_bits_agree_with_eight() -> None:
    a, b = strips(2.4, 5.6, noise=1.0)
    found = match(a.astype(np.uint16) * 256, b.astype(np.uint16) * 256, REACH)
    eight = match(a, b, REACH)
    assert error(found, eight.dy_px, eight.dx_px) < 1e-3


@pytest.mark.parametrize("contrast", [0.02, 0.05, 0.1, 0.3])
def test_the_stated_uncertainty_is_honest_on_faint_texture(contrast: float) -> None:
    """Trusted results lie within four of their own sigmas, however deep the texture lies in the noise."""
    for seed in range(8):
        dy, dx = np.random.default_rng(seed).uniform(-8, 8, 2)
        found = match(*strips(dy, dx, noise=2.0, contrast=contrast, seed=seed), REACH)
        assert not found.trusted or error(found, dy, dx) < 4 * found.sigma_px


@pytest.mark.parametrize("shape", [(12, 12), (12, 400), (17, 31), (47, 48)])
def test_odd_and_narrow_strips_never_crash(shape: tuple[int, int]) -> None:
    part = PICTURE[: shape[0], : shape[1]].mean(axis=2).astype(np.uint8)
    found = match(part, part, REACH)
    assert not found.trusted or (found.dy_px, found.dx_px) == (0, 0)


@pytest.mark.data
def test_real_camera_tiles_agree_with_their_known_positions(shared_data: Path) -> None:
    """Nine tiles of a real scan, nominal places wrong by up to 30 px: within 4 px, the accuracy of the reference."""
    folder = shared_data / "tile_scans" / "HE_3x3_serpentine"
    with (folder / "positions.csv").open() as table:
        rows = list(csv.DictReader(table))
    images = [cv2.imread(str(folder / row["file"]), cv2.IMREAD_GRAYSCALE) for row in rows]
    places = np.array([[float(row["y_px"]), float(row["x_px"])] for row in rows])
    rng = np.random.default_rng(0)
    for first in range(len(rows) - 1):
        wrong = rng.uniform(-30, 30, 2)
        y, x = np.rint(places[first + 1] - places[first] + wrong).astype(int)
        h, w = images[first].shape
        a = images[first][max(0, y) : h + min(0, y), max(0, x) : w + min(0, x)]
        b = images[first + 1][max(0, -y) : h - max(0, y), max(0, -x) : w - max(0, x)]
        found = match(a, b, 44)
        assert found.trusted
        assert np.abs(np.array([y + found.dy_px, x + found.dx_px]) - places[first + 1] + places[first]).max() < 4

"""What the network is shown: the most textured patches, as they are, on the grid of any objective."""

from __future__ import annotations

import numpy as np
import pytest
from focus_scene import tissue
from hypothesis import given
from hypothesis import strategies as st

from edge_scanner.config import OpticsConfig
from edge_scanner.focus.samples import (
    PATCH_PX,
    REFERENCE_NA,
    REFERENCE_PIXEL_UM,
    camera_side_px,
    choose,
    cut,
    defocus_unit,
    reference_unit,
)
from edge_scanner.sim.psf import Pupil, defocus_kernel


def glass_with(patch_at: tuple[int, int], side: int, shape=(1024, 1224)) -> np.ndarray:
    """An even frame with noise of one grey level and one square of tissue."""
    noise = np.random.default_rng(3).standard_normal((*shape, 3))
    pixels = np.rint(230 + noise).astype(np.uint8)
    y, x = patch_at
    if side:
        pixels[y : y + side, x : x + side] = tissue(side, side)
    return pixels


@pytest.mark.parametrize("row", range(4))
@pytest.mark.parametrize("col", range(4))
def test_the_textured_patch_is_found_and_glass_is_left_out(row, col):
    at = row * 256, 100 + col * 256
    assert choose(glass_with(at, 256), 256, 8) == [at]


def test_glass_gives_no_patch():
    assert choose(glass_with((0, 0), 0), 256, 8) == []


def test_frames_too_small_give_no_patch():
    assert choose(tissue(200, 2000), 256, 8) == []


@given(st.integers(256, 700), st.integers(256, 700), st.integers(64, 256), st.integers(1, 8))
def test_patches_are_inside_apart_and_no_more_than_asked(height, width, side, most):
    corners = choose(np.resize(tissue(64, 64), (height, width, 3)), side, most)
    assert len(set(corners)) == len(corners) <= most
    for y, x in corners:
        assert 0 <= y <= height - side
        assert 0 <= x <= width - side
    for i, (y, x) in enumerate(corners):
        assert all(abs(y - v) >= side or abs(x - u) >= side for v, u in corners[:i])


def test_patches_are_the_pixels_themselves():
    pixels = tissue(600, 600)
    patch = cut(pixels, [(10, 20)], PATCH_PX)
    assert patch.shape == (1, 3, PATCH_PX, PATCH_PX)
    np.testing.assert_allclose(patch[0] * 255, pixels[10:266, 20:276].transpose(2, 0, 1), atol=1e-3)


def test_sixteen_bits_say_the_same_as_eight():
    pixels = tissue(256, 256)
    np.testing.assert_allclose(
        cut(pixels, [(0, 0)], 256), cut(pixels.astype(np.uint16) * 257, [(0, 0)], 256), atol=1e-6
    )


@pytest.mark.parametrize(
    ("na", "pixel_um", "side", "unit"), [(0.75, 0.5, 256, 1.0), (0.3, 1.0, 320, 0.136), (0.95, 0.25, 404, 2.031)]
)
def test_every_objective_is_brought_to_the_same_grid(na, pixel_um, side, unit):
    optics = OpticsConfig(numerical_aperture=na, pixel_size_um=pixel_um)
    assert camera_side_px(optics) == side
    assert reference_unit(optics) == pytest.approx(unit, abs=1e-3)
    assert cut(tissue(500, 500), [(0, 0)], side).shape == (1, 3, PATCH_PX, PATCH_PX)


def transfer(na: float, z_um: float) -> np.ndarray:
    """What defocus leaves of each frequency of the network's grid."""
    kernel = defocus_kernel(Pupil(na, 1.0, 0.53, 0.0), REFERENCE_PIXEL_UM * REFERENCE_NA / na, z_um)
    room = np.zeros((PATCH_PX, PATCH_PX))
    room[: kernel.shape[0], : kernel.shape[1]] = kernel
    return np.abs(np.fft.rfft2(room))


@pytest.mark.parametrize("na", [0.3, 0.5, 0.9, 0.95])
def test_the_same_defocus_in_reference_units_blurs_alike(na):
    """Nearer by a quarter at least than by the square of the aperture, which holds for small angles only."""

    def apart(unit: float) -> float:
        return sum(float(np.abs(transfer(na, z_um / unit) - transfer(REFERENCE_NA, z_um)).mean()) for z_um in (1, 3, 8))

    assert apart(defocus_unit(na)) < 0.75 * apart((na / REFERENCE_NA) ** 2)


def test_immersion_counts_by_the_angle_in_it():
    """An oil lens of NA 1.4 takes light in up to 67.5 degrees; a dry one of the same angle has NA 0.924."""
    assert defocus_unit(1.4, 1.515) == pytest.approx(1.515 * defocus_unit(1.4 / 1.515))

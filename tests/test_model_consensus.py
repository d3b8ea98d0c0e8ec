"""Many patches, one verdict: minorities do not move it, disagreement is admitted, and the order means nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_scanner.focus.consensus import agree

DZ = st.floats(-10, 10)
SIGMA = st.floats(0.05, 3)
PATCHES = st.lists(st.tuples(DZ, SIGMA), min_size=1, max_size=8)


@given(PATCHES, st.randoms())
def test_order_means_nothing(patches, random):
    shuffled = random.sample(patches, len(patches))
    one, other = (agree(*np.array(p, float).T) for p in (patches, shuffled))
    assert (one.dz_um, one.sigma_um, one.agreement) == pytest.approx((other.dz_um, other.sigma_um, other.agreement))


@given(PATCHES)
def test_result_lies_among_the_patches(patches):
    dz_um, sigma_um = np.array(patches, float).T
    seen = agree(dz_um, sigma_um)
    assert dz_um.min() - 1e-9 <= seen.dz_um <= dz_um.max() + 1e-9
    assert 0 < seen.agreement <= 1 + 1e-9
    assert seen.sigma_um > 0
    assert seen.patches == len(patches)


@given(DZ, st.lists(st.tuples(st.floats(-0.1, 0.1), SIGMA), min_size=1, max_size=8))
def test_mirrored_patches_give_the_mirrored_defocus(centre, patches):
    off_um, sigma_um = np.array(patches, float).T
    one, other = agree(centre + off_um, sigma_um), agree(-centre - off_um, sigma_um)
    assert one.dz_um == pytest.approx(-other.dz_um, abs=1e-9)


@pytest.mark.parametrize("flipped", [1, 2, 3])
def test_flipped_minority_does_not_move_it(flipped):
    dz_um = np.full(8, 4.0) + np.linspace(-0.1, 0.1, 8)
    dz_um[:flipped] *= -1
    seen = agree(dz_um, np.full(8, 0.2))
    assert seen.dz_um == pytest.approx(4.0, abs=0.1)
    assert seen.sure
    assert seen.agreement == pytest.approx(1 - flipped / 8)


def test_half_against_half_is_not_sure():
    seen = agree(np.array([5.0, -5, 5, -5, 5, -5, 5, -5]), np.full(8, 0.2))
    assert not seen.sure


def test_more_agreeing_patches_are_surer_but_never_far_surer():
    one, eight = agree(np.array([1.0]), np.array([0.3])), agree(np.full(8, 1.0), np.full(8, 0.3))
    assert 0.5 * one.sigma_um < eight.sigma_um < one.sigma_um


def test_scatter_beyond_the_stated_sigma_widens_the_result():
    tight = agree(np.array([1.0, 1.0, 1.0, 1.0]), np.full(4, 0.1))
    loose = agree(np.array([0.75, 1.25, 0.8, 1.2]), np.full(4, 0.1))
    assert loose.sigma_um > 1.5 * tight.sigma_um


def test_unsure_patch_counts_little():
    assert agree(np.array([1.0, 6.0]), np.array([0.1, 3.0])).dz_um == pytest.approx(1.0, abs=0.02)


def test_what_is_no_number_is_left_out():
    seen = agree(np.array([np.nan, 1.0, np.inf]), np.array([0.1, 0.2, 0.1]))
    assert (seen.dz_um, seen.patches) == (1.0, 1)
    assert agree(np.array([np.nan]), np.array([0.1])) is None
    assert agree(np.array([]), np.array([])) is None
    assert agree(np.array([1.0]), np.array([0.0])) is None


def test_a_stretched_deviation_is_wider_and_as_sure():
    seen = agree(np.array([0.5, 0.6]), np.array([0.4, 0.4]))
    for factor in (0.5, 1.0, 4.0):
        other = seen.stretched(factor)
        assert (other.dz_um, other.sigma_um) == (seen.dz_um, seen.sigma_um * factor)
        assert other.sure == other.scaled(3).sure == seen.sure


def test_another_objective_scales_lengths_and_keeps_what_is_sure():
    seen = agree(np.array([0.5, 0.6]), np.array([0.2, 0.2]))
    other = seen.scaled(6.25)
    assert (other.dz_um, other.sigma_um) == pytest.approx((seen.dz_um * 6.25, seen.sigma_um * 6.25))
    assert other.sure == seen.sure

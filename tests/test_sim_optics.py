"""What the simulated camera sees: exact where nothing disturbs, pure everywhere, the sign of defocus visible."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_scanner.config import Config, load
from edge_scanner.geometry import Position
from edge_scanner.sim.optics import Objective, channels
from edge_scanner.sim.picture import PictureSpecimen
from edge_scanner.sim.psf import defocus_kernel
from edge_scanner.sim.surface import FocalSurface
from edge_scanner.sim.tissue import TissueSpecimen

H, W, P = 120, 160, 0.5
CLEAN = ["sim.blur=false", "sim.noise=false", "sim.vignetting=false", "sim.surface=false"]
TISSUE = TissueSpecimen(3, 1000, 1200, P).read(500, 700, 700, 800)


def configured(*overrides: str) -> Config:
    return load(None, [f"camera.height_px={H}", f"camera.width_px={W}", *overrides])


def objective(*overrides: str, picture: np.ndarray = TISSUE) -> Objective:
    config = configured(*overrides)
    return Objective(config, PictureSpecimen(picture, P), FocalSurface(config.sim, config.stage.limits))


def at(y0: float, x0: float, z_um: float = 0.0) -> Position:
    return Position((x0 + W / 2) * P, (y0 + H / 2) * P, z_um)


def still(image: Objective, y0: float, x0: float, z_um: float = 0.0, **more: object) -> np.ndarray:
    return image.render(at(y0, x0, z_um), (1, 2, 3), **more)


@settings(max_examples=30, deadline=None)
@given(st.integers(-200, 800), st.integers(-200, 900), st.floats(-50, 50))
def test_undisturbed_frames_equal_the_specimen(y0: int, x0: int, z_um: float) -> None:
    wanted = PictureSpecimen(TISSUE, P).read(y0, x0, H, W)
    assert np.array_equal(still(objective(*CLEAN), y0, x0, z_um), wanted)
    long_way = objective(*CLEAN, "sim.vignetting=true", "sim.vignetting_corner=0")
    assert np.array_equal(still(long_way, y0, x0, z_um), wanted)


def test_mirror_mono_and_16_bit_are_exact_too() -> None:
    crop = TISSUE[200 : 200 + H, 300 : 300 + W]
    assert np.array_equal(still(objective(*CLEAN, "sim.mirror=true"), 200, 300), crop[:, ::-1])
    mono = still(objective(*CLEAN, "camera.channels=1", "camera.bits=16"), 200, 300)
    assert mono.dtype == np.uint16
    assert np.array_equal(mono, crop[..., 1:2].astype(np.uint16) * 257), "at 0.53 um the green channel"
    dark_field = still(objective(*CLEAN, "illumination.brightfield=false"), 200, 300)
    assert np.array_equal(dark_field, 255 - crop)


def test_half_a_turn_is_both_axes_reversed() -> None:
    turned = still(objective(*CLEAN, "sim.rotation_deg=180"), 200, 300).astype(int)
    assert np.abs(turned - TISSUE[200 : 200 + H, 300 : 300 + W][::-1, ::-1]).max() <= 1


@settings(max_examples=20, deadline=None)
@given(st.floats(-5, 5), st.booleans())
def test_a_turned_camera_looks_where_the_convention_says(angle: float, mirror: bool) -> None:
    y, x = np.mgrid[0:700, 0:800]
    ramp = np.stack([x / 4, y / 4, 0 * x], axis=2)
    picture = np.rint(ramp).astype(np.uint8)
    frame = still(
        objective(*CLEAN, f"sim.rotation_deg={angle}", f"sim.mirror={str(mirror).lower()}", picture=picture), 300, 300
    )
    dx, dy = (10 + 0.5 - W / 2) * (-1 if mirror else 1), 20 + 0.5 - H / 2
    t = np.radians(angle)
    want_x = 300 + W / 2 + dx * np.cos(t) - dy * np.sin(t) - 0.5
    want_y = 300 + H / 2 + dx * np.sin(t) + dy * np.cos(t) - 0.5
    assert frame[20, 10, 0] == pytest.approx(want_x / 4, abs=0.8)
    assert frame[20, 10, 1] == pytest.approx(want_y / 4, abs=0.8)


@pytest.mark.parametrize("rotation", ["0", "0.0001"])
@pytest.mark.parametrize("shift", [0.1, 0.5, 0.83])
def test_sub_pixel_positions_shift_by_their_fraction(shift: float, rotation: str) -> None:
    y, x = np.mgrid[0:400, 0:400].astype(float)

    def wave(dy: float, dx: float) -> np.ndarray:
        value = 128 + 50 * np.sin((x + dx) / 3) + 50 * np.cos((y + dy) / 4)
        return np.repeat(value[..., None], 3, axis=2)

    image = objective(*CLEAN, f"sim.rotation_deg={rotation}", picture=np.rint(wave(0, 0)).astype(np.uint8))
    wanted = wave(shift, shift / 2)[100 : 100 + H, 100 : 100 + W]
    assert np.abs(still(image, 100 + shift, 100 + shift / 2) - wanted).max() < 2.5


def test_frames_depend_on_position_and_key_alone() -> None:
    one, other = objective("sim.seed=4"), objective("sim.seed=4")
    places = [at(100.3, 200.7, 3.0), at(400, 300, -2.0), at(20, 500, 0.0)]
    first = [one.render(p, (4, k)) for k, p in enumerate(places)]
    second = [other.render(places[k], (4, k)) for k in (2, 0, 1)]
    assert all(np.array_equal(first[k], frame) for k, frame in zip((2, 0, 1), second, strict=True))
    assert not np.array_equal(first[0], one.render(places[0], (5, 0))), "another key, another noise"


def test_noise_has_the_variance_of_photons_and_read_out() -> None:
    grey = np.full((700, 800, 3), 120, np.uint8)
    image = objective(*CLEAN[:1], *CLEAN[2:], "sim.noise=true", picture=grey)
    frame = still(image, 200, 300).astype(float)
    electrons = 10_000 / 255
    assert frame.mean() == pytest.approx(120, abs=0.1)
    assert frame.var() == pytest.approx(120 / electrons + (6 / electrons) ** 2 + 1 / 12, rel=0.06)


def test_vignetting_darkens_the_corner_by_its_share() -> None:
    glass = np.full((700, 800, 3), 200, np.uint8)
    image = objective(*CLEAN[:2], CLEAN[3], "sim.vignetting_corner=0.25", picture=glass)
    frame = still(image, 200, 300)
    assert frame[H // 2, W // 2, 0] == 200
    assert int(frame[0, 0, 0]) == pytest.approx(150, abs=2)


def test_dark_without_light() -> None:
    assert (still(objective(*CLEAN), 200, 300, brightness=0.0) == 0).all()
    assert still(objective(), 200, 300, brightness=0.0).mean() < 1


def energy(frame: np.ndarray) -> np.ndarray:
    """Return the gradient energy of each channel."""
    return (np.diff(frame.astype(float), axis=1) ** 2).mean(axis=(0, 1))


def test_green_is_sharpest_in_focus_and_blurs_steadily() -> None:
    image = objective("sim.noise=false", "sim.surface=false")
    for side in (-1, 1):
        sharpness = [energy(still(image, 200, 300, side * z))[1] for z in (0, 0.6, 1.2, 2, 3, 5, 8, 12, 20, 40, 90)]
        assert all(a > b for a, b in pairwise(sharpness))


def test_colour_tells_the_side_of_focus() -> None:
    image = objective("sim.noise=false", "sim.surface=false")
    ratios = [e[0] / e[2] for e in (energy(still(image, 200, 300, z)) for z in np.arange(-1.5, 1.6, 0.5))]
    assert all(a < b for a, b in pairwise(ratios)), "red focuses above blue"
    colourless = objective("sim.noise=false", "sim.surface=false", "sim.axial_colour_um=0", "sim.spherical_waves=0")
    above, below = still(colourless, 200, 300, 2.0), still(colourless, 200, 300, -2.0)
    assert np.abs(above.astype(int) - below).max() <= 1, "an ideal objective cannot tell the sides apart"


def test_spherical_aberration_alone_tells_the_sides_apart() -> None:
    image = objective("sim.noise=false", "sim.surface=false", "sim.axial_colour_um=0")
    above, below = still(image, 200, 300, 2.0), still(image, 200, 300, -2.0)
    assert np.abs(above.astype(int) - below).max() > 5


@pytest.mark.parametrize("defocus_um", [0.0, 0.5, 2.0, -2.0, 5.0, 9.0])
def test_kernels_keep_the_light_and_are_even(defocus_um: float) -> None:
    (pupil,) = (c.pupil for c in channels(configured("camera.channels=1")))
    kernel = defocus_kernel(pupil, P, defocus_um)
    assert kernel.sum() == pytest.approx(1, abs=1e-5)
    assert np.allclose(kernel, kernel[::-1, ::-1], atol=1e-6)
    assert np.allclose(kernel, kernel.T, atol=1e-6)


def test_the_blur_disc_has_the_size_of_geometry() -> None:
    (pupil,) = (c.pupil for c in channels(configured("camera.channels=1", "sim.spherical_waves=0")))
    kernel = defocus_kernel(pupil, 0.25, 6.0)
    at_ = np.arange(kernel.shape[0]) - kernel.shape[0] // 2
    rms = np.sqrt((kernel.sum(axis=0) * at_**2).sum() * 2) * 0.25
    disc = 6.0 * 0.75 / np.sqrt(1 - 0.75**2) / np.sqrt(2)
    assert rms == pytest.approx(disc, rel=0.2)


def held(kernel: np.ndarray, pixel_um: float, radius_um: float) -> float:
    """The light within a radius."""
    half = kernel.shape[0] // 2
    y, x = np.ogrid[-half : half + 1, -half : half + 1]
    return float((kernel * np.clip(radius_um / pixel_um + 0.5 - np.hypot(y, x), 0, 1)).sum())


@pytest.mark.parametrize("defocus_um", [8.0, 14.0])
def test_rays_on_a_coarse_grid_spread_as_waves_do_on_a_fine_one(defocus_um: float) -> None:
    """At NA 0.95 waves are followed up to 1.1 um a pixel; an even disc would hold half of what the middle holds."""
    config = configured("camera.channels=1", "sim.spherical_waves=0", "optics.numerical_aperture=0.95")
    (pupil,) = (c.pupil for c in channels(config))
    waves, rays = (defocus_kernel(pupil, pixel_um, defocus_um) for pixel_um in (1.0, 1.2))
    for share in (0.5, 1.0, 1.5, 2.5):
        assert held(rays, 1.2, share * defocus_um) == pytest.approx(held(waves, 1.0, share * defocus_um), abs=0.04)


def test_axial_colour_is_in_proportion_to_the_depth_of_field() -> None:
    apart = {na: channels(configured(f"optics.numerical_aperture={na}"))[0].focus_um for na in (0.3, 0.75, 0.95)}
    assert apart[0.75] == pytest.approx(0.45)
    assert apart[0.3] == pytest.approx(0.45 * 6.25)
    assert apart[0.95] == pytest.approx(0.45 * 0.62327, rel=1e-4)


def test_a_curved_field_is_sharp_where_the_stage_says() -> None:
    image = objective("sim.noise=false", "sim.surface=false", "sim.vignetting=false", "optics.field_curvature_um=12")
    grating = np.tile(np.array([60, 60, 200, 200], np.uint8), 200)[None, :, None].repeat(700, 0).repeat(3, 2)
    image = objective(
        "sim.noise=false", "sim.surface=false", "sim.vignetting=false", "optics.field_curvature_um=12", picture=grating
    )
    centre, rim = (still(image, 200, 300, z)[..., 1].astype(float) for z in (0, -12))
    middle, corner = np.s_[H // 2 - 8 : H // 2 + 8, W // 2 - 8 : W // 2 + 8], np.s_[:8, :8]
    assert centre[middle].std() > 3 * centre[corner].std()
    assert rim[corner].std() > 3 * rim[middle].std()


def test_moving_smears_along_the_path_only() -> None:
    dots = np.zeros((700, 800, 3), np.uint8)
    dots[260, 380] = 255
    image = objective(*CLEAN, picture=dots)
    frame = still(image, 200, 300, travel_um=(10.0, 0.0))[..., 1]
    rows, cols = np.nonzero(frame)
    assert set(rows) == {60}
    assert cols.min() == pytest.approx(70, abs=1)
    assert cols.max() == pytest.approx(90, abs=1)
    assert np.array_equal(still(objective(*CLEAN, "sim.motion_blur=false"), 200, 300, travel_um=(10.0, 0.0)),
                          TISSUE[200 : 200 + H, 300 : 300 + W])  # fmt: skip


@given(st.floats(-2000, 80_000), st.floats(-2000, 30_000), st.integers(0, 50))
def test_the_surface_stays_within_the_stage(x_um: float, y_um: float, seed: int) -> None:
    config = load(None, [f"sim.seed={seed}", "sim.tilt_um_per_mm=30", "stage.z_min_um=-50", "stage.z_max_um=80"])
    z = FocalSurface(config.sim, config.stage.limits).z_um(x_um, y_um)
    assert 15 - 0.8 * 65 <= z <= 15 + 0.8 * 65
    assert FocalSurface(load(None, ["sim.surface=false"]).sim, config.stage.limits).z_um(x_um, y_um) == 0


@given(st.floats(0, 70_000), st.floats(0, 25_000), st.floats(0, 6.28))
def test_the_surface_is_smooth(x_um: float, y_um: float, angle: float) -> None:
    config = load(None)
    surface = FocalSurface(config.sim, config.stage.limits)
    step = surface.z_um(x_um + 100 * np.cos(angle), y_um + 100 * np.sin(angle)) - surface.z_um(x_um, y_um)
    assert abs(step) < 0.1 * (1.5 + 0.7 + 3.2), "micrometres per tenth of a millimetre: tilt, bow, bumps"


@pytest.mark.data
def test_a_real_slide_shows_the_side_of_focus(shared_data: Path) -> None:
    picture = cv2.imread(str(shared_data / "histology" / "skimage_ihc_colon.png"))[..., ::-1]
    image = objective("sim.surface=false", picture=np.ascontiguousarray(picture))
    ratios = [e[0] / e[2] for e in (energy(still(image, 150, 150, z)) for z in (-1.0, 0.0, 1.0))]
    assert ratios[0] < ratios[1] < ratios[2]

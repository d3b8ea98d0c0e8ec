"""Flat field: a known profile comes back, arithmetic is exact, files are trusted only when they fit."""

import json
import sqlite3

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scan_rig import EXACT, calibrated_scan, homed_rig, levels_of, small_config

from edge_scanner import config as configs
from edge_scanner.abort import Abort
from edge_scanner.calibrate import prepare
from edge_scanner.errors import AbortedError, SourceError
from edge_scanner.geometry import Position
from edge_scanner.plan import ScanRegion
from edge_scanner.scanner.pipeline import Pipeline
from edge_scanner.scanner.scan import make_plan, run_nested
from edge_scanner.shading import Correction, FlatField, Setting, correction, flat_field
from edge_scanner.sim.specimen import open_specimen

VIGNETTED = ("sim.blur=false", "sim.noise=false", "sim.surface=false", "focus.mode=off", "sim.vignetting_corner=0.2")


def setting(height=192, width=256, channels=3, bits=8):
    camera = {"width_px": width, "height_px": height, "channels": channels, "bits": bits}
    return Setting.of(configs.parse({"camera": camera}))


def shade(height, width, corner, tilt, centre=(0.0, 0.0)):
    """A vignette about any centre, and light that is stronger on one side."""
    y, x = np.mgrid[0:height, 0:width]
    y, x = 2 * y / (height - 1) - 1, 2 * x / (width - 1) - 1
    return 1 - corner * ((y - centre[0]) ** 2 + (x - centre[1]) ** 2) / 2 + tilt * x


def photo(profile, levels, dark=0.0, noise=0.0, bits=8, seed=0):
    full = 255 if bits == 8 else 65535
    grain = np.random.default_rng(seed).normal(0, noise, (*profile.shape, len(levels))) if noise else 0
    frame = profile[..., None] * np.array(levels) + dark + grain
    return np.clip(np.rint(frame), 0, full).astype(np.uint8 if bits == 8 else np.uint16)


@settings(max_examples=25)
@given(
    corner=st.floats(0.02, 0.3),
    tilt=st.floats(-0.05, 0.05),
    centre=st.tuples(st.floats(-0.3, 0.3), st.floats(-0.3, 0.3)),
    channels=st.sampled_from([1, 3]),
    bits=st.sampled_from([8, 16]),
    noise=st.sampled_from([0.0, 3.0]),
)
def test_glass_comes_out_even_and_below_full_scale(corner, tilt, centre, channels, bits, noise):
    unit = 1 if bits == 8 else 257
    levels = [230 * unit, 215 * unit, 190 * unit][:channels]
    profile = shade(200, 264, corner, tilt, centre)
    profile /= profile.max()
    frames = [photo(profile, levels, 0, noise * unit, bits, seed) for seed in range(4)]
    flat = flat_field(frames, None, setting(200, 264, channels, bits), "now")
    applied = correction(flat, balance=False)
    if applied is None:
        assert np.ptp(profile) < 0.01
        return
    clean = applied.apply(photo(profile, levels, 0, 0, bits)).astype(float)
    assert clean.shape == (200, 264, channels)
    for c, level in enumerate(levels):
        rough = cv2.blur(clean[..., c], (8, 8))
        assert np.abs(rough - level).max() < 0.006 * level, "even, at the brightest level it had"
    assert clean.max() < 0.975 * 255 * unit


def test_white_stays_below_full_scale_even_where_the_glass_was_saturated():
    profile = shade(192, 256, 0.2, 0)
    flat = flat_field([photo(profile, [258] * 3, 0, 2.5)], None, setting(), "now")
    corrected = correction(flat, balance=True).apply(photo(profile, [258] * 3))
    assert (corrected == 255).mean() == 0
    rim = np.ones((192, 256), bool)
    rim[30:-30, 40:-40] = False
    assert abs(float(corrected[rim].mean()) - 0.97 * 255) < 1
    assert np.abs(flat.profile()[..., 0] * flat.glass[0] - 258 * profile).max() < 0.5, "the middle is extrapolated"


@given(seed=st.integers(0, 99), dark=st.sampled_from([0, 3]))
def test_the_arithmetic_is_that_of_exact_fractions_rounded_once(seed, dark):
    rng = np.random.default_rng(seed)
    gain = rng.uniform(0.5, 1.99, (37, 41, 3)).astype(np.float32)
    pixels = rng.integers(0, 256, (37, 41, 3), dtype=np.uint8)
    whole = np.rint(gain.astype(float) * 2**15).astype(np.int64) * (pixels.astype(np.int64) - dark)
    exact = np.clip((whole + 2**14) >> 15, 0, 255)
    ties = (whole & (2**15 - 1)) == 2**14
    found = Correction(gain, [dark] * 3).apply(pixels).astype(int)
    assert np.array_equal(found[~ties], exact[~ties])
    assert np.abs(found - exact).max() <= 1


def test_rounding_is_unbiased():
    rng = np.random.default_rng(5)
    pixels = rng.integers(20, 200, (512, 512, 3), dtype=np.uint8)
    gain = rng.uniform(1.0, 1.2, pixels.shape)
    error = Correction(gain, [0, 0, 0]).apply(pixels) - pixels * gain
    assert abs(float(error.mean())) < 0.003


def test_the_dark_level_is_taken_off_first():
    profile = shade(192, 256, 0.2, 0)
    bright, dark = photo(profile, [180] * 3, dark=20), np.full((192, 256, 3), 20, np.uint8)
    flat = flat_field([bright], dark, setting(), "now")
    assert np.allclose(flat.dark, 20)
    applied = correction(flat, balance=False)
    assert np.ptp(applied.apply(photo(profile, [90] * 3, dark=20)).astype(int)) <= 2
    assert applied.apply(dark).max() == 0
    mono = Correction(np.full((70, 64, 1), 1.5), [20.0]).apply(np.full((70, 64, 1), 120, np.uint8))
    assert mono.shape == (70, 64, 1)
    assert (mono == 150).all()
    not_dark = flat_field([bright], bright, setting(), "now")
    assert not_dark.dark == (0, 0, 0), "a light that cannot be switched off gives no dark frame"


@pytest.mark.parametrize("noise", [0.0, 3.0])
def test_even_light_is_left_alone(noise):
    frames = [photo(np.ones((192, 256)), [240] * 3, 0, noise, seed=s) for s in range(4)]
    flat = flat_field(frames, None, setting(), "now")
    assert correction(flat, balance=True) is None


def test_balance_makes_glass_neutral_unless_that_clips():
    even = np.ones((192, 256))
    frame = photo(even, [240, 220, 200])
    flat = flat_field([frame], None, setting(), "now")
    assert (correction(flat, balance=True).apply(frame) == 240).all()
    assert correction(flat, balance=False) is None
    bright = flat_field([photo(even, [250, 220, 200])], None, setting(), "now")
    assert correction(bright, balance=True) is None


def test_a_file_gives_back_what_was_saved_and_no_damage_goes_unseen(tmp_path):
    flat = flat_field([photo(shade(192, 256, 0.2, 0), [230, 220, 210])], None, setting(), "now")
    path = tmp_path / "flat.npz"
    flat.save(path)
    again = FlatField.load(path)
    assert np.array_equal(again.profile(), flat.profile())
    assert (again.setting, again.glass, again.dark) == (flat.setting, flat.glass, flat.dark)
    data = path.read_bytes()
    for at in range(len(data)):
        path.unlink()  # a file that is cut short and written again is synced by ext4
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x40]) + data[at + 1 :])
        try:
            unhurt = FlatField.load(path)
        except SourceError:
            continue
        assert unhurt.checksum() == flat.checksum(), f"byte {at}"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(SourceError, match="no flat field"):
        FlatField.load(path)
    with pytest.raises(SourceError, match="There is no flat field"):
        FlatField.load(tmp_path / "none.npz")


def test_a_rewritten_file_is_found_out(tmp_path):
    flat = flat_field([photo(shade(192, 256, 0.2, 0), [230, 220, 210])], None, setting(), "now")
    path = tmp_path / "flat.npz"
    flat.save(path)
    with np.load(path) as data:
        arrays = dict(data)
    about = json.loads(str(arrays["about"]))
    about["glass"][0] += 1
    np.savez(path, **{**arrays, "about": json.dumps(about)})
    with pytest.raises(SourceError, match="checksum"):
        FlatField.load(path)


@pytest.mark.parametrize(
    ("override", "names"),
    [("camera.exposure_ms=3", "exposure_ms"), ("camera.gain=2", "gain"), ("optics.magnification=40", "magnification"),
     ("illumination.level=0.5", "level"), ("camera.width_px=320", "width_px")],
)  # fmt: skip
def test_another_setting_is_refused_by_name(tmp_path, override, names):
    config = small_config(tmp_path, f'camera.flat_field="{tmp_path}/flat.npz"')
    flat_field([photo(shade(192, 256, 0.2, 0), [230] * 3)], None, Setting.of(config), "now").save(tmp_path / "flat.npz")
    other = small_config(tmp_path, f'camera.flat_field="{tmp_path}/flat.npz"', override)
    with pytest.raises(SourceError, match=f"its {names} was"):
        prepared(other, tmp_path / "scan")


def prepared(config, folder, *, region=(0.0, 0.0, 0.8, 0.6), rig=None, **hooks):
    folder.mkdir(exist_ok=True)
    return prepare(config, rig or homed_rig(config), make_plan(config, ScanRegion(*region)), folder, **hooks)


def test_a_vignetted_scan_gives_back_the_specimen(tmp_path):
    config = small_config(tmp_path, *VIGNETTED)
    scan = calibrated_scan(config, tmp_path / "scan")
    run_nested(scan)
    scan.close()
    level0 = levels_of(scan.folder)[0].astype(int)
    truth = open_specimen(config.sim, 1.0).read(0, 0, *level0.shape[:2])
    assert np.abs(level0 - truth).max() <= 2
    assert abs(float((level0 - truth).mean())) < 0.3


def test_threads_and_loops_agree_on_shaded_pixels(tmp_path):
    config = small_config(tmp_path, "sim.stage_error_um=2", "sim.blur=false", "focus.mode=off")
    first, second = calibrated_scan(config, tmp_path / "nested"), calibrated_scan(config, tmp_path / "threads")
    run_nested(first)
    Pipeline(second, Abort(), cancelled=lambda: False, on_tile=lambda _: None).run()
    first.close()
    second.close()
    assert all(np.array_equal(a, b) for a, b in zip(levels_of(first.folder), levels_of(second.folder), strict=True))


def test_an_exact_rig_needs_no_correction_and_a_resumed_scan_takes_the_old_one(tmp_path):
    assert prepared(small_config(tmp_path, *EXACT), tmp_path / "exact").shading is None
    config = small_config(tmp_path)
    first = prepared(config, tmp_path / "scan")
    rig = homed_rig(config)
    frames = []
    snap = rig.camera.snap
    rig.camera.snap = lambda: frames.append(1) or snap()
    again = prepared(config, tmp_path / "scan", rig=rig)
    assert not frames
    pixels = np.random.default_rng(1).integers(0, 256, (192, 256, 3), dtype=np.uint8)
    assert np.array_equal(first.shading.apply(pixels), again.shading.apply(pixels))


def noted(folder, key):
    with sqlite3.connect(folder / "journal.sqlite") as db:
        return json.loads(db.execute("SELECT value FROM scan WHERE key = ?", (key,)).fetchone()[0])


def test_glass_inside_the_region_serves_when_there_is_none_around(tmp_path):
    picture = np.random.default_rng(3).integers(60, 200, (30, 40, 3)).astype(np.uint8)
    picture = cv2.resize(picture, (1200, 900), interpolation=cv2.INTER_CUBIC)
    picture[200:700, 350:850] = 245
    cv2.imwrite(str(tmp_path / "island.png"), picture)
    limits = ("stage.x_min_mm=0.2", "stage.x_max_mm=1.0", "stage.y_min_mm=0.2", "stage.y_max_mm=0.7")
    config = small_config(tmp_path, f'sim.slide="{tmp_path}/island.png"', *limits)
    made = prepared(config, tmp_path / "scan", region=(0.2, 0.2, 0.8, 0.5))
    assert made.shading is not None
    cv2.imwrite(str(tmp_path / "island.png"), cv2.resize(picture[:180], (1200, 900)))
    none = prepared(config, tmp_path / "none", region=(0.2, 0.2, 0.8, 0.5))
    assert none.shading is None
    assert "No clean glass" in noted(tmp_path / "none", "shading")["source"]


def test_glass_further_out_serves_when_all_around_is_tissue(tmp_path):
    coarse = np.random.default_rng(3).integers(60, 200, (60, 80, 3)).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "tissue.png"), cv2.resize(coarse, (1600, 1200), interpolation=cv2.INTER_CUBIC))
    config = small_config(tmp_path, f'sim.slide="{tmp_path}/tissue.png"')
    rig = homed_rig(config)
    made = prepared(config, tmp_path / "far", region=(0.6, 0.45, 0.3, 0.3), rig=rig)
    rig.illumination.on()
    rig.stage.start_move(Position(-700, -500, 0))
    rig.stage.wait()
    raw = rig.camera.snap().pixels
    rough, even = (cv2.blur(pixels, (24, 24)).astype(int) for pixels in (raw, made.shading.apply(raw)))
    assert np.ptp(rough) > 20
    assert np.ptp(even) <= 3


def test_switched_off_means_off_and_the_light_goes_out(tmp_path):
    assert prepared(small_config(tmp_path, "scan.shading=off"), tmp_path / "off").shading is None
    config = small_config(tmp_path)
    rig = homed_rig(config)
    prepared(config, tmp_path / "on", rig=rig)
    assert rig.camera.snap().pixels.mean() < 1
    with pytest.raises(AbortedError):
        prepared(config, tmp_path / "aborted", rig=rig, aborted=lambda: True)
    assert rig.camera.snap().pixels.mean() < 1

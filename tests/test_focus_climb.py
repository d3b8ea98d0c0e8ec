"""The climb must end at the focus, in few frames, inside its window, and must not invent one where there is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from focus_scene import HEIGHT_PX, PIXEL_UM, half_slide, ready, scene_config, tissue
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_scanner.config import Config, load
from edge_scanner.errors import ConfigError
from edge_scanner.focus import make_focus
from edge_scanner.focus.score import sharpness
from edge_scanner.geometry import Position
from edge_scanner.tile import Frame

DEPTH_UM = Config().optics.depth_of_field_um
SHARP = tissue(128, 160).astype(np.float32)


class Watched:
    """A `snap` that remembers every z and every score."""

    def __init__(self, picture: Callable[[float], np.ndarray]) -> None:
        self._picture = picture
        self.asked: list[float] = []
        self.scores: list[float] = []

    def __call__(self, z_um: float) -> Frame:
        pixels = self._picture(z_um)
        self.asked.append(z_um)
        self.scores.append(sharpness(pixels))
        return Frame(pixels, len(self.asked), 0.0, 1.0)


def defocused(focus_um: float, noise: float, seed: int = 0) -> Callable[[float], np.ndarray]:
    """Tissue whose blur grows with the distance from focus; noise differs with z."""

    def picture(z_um: float) -> np.ndarray:
        blurred = cv2.GaussianBlur(SHARP, (0, 0), float(np.hypot(0.5, 0.7 * (z_um - focus_um))))
        rng = np.random.default_rng([seed, round(z_um * 1000) & 0xFFFFFFFF])
        return np.clip(np.rint(blurred + noise * rng.standard_normal(SHARP.shape)), 0, 255).astype(np.uint8)

    return picture


@settings(max_examples=40, deadline=None)
@given(start=st.floats(-200, 200), off=st.floats(-9, 9), noise=st.floats(0.3, 4), seed=st.integers(0, 999))
def test_ends_within_half_a_depth_of_field_from_anywhere_in_the_window(start, off, noise, seed) -> None:
    snap = Watched(defocused(start + off, noise, seed))
    result = make_focus(Config()).run(start, snap, surface_known=True).result
    assert result.measured
    assert result.in_focus
    assert abs(result.z_um - start - off) <= DEPTH_UM / 2
    assert result.dz_um == pytest.approx(result.z_um - start - off, abs=0.25)
    assert result.frames == len(snap.asked) <= 10
    assert result.score == max(snap.scores)
    assert all(abs(z - start) <= Config().focus.range_um for z in snap.asked)


@settings(max_examples=30, deadline=None)
@given(off=st.floats(-0.25, 0.25))
def test_a_good_prediction_costs_three_frames(off: float) -> None:
    snap = Watched(defocused(off, 2.0))
    assert make_focus(Config()).run(0.0, snap, surface_known=True).result.frames <= 4
    assert abs(snap.asked[0]) == 0


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 30), min_size=30, max_size=30), st.booleans())
def test_any_curve_ends_inside_window_and_budget(blurs: list[float], known: bool) -> None:
    config = load(None, ["focus.max_frames=9", "stage.z_min_um=-7", "stage.z_max_um=5"])
    left = iter(blurs)
    snap = Watched(lambda _z: cv2.GaussianBlur(SHARP, (0, 0), 0.3 + next(left)).astype(np.uint8))
    outcome = make_focus(config).run(1.0, snap, known)
    assert len(snap.asked) <= 9
    assert all(-7 <= z <= 5 for z in snap.asked)
    assert len(set(snap.asked)) == len(snap.asked)
    assert outcome.result.z_um in snap.asked
    assert outcome.result.score == sharpness(outcome.frame.pixels)


@pytest.mark.parametrize("level", [0, 240])
@pytest.mark.parametrize("noise", [0.0, 3.0])
def test_a_flat_curve_is_no_measurement(level: int, noise: float) -> None:
    def picture(z_um: float) -> np.ndarray:
        rng = np.random.default_rng(round(z_um * 1000) & 0xFFFFFFFF)
        return np.clip(level + noise * rng.standard_normal((256, 320, 3)), 0, 255).astype(np.uint8)

    for known in (True, False):
        snap = Watched(picture)
        outcome = make_focus(Config()).run(4.0, snap, known)
        assert (outcome.result.measured, outcome.result.in_focus) == (False, False)
        assert outcome.result.z_um == 4.0
        assert outcome.frame.frame_id == 1
        assert len(snap.asked) <= 6


def test_a_curve_that_rises_to_the_limit_keeps_its_best_frame_unmeasured() -> None:
    config = load(None, ["stage.z_max_um=3"])
    snap = Watched(defocused(8.0, 1.0))
    result = make_focus(config).run(0.0, snap, surface_known=True).result
    assert (result.measured, result.in_focus) == (False, False)
    assert result.z_um == max(snap.asked) == 3
    assert result.score == max(snap.scores)


def test_the_first_frame_is_not_taken_twice() -> None:
    snap = Watched(defocused(0.0, 1.0))
    first = snap(0.0)
    outcome = make_focus(Config()).run(0.0, snap, True, first)
    assert snap.asked.count(0.0) == 1
    assert outcome.frame is first
    assert outcome.result.frames == len(snap.asked)


@pytest.mark.parametrize(
    ("overrides", "off_um", "known"),
    [
        ([], 0.2, True),
        ([], -3.0, True),
        ([], 10.0, True),
        ([], 20.0, False),
        ([], -25.0, False),
        (["illumination.brightfield=false", "camera.channels=1", "camera.bits=16"], -6.0, True),
        (["optics.numerical_aperture=0.3"], 8.0, True),
        (["optics.numerical_aperture=0.4", "camera.channels=1"], -6.0, True),
        (["sim.noise=false"], 5.0, False),
    ],
)
def test_simulated_optics(tmp_path: Path, overrides: list[str], off_um: float, known: bool) -> None:
    config = scene_config("sim.surface=false", *overrides, slide=half_slide(tmp_path / "slide.png"))
    rig = ready(config)

    def picture(z_um: float) -> np.ndarray:
        rig.stage.start_move(Position(1200 * PIXEL_UM, 2 * HEIGHT_PX * PIXEL_UM, z_um))
        rig.stage.wait()
        return rig.camera.snap().pixels

    snap = Watched(picture)
    result = make_focus(config).run(-off_um, snap, known).result
    assert result.measured
    assert abs(result.z_um) <= config.optics.depth_of_field_um / 2
    assert len(snap.asked) <= (10 if known else 16)


def test_off_takes_what_is_foretold() -> None:
    snap = Watched(defocused(3.0, 1.0))
    result = make_focus(load(None, ["focus.mode=off"])).run(1.0, snap, surface_known=True).result
    assert (snap.asked, result.z_um, result.frames, result.measured) == ([1.0], 1.0, 1, False)


def test_a_model_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ConfigError, match="model"):
        make_focus(load(None, ["focus.mode=model", "focus.model=nowhere.onnx"]))

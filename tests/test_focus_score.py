"""Sharpness must fall with blur whatever the noise; texture must tell glass from tissue, in focus or not."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest
from focus_scene import HEIGHT_PX, PIXEL_UM, WIDTH_PX, half_slide, ready, scene_config, tissue
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_scanner.config import FocusConfig
from edge_scanner.focus.score import sharpness, sharpness_error, texture
from edge_scanner.geometry import Position

BLANK = FocusConfig().blank_texture


def glass(level: float, sigma: float, corner: float, seed: int, bits: int, channels: int) -> np.ndarray:
    """Evenly lit glass behind a lens that follows the cos^4 law, with Gaussian noise."""
    height, width = 512, 640
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    tan2 = (1 / (1 - corner) ** 0.5 - 1) * (x**2 + y**2) / 2
    light = level / (1 + tan2) ** 2
    frame = light[..., None] + sigma * np.random.default_rng(seed).standard_normal((height, width, channels))
    return np.clip(np.rint(frame), 0, 2**bits - 1).astype(np.uint8 if bits == 8 else np.uint16)


@settings(max_examples=25, deadline=None)
@given(
    level=st.floats(30, 230),
    sigma=st.floats(0, 8),
    corner=st.floats(0, 0.25),
    seed=st.integers(0, 10**6),
    bits=st.sampled_from([8, 16]),
    channels=st.sampled_from([1, 3]),
)
def test_glass_is_blank_whatever_the_light_and_the_noise(level, sigma, corner, seed, bits, channels) -> None:
    scale = 1 if bits == 8 else 200
    frame = glass(level * scale, sigma * scale, corner, seed, bits, channels)
    assert texture(frame) < BLANK / 2


@settings(max_examples=25, deadline=None)
@given(sigma=st.floats(0.7, 10), seed=st.integers(0, 10**6), channels=st.sampled_from([1, 3]))
def test_noise_alone_is_not_sharp(sigma, seed, channels) -> None:
    frame = glass(150, sigma, 0.0, seed, 8, channels)
    assert abs(sharpness(frame)) < 6 * sharpness_error(frame)


@pytest.mark.parametrize("sigma", [0.0, 2.0, 10.0])
@pytest.mark.parametrize("bits", [8, 16])
def test_sharpness_falls_with_every_bit_of_blur(sigma: float, bits: int) -> None:
    sharp = tissue(512, 640).astype(np.float32)
    rng = np.random.default_rng(3)
    scores = []
    for blur in (0.4, 0.6, 0.9, 1.4, 2.1, 3.2, 4.8, 7.2):
        frame = cv2.GaussianBlur(sharp, (0, 0), blur) + sigma * rng.standard_normal(sharp.shape)
        scaled = np.clip(np.rint(frame * (1 if bits == 8 else 257)), 0, 2**bits - 1)
        scores.append(sharpness(scaled.astype(np.uint8 if bits == 8 else np.uint16)))
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > 50 * scores[-1] > 0


def test_sharpness_does_not_depend_on_the_exposure() -> None:
    bright = tissue(512, 640)
    dim = (bright // 2).astype(np.uint8)
    assert sharpness(dim) == pytest.approx(sharpness(bright), rel=0.03)


@pytest.mark.parametrize("shape", [(64, 64, 1), (64, 700, 3), (70, 65, 3)])
@pytest.mark.parametrize("value", [0, 255])
def test_dead_frames_score_zero_and_have_no_texture(shape: tuple[int, int, int], value: int) -> None:
    frame = np.full(shape, value, np.uint8)
    assert sharpness(frame) == 0
    assert texture(frame) < 0.1
    assert np.isfinite(sharpness_error(frame))


@pytest.mark.parametrize("brightfield", ["true", "false"])
@pytest.mark.parametrize(("channels", "bits"), [(3, 8), (1, 8), (1, 16)])
def test_tissue_far_out_of_focus_is_no_glass(tmp_path: Path, brightfield: str, channels: int, bits: int) -> None:
    config = scene_config(
        f"camera.channels={channels}",
        f"camera.bits={bits}",
        f"illumination.brightfield={brightfield}",
        "sim.surface=false",
        slide=half_slide(tmp_path / "slide.png"),
    )
    rig = ready(config)
    for x_px, blank in ((400, True), (1200, False)):
        for z_um in (-10.0, 0.0, 10.0):
            rig.stage.start_move(Position(x_px * PIXEL_UM, 2 * HEIGHT_PX * PIXEL_UM, z_um))
            rig.stage.wait()
            seen = texture(rig.camera.snap().pixels)
            assert seen < BLANK / 2 if blank else seen > 3 * BLANK, (x_px, z_um, seen)


def test_a_little_tissue_in_a_corner_is_seen() -> None:
    frame = glass(240, 2.4, 0.12, 1, 8, 3)
    frame[-90:, -90:] = tissue(HEIGHT_PX, WIDTH_PX)[:90, :90]
    assert texture(frame) > BLANK


@pytest.mark.data
@pytest.mark.parametrize("stack", ["wafer_L1_y000", "wafer_L1_y001"])
def test_real_stacks_are_ranked_by_their_distance_from_focus(shared_data: Path, stack: str) -> None:
    folder = shared_data / "focus_stacks" / stack
    scores = {}
    for file in sorted(folder.glob("*.png")):
        bgr = cv2.imread(str(file), cv2.IMREAD_COLOR)
        scores[float(file.stem[1:].removesuffix("um"))] = sharpness(np.ascontiguousarray(bgr[..., ::-1]))
    for side in (1, -1):
        along = [scores[z] for z in sorted(scores, key=abs) if z == 0 or np.sign(z) == side]
        assert along == sorted(along, reverse=True)
    assert scores[0.0] > 10 * min(scores.values())
    assert (folder / "positions.csv").exists()
    assert len(scores) == len(list(csv.DictReader((folder / "positions.csv").open())))

"""Lamp drift and flicker: found on the overlaps, taken out of the mosaic, and nothing else touched."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from register_scenes import Scene, sampled, scene, textured
from scan_rig import levels_of
from scene_build import build

from edge_scanner import config as configs
from edge_scanner.fuse.align import align
from edge_scanner.fuse.slide import fuse_slide
from edge_scanner.fuse.sources import open_source
from edge_scanner.geometry import Box
from edge_scanner.mosaic.gain import SHOULDER, levelled
from edge_scanner.mosaic.source import Source, resampled
from edge_scanner.register.gain import gains, with_ratio
from edge_scanner.register.pairwise import NO_MATCH, Match, match
from edge_scanner.report.quality import measure
from edge_scanner.scanner.build import SlideBuild
from edge_scanner.scanner.scan import run_nested
from edge_scanner.store import open as open_store
from edge_scanner.tile import Verdict

SMALL = {"tile": (256, 256), "overlap_px": 48, "stage_error_px": 2.0}


@lru_cache(maxsize=2)
def flickering(amount: float = 0.015, glass: float = 0.3) -> Scene:
    return scene(5, 5, seed=21, lamp=amount, glass=glass, noise=1.0, **SMALL)


def seam_step(made: SlideBuild, case: Scene) -> float:
    """Return the coherent seam step, grey levels, against the truth that the scene was cut from."""
    placed = [r.placed for r in made.records.all()]
    off = np.median([case.truth[t.index] - [t.y_px, t.x_px] for t in placed], axis=0) + case.margin
    size = case.plan.tile_height_px, case.plan.tile_width_px
    boxes = [Box(round(t.y_px), round(t.x_px), round(t.y_px) + size[0], round(t.x_px) + size[1]) for t in placed]

    def truth(box: Box) -> np.ndarray:
        return sampled(case.picture, box.y0 + off[0], box.x0 + off[1], box.height, box.width)

    found = measure(made.store, made.frame.canvas, boxes, truth, 255.0).seam_step
    assert found is not None
    return found


def lit(case: Scene, factor) -> Scene:
    """Return the scene with each tile's light times factor(index)."""
    tiles = [
        replace(t, pixels=np.clip(np.rint(t.pixels * factor(t.index)), 0, 255).astype(np.uint8)) for t in case.tiles
    ]
    return replace(case, tiles=tiles)


def spread(made: SlideBuild, case: Scene) -> float:
    """Return how much the brightness of the tiles' middles, against the truth, varies: the relative deviation."""
    placed = [r.placed for r in made.records.all()]
    off = np.median([case.truth[t.index] - [t.y_px, t.x_px] for t in placed], axis=0) + case.margin
    shares = []
    for t in placed:
        box = Box(round(t.y_px) + 60, round(t.x_px) + 60, round(t.y_px) + 190, round(t.x_px) + 190)
        truth = sampled(case.picture, box.y0 + off[0], box.x0 + off[1], box.height, box.width)
        shares.append(made.store.read(0, box).astype(float).mean() / truth.mean())
    return float(np.std(shares))


def test_flicker_is_taken_out_of_the_seams(tmp_path):
    """Hardly any feather, so that a step of the light shows whole."""
    steps, spreads = {}, {}
    for gain in ("off", "auto"):
        made = build(flickering(), tmp_path, gain, f"mosaic.gain={gain}", "mosaic.feather_px=2")
        run_nested(made)
        steps[gain], spreads[gain] = seam_step(made, flickering()), spread(made, flickering())
        made.close()
    assert steps["off"] > 0.6
    assert steps["auto"] <= 0.3
    assert spreads["off"] > 0.005
    assert spreads["auto"] < 0.002


def test_a_lamp_that_fades_in_the_course_of_the_scan(tmp_path):
    """Six percent over seven rows: neighbours in y differ by a percent."""
    steady = scene(7, 4, seed=22, glass=0.3, **SMALL)
    fading = lit(steady, lambda index: 1 - 0.06 * index / 27)
    made = build(fading, tmp_path, "fading", "mosaic.feather_px=2")
    run_nested(made)
    placed = [r.placed for r in made.records.all()]
    left = [t.gain * (1 - 0.06 * t.index / 27) for t in placed]
    assert max(abs(left[a] / left[b] - 1) for a, b in steady.neighbours()) < 0.004
    assert seam_step(made, fading) <= 0.3
    made.close()


@pytest.mark.parametrize("noise", [0.0, 2.0])
def test_an_even_lamp_is_left_alone(noise):
    case = scene(4, 4, seed=23, noise=noise, glass=0.3, **SMALL)
    registrar = case.registrar(level=True)
    placed = [p for tile in case.tiles for p in registrar.add(tile)]
    assert {t.gain for t in placed} == {1.0}


def test_tiles_of_bare_glass_are_levelled_too():
    """Blank tiles have no place of their own, but seams show nowhere better."""
    rng = np.random.default_rng(3)
    case = scene(4, 4, seed=24, noise=0.0, **SMALL)
    lamp = 1 + rng.uniform(-0.015, 0.015, 16)
    glass = [235 * lamp[t.index] + rng.normal(0, 1.5, (256, 256, 3)) for t in case.tiles]
    tiles = [
        replace(t, pixels=np.rint(g).astype(np.uint8), verdict=Verdict.BLANK)
        for t, g in zip(case.tiles, glass, strict=True)
    ]
    registrar, placed = replace(case, tiles=tiles).run(level=True)
    left = np.array([t.gain * lamp[t.index] for t in placed])
    assert lamp.std() > 0.005
    assert left.std() < 0.0015
    assert registrar.pairs == ()
    assert not any(t.registered for t in placed)


def test_gains_do_not_depend_on_the_order_of_arrival():
    case = flickering()
    order = np.random.default_rng(4).permutation(25).tolist()
    assert case.run(order, level=True)[1] == case.run(level=True)[1]


def test_places_do_not_depend_on_gains():
    case = flickering()
    assert [replace(t, gain=1.0) for t in case.run(level=True)[1]] == case.run()[1]


def test_a_resumed_scan_has_the_same_gains_and_pixels(tmp_path):
    case = flickering()
    whole = build(case, tmp_path, "whole")
    run_nested(whole)
    whole.close()
    first = build(case, tmp_path, "broken")
    first.stop = 17
    for tile in first.acquire():
        for numbered in first.place(tile):
            first.write(numbered)
    first.commit()
    first.close()
    second = build(case, tmp_path, "broken", resume=True)
    assert len(second.recover()) == 17
    run_nested(second)
    second.close()
    assert [r.placed for r in second.records.all()] == [r.placed for r in whole.records.all()]
    assert any(r.placed.gain != 1 for r in whole.records.all())
    for a, b in zip(levels_of(whole.folder), levels_of(second.folder), strict=True):
        assert np.array_equal(a, b)
    fuse_slide(open_source(whole.folder), tmp_path / "slide.ome.zarr")
    for a, b in zip(levels_of(whole.folder), levels_of(tmp_path), strict=True):
        assert np.array_equal(a, b), "fused again from its kept tiles"


def test_registration_offline_solves_the_same_gains(tmp_path):
    case = flickering()
    made = build(case, tmp_path, "kept")
    run_nested(made)
    made.close()
    tiles = open_source(made.folder)
    found = align(tiles, case.stage_error_px, 10**8, level=True).gains
    assert found is not None
    assert np.abs(np.array(found) - tiles.gains).max() < 0.003
    assert align(tiles, case.stage_error_px, 10**8).gains is None


def test_fusing_with_registration_levels_what_is_in_colour(tmp_path):
    case = flickering()
    made = build(case, tmp_path, "kept", "mosaic.gain=off")
    run_nested(made)
    off = spread(made, case)
    made.close()
    tiles = open_source(made.folder)
    assert set(tiles.gains) == {1.0}
    for level, name in ((None, "even"), (False, "as-they-are")):
        fuse_slide(tiles, tmp_path / name, register=True, stage_error_px=case.stage_error_px, level=level)
    made.store = open_store(tmp_path / "even")
    assert spread(made, case) < 0.3 * off
    made.store = open_store(tmp_path / "as-they-are")
    assert spread(made, case) > 0.8 * off


@given(gain=st.floats(0.8, 1.25), dtype=st.sampled_from(["uint8", "uint16"]))
def test_levels_are_rounded_once_and_no_highlight_is_clipped(gain, dtype):
    full = np.iinfo(dtype).max
    levels = np.arange(full + 1).astype(dtype).reshape(-1, 16, 1)
    out = levelled(levels, gain).astype(np.int64).ravel()
    plain = np.rint(np.arange(full + 1) * gain)
    knee = SHOULDER * full / max(gain, 1.0)
    below = np.arange(full + 1) <= (knee if gain > 1 else full)
    assert np.array_equal(out[below], plain[below])
    assert (np.diff(out) >= 0).all()
    assert out[-1] == (full if gain > 1 else round(full * gain))
    assert (out[: int(0.97 * full)] < full).all(), "only what was nearly saturated comes near it"


def test_a_gain_of_one_touches_nothing():
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    assert levelled(pixels, 1.0) is pixels
    assert levelled(pixels.astype(np.float32), 1.5).max() == 70.5


@settings(max_examples=40, deadline=None)
@given(
    gain=st.floats(0.8, 1.25),
    shift=st.tuples(st.floats(-0.5, 0.5), st.floats(-0.5, 0.5)),
    dtype=st.sampled_from(["uint8", "uint16"]),
    cut=st.integers(1, 149),
    low=st.sampled_from([0.0, 0.9]),
)
def test_a_moved_tile_is_levelled_before_its_one_rounding_wherever_it_is_cut(gain, shift, dtype, cut, low):
    full = np.iinfo(dtype).max
    image = np.random.default_rng(int(cut)).uniform(low * full, full, (150, 40, 3)).astype(dtype)
    box = Box(0, 0, 150, 40)
    source = Source(0, box, box, shift, lambda b: image[b.y0 : b.y1, b.x0 : b.x1], gain=gain)
    whole = resampled(source, box)
    parts = [resampled(source, Box(0, 0, cut, 40)), resampled(source, Box(cut, 0, 150, 40))]
    assert np.array_equal(np.concatenate(parts), whole)
    exact = resampled(replace(source, gain=1.0, crop=lambda b: image[b.y0 : b.y1, b.x0 : b.x1].astype(np.float32)), box)
    wanted = exact.astype(float) * gain
    if gain > 1:
        top = SHOULDER * full
        bent = top + (wanted - top) * (full - top) / (gain * full - top)
        wanted = np.where(wanted > top, bent, wanted)
    off = np.abs(whole - wanted.clip(0, full))
    assert off.max() <= 0.5 + full * 2e-6
    assert whole.dtype == image.dtype


def strips(factor: float, level: float = 200.0, noise: float = 1.5, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [np.clip(np.rint(level * f + rng.normal(0, noise, (256, 48))), 0, 255).astype(np.uint8) for f in (1, factor)]


@settings(max_examples=20)
@given(st.floats(0.8, 1.2))
def test_the_ratio_of_two_strips_of_glass(factor):
    found = with_ratio(NO_MATCH, *strips(factor))
    assert abs(found.log_ratio - np.log(factor)) < 4e-4
    assert 1e-3 <= found.log_sigma < 2e-3


def test_strips_that_cannot_tell_the_light_tell_nothing():
    tissue, other = (textured(256, 48, seed=k).mean(axis=2).astype(np.uint8) for k in (1, 2))
    assert with_ratio(match(tissue, other, 20), tissue, other).log_sigma == np.inf, "not the same specimen"
    white = np.full((256, 48), 255, np.uint8)
    assert with_ratio(NO_MATCH, white, white).log_sigma == np.inf
    assert with_ratio(NO_MATCH, *strips(1.1, level=4.0)).log_sigma == np.inf, "in the dark"
    assert with_ratio(NO_MATCH, white[:20, :20], white[:20, :20]).log_sigma == np.inf, "too small"


def test_gains_draw_back_to_one_and_keep_what_is_settled():
    step = Match(0.0, 0.0, 0.01, 1.0, 1.0, log_ratio=0.01, log_sigma=1e-3)
    row = gains(range(3), [0] * 3, {}, {(0, 1): step, (1, 2): step})
    assert np.allclose(row, [1.01, 1.0, 0.99], atol=2e-3)
    first, second = gains(range(2), [0, 0], {0: 1.05}, {(0, 1): step})
    assert (first, second) == (pytest.approx(1.05), pytest.approx(1.05 / 1.01, abs=1e-3))
    assert gains(range(2), [0, 1], {}, {}) == [1.0, 1.0]


def test_light_that_falls_askew_makes_no_ramp():
    """The same ratio everywhere along an axis is shading that nobody corrected; the lamp of one tile is still found."""
    case = scene(5, 6, seed=25, **SMALL)
    x = np.linspace(0.98, 1.02, 256)[None, :, None]
    tiles = [replace(t, pixels=np.rint(t.pixels * x * (0.97 if t.index == 14 else 1)).clip(0, 255).astype(np.uint8))
             for t in case.tiles]  # fmt: skip
    placed = replace(case, tiles=tiles).run(level=True)[1]
    found = np.array([t.gain for t in placed])
    assert found[14] == pytest.approx(1 / 0.97, abs=0.005)
    assert np.abs(np.delete(found, 14) - 1).max() < 0.006


@pytest.mark.parametrize(
    ("settings_", "on"),
    [
        ((), True),
        (("mosaic.placement=pixel",), False),
        (("illumination.brightfield=false",), False),
        (("illumination.brightfield=false", "mosaic.gain=on"), True),
        (("mosaic.registration=false", "mosaic.gain=on"), False),
        (("mosaic.gain=off",), False),
    ],
)
def test_pixels_that_must_stay_untouched_are_not_levelled(settings_, on):
    assert configs.load(None, settings_).levels_tiles is on

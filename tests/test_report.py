"""The report's measurements: seams that are there are found, textures are not; PSNR is the textbook's."""

import json
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scan_rig import EXACT, new_scan, small_config
from scipy import ndimage

from edge_scanner.geometry import Box
from edge_scanner.plan import ScanPlan, ScanRegion
from edge_scanner.report.page import memory_plot
from edge_scanner.report.quality import EQUAL_DB, measure
from edge_scanner.report.report import Run, write_report
from edge_scanner.scanner.scan import run_nested


class Level0:
    def __init__(self, pixels, chunk_px=128):
        self.pixels, self.chunk_px = pixels, chunk_px

    def read(self, level, box):
        return self.pixels[box.y0 : box.y1, box.x0 : box.x1]


def textured(height, width, seed=0):
    noise = np.random.default_rng(seed).normal(size=(height, width, 3))
    smooth = ndimage.gaussian_filter(noise, (2, 2, 0))
    return np.clip(150 + 40 * smooth / smooth.std(), 20, 235).astype(np.uint8)


def tiled(image, plan, steps):
    """The image with another grey level added to each tile; returns it with the tiles' boxes."""
    out, boxes = image.astype(int), []
    for t, step in zip(plan, steps, strict=False):
        y, x = plan.corner_px(t.row, t.col)
        box = Box(y, x, y + plan.tile_height_px, x + plan.tile_width_px)
        boxes.append(box)
        inner = box.intersect(Box(0, 0, *image.shape[:2]))
        out[inner.y0 : inner.y1, inner.x0 : inner.x1] += step
    return np.clip(out, 0, 255).astype(np.uint8), boxes


PLAN = ScanPlan(ScanRegion(0, 0, 0.9, 0.8), 200, 260, 1.0, 0)


@pytest.mark.parametrize("chunk", [64, 128, 1000])
def test_a_step_between_tiles_is_measured(chunk):
    image = textured(PLAN.height_px, PLAN.width_px)
    steps = [4 * ((t.row + t.col) % 2) for t in PLAN]
    stepped, boxes = tiled(image, PLAN, steps)
    canvas = Box(0, 0, *image.shape[:2])

    def truth(box):
        return image[box.y0 : box.y1, box.x0 : box.x1]

    known = measure(Level0(stepped, chunk), canvas, boxes, truth, 255.0)
    assert known.seam_step == pytest.approx(4, rel=0.05)
    guessed = measure(Level0(stepped, chunk), canvas, boxes, None, 255.0)
    assert guessed.seam_step == pytest.approx(4, rel=0.5)
    assert guessed.psnr_db is None


@settings(max_examples=15)
@given(st.integers(0, 99), st.sampled_from([64, 192]))
def test_an_exact_copy_has_no_seam(seed, chunk):
    image = textured(PLAN.height_px, PLAN.width_px, seed)
    _, boxes = tiled(image, PLAN, [0] * len(PLAN))
    canvas = Box(0, 0, *image.shape[:2])
    exact = measure(Level0(image, chunk), canvas, boxes, lambda b: image[b.y0 : b.y1, b.x0 : b.x1], 255.0)
    assert (exact.seam_step, exact.psnr_db) == (0.0, EQUAL_DB)
    assert measure(Level0(image, chunk), canvas, [], None, 255.0).seam_step is None


@given(st.floats(0.5, 30), st.sampled_from([255.0, 65535.0]))
def test_psnr_is_the_textbooks(sigma, full_scale):
    dtype = np.uint8 if full_scale == 255 else np.uint16
    image = textured(150, 170).astype(dtype)
    noise = np.random.default_rng(1).normal(0, sigma, image.shape)
    noisy = np.clip(np.rint(image + noise), 0, full_scale).astype(dtype)
    found = measure(Level0(noisy), Box(0, 0, 150, 170), [], lambda b: image[b.y0 : b.y1, b.x0 : b.x1], full_scale)
    mean_square = np.mean((noisy.astype(float) - image) ** 2)
    assert found.psnr_db == pytest.approx(min(EQUAL_DB, 10 * np.log10(full_scale**2 / mean_square)), abs=0.01)


def test_a_stage_that_errs_is_compared_without_the_offset_it_leaves(tmp_path):
    config = small_config(tmp_path, *EXACT, "sim.stage_error_um=4")
    scan = new_scan(config, tmp_path / "scan")
    run_nested(scan)
    summary = scan.registrar.summary()
    run = Run("scan", "completed", 1.0, 1.0, 0.0, 0, scan.mosaic.coverage,
              (summary.residual_px_p50, summary.residual_px_p95))  # fmt: skip
    report = write_report(scan.folder, run, config, scan.plan, scan.frame, scan.store, scan.records.all(), scan.timings)
    scan.close()
    assert report.psnr_db > 38, "four pixels of stage error are gone"
    assert report.seam_step < 0.5
    assert report.truth_px_p95 < 0.1
    told = json.loads((scan.folder / "report.json").read_text())
    assert told["tiles"] == len(scan.plan) == told["accepted"] + told["blank"]
    page = (scan.folder / "report.html").read_text()
    assert "http" not in page.replace("http://www.w3.org", ""), "self-contained"
    assert (scan.folder / "thumbnail.png").read_bytes().startswith(b"\x89PNG")


def test_where_the_mosaic_ends_is_no_seam():
    image = textured(PLAN.height_px, PLAN.width_px)
    _, boxes = tiled(image, PLAN, [0] * len(PLAN))
    holed = image.copy()
    hole = boxes[PLAN.index_at(1, 1)]
    holed[hole.y0 : hole.y1, hole.x0 : hole.x1] = 255
    kept = [box for box in boxes if box != hole]

    def truth(box):
        return image[box.y0 : box.y1, box.x0 : box.x1]

    assert measure(Level0(holed), Box(0, 0, *image.shape[:2]), kept, truth, 255.0).seam_step == 0.0


def test_the_page_draws_the_memory_over_the_scan():
    samples = ((0.5, 300.0), (10.0, 512.5), (700.0, 380.0))
    drawn = memory_plot(samples, 700.0)
    svg = ElementTree.fromstring(drawn[: drawn.index("</svg>") + len("</svg>")])
    points = [tuple(map(float, p.split(","))) for p in svg.find("polyline").get("points").split()]
    assert len(points) == 3
    x, y = np.transpose(points)
    seconds, mib = np.transpose(samples)
    assert np.corrcoef(x, seconds)[0, 1] == pytest.approx(1, abs=1e-4)
    assert np.corrcoef(y, mib)[0, 1] == pytest.approx(-1, abs=1e-4)
    assert "800" in [text.text for text in svg.iter("text")], "the axis reaches beyond the peak"
    assert "Not sampled" in memory_plot((), 600.0)

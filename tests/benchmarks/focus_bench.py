"""What a focused tile costs: milliseconds of choosing, cutting, the network, the consensus, and of the sharpness test.

Usage: python tests/benchmarks/focus_bench.py [--frames N]; synthetic tissue, 1224 x 1024 px, the provider CPU with its
two threads. CPU time counts both. Also how far half precision (weights and everything between the layers) moves an
answer; that needs the package onnx. Bars: 25 ms a tile (p95), 2 ms a sharpness test, 0.05 um.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

from edge_scanner.cli.focus_frames import simulated_frames
from edge_scanner.config import load
from edge_scanner.focus.consensus import agree
from edge_scanner.focus.model import BATCH, SHIPPED, OnnxFocusModel
from edge_scanner.focus.samples import camera_side_px, choose, cut, saturated
from edge_scanner.focus.score import sharpness
from edge_scanner.tile import Pixels

SETTINGS = ["focus.mode=model", 'focus.providers=["cpu"]']


class Watch:
    """Wall and CPU milliseconds by step."""

    def __init__(self) -> None:
        self.wall: dict[str, list[float]] = {}
        self.cpu: dict[str, list[float]] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.cpu.setdefault(name, []).append(1000 * (time.process_time() - cpu))
        self.wall.setdefault(name, []).append(1000 * (time.perf_counter() - wall))

    def table(self, whole: str) -> None:
        print(f"{'step':<22} {'wall median':>12} {'p95':>8} {'CPU median':>12} {'p95':>8} {'share':>7}")
        for name, wall in self.wall.items():
            cpu = self.cpu[name]
            share = np.sum(cpu) / np.sum(self.cpu[whole])
            told = [f"{np.median(wall):12.2f}", f"{np.percentile(wall, 95):8.2f}", f"{np.median(cpu):12.2f}"]
            print(f"{name:<22}", *told, f"{np.percentile(cpu, 95):8.2f}", f"{share:7.0%}" if share <= 1 else "")


def tile(model: OnnxFocusModel, side_px: int, watch: Watch) -> Callable[[Pixels], None]:
    def judged(pixels: Pixels) -> None:
        with watch.step("a tile"):
            with watch.step("choose patches"):
                corners = choose(pixels, side_px, BATCH)
            with watch.step("cut patches"):
                patches = cut(pixels, corners, side_px)
                patches = patches[saturated(patches) <= 1]
            with watch.step("network"):
                dz_um, sigma_um = model(patches)
            with watch.step("consensus"):
                agree(dz_um, sigma_um)

    return judged


def half_precision_um(model: OnnxFocusModel, frames: list[Pixels], side_px: int) -> tuple[int, float]:
    """Return the number of patches and the largest change of an answer by half precision."""
    import onnx
    import onnxruntime
    from onnxruntime.transformers.float16 import convert_float_to_float16

    half = convert_float_to_float16(onnx.load(SHIPPED), keep_io_types=True)
    session = onnxruntime.InferenceSession(half.SerializeToString(), providers=["CPUExecutionProvider"])
    off: list[float] = []
    for pixels in frames:
        corners = choose(pixels, side_px, BATCH)
        if len(corners) == BATCH:
            patches = cut(pixels, corners, side_px)
            dz_um, sigma_um = model(patches)
            halved = session.run(["dz_um"], {"patches": patches})[0]
            off += list(np.abs(halved - dz_um)[sigma_um < 0.5])
    return len(off), max(off)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--frames", type=int, default=40)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    config = load(None, SETTINGS)
    model, side_px = OnnxFocusModel(config), camera_side_px(config.optics)
    frames = [f.pixels for f in simulated_frames(config, "", options.frames, 10.0, 1) if not f.blank]
    square = [np.ascontiguousarray(pixels[:1024, :1024]) for pixels in frames]
    watch = Watch()
    judge = tile(model, side_px, watch)
    for _ in range(5):
        for pixels, smaller in zip(frames, square, strict=True):
            judge(pixels)
            with watch.step("sharpness 1024x1024"):
                sharpness(smaller)
    print(f"{len(frames)} frames of tissue, 5 times; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; ms")
    watch.table("a tile")
    print(f"model file {Path(SHIPPED).stat().st_size / 2**20:.2f} MiB")
    try:
        patches, worst_um = half_precision_um(model, frames, side_px)
        print(f"half precision moves {patches} sure patches by {worst_um:.3f} um at most")
    except ImportError as error:
        print(f"half precision: not measured ({error})")


if __name__ == "__main__":
    main()

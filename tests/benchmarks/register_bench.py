"""Registration of the mild and hard sets: pair error against the truth, milliseconds a pair, memory of the strips.

Usage: python tests/benchmarks/register_bench.py SLIDE [--grid N]; SLIDE is a real H&E picture that tifffile reads.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import tifffile

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from register_scenes import Scene, scene


def measure(name: str, case: Scene) -> None:
    registrar = case.registrar()
    placed, highest = [], 0
    start, cpu = time.perf_counter(), time.process_time()
    for tile in case.tiles:
        placed += registrar.add(tile)
        highest = max(highest, registrar.strip_bytes)
    placed += registrar.finish()
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    summary = registrar.summary()
    error = case.pair_errors(placed)
    off = np.array([[t.y_px, t.x_px] for t in placed]) - case.truth
    worst = np.abs(off - np.median(off, axis=0)).max()
    p50, p95 = np.percentile(error, (50, 95))
    print(
        f"{name}: tissue pairs {len(error)}: {p50:.3f} / {p95:.3f} / {error.max():.3f} px (median / p95 / max), worst "
        f"tile {worst:.1f} px; {1000 * cpu / max(1, summary.pairs):.2f} ms of CPU a pair, {wall:.2f} s wall; "
        f"strips {highest / 2**20:.1f} MiB; {summary}"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("slide", type=Path)
    parser.add_argument("--grid", type=int, default=9)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    picture = tifffile.imread(options.slide, series=0)[..., :3]
    grid = {"rows": options.grid, "cols": options.grid, "tile": (1024, 1024), "overlap_px": 102, "seed": options.seed}
    measure("mild", scene(**grid, picture=picture))
    hard = {"turn_deg": 0.2, "glass": 1 / 3, "glass_blob_px": 400, "noise": 2.0, "lamp": 0.015, "shading": 0.04}
    measure("hard", scene(**grid, picture=picture, **hard))


if __name__ == "__main__":
    main()

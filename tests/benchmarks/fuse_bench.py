"""Offline fusion: turned tiles beside a plain map_blocks + scipy + maximum, and memory as the slide grows.

    python tests/benchmarks/fuse_bench.py [--image FILE] [--many 100,1000]

Every figure is measured in a process of its own. Tiles are cut from the image by fifth-order splines, so the truth is
known; without an image they are seeded noise of a tissue's sharpness.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import tifffile

from edge_scanner.memory import peak_rss_mib

TILE, STEP, SIDE, DEGREES = 1024, 922, 5, 3.0


def truth_of(path: str | None) -> np.ndarray:
    """Return luminance, large enough for the turned grid."""
    need = 5300
    if path:
        image = tifffile.imread(path)
        grey = (image @ np.array([0.299, 0.587, 0.114])).round().astype(np.uint8) if image.ndim == 3 else image
        return np.pad(grey, [(0, max(0, need - n)) for n in grey.shape], mode="reflect")[:need, :need]
    from scipy import ndimage

    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(need, need)).astype(np.float32), 1.3)
    return np.clip(noise / noise.std() * 30 + 160, 0, 255).astype(np.uint8)


def matrices() -> list[np.ndarray]:
    c, s = np.cos(np.deg2rad(DEGREES)), np.sin(np.deg2rad(DEGREES))
    jitter = np.random.default_rng(1).uniform(-5, 5, (SIDE * SIDE, 2))
    turn = np.array([[c, -s, 300.0], [s, c, 20.0], [0, 0, 1]])
    found = []
    for k in range(SIDE * SIDE):
        own = np.eye(3)
        own[:2, 2] = np.array([k % SIDE * STEP, k // SIDE * STEP]) + 5 + jitter[k]
        found.append(turn @ own)
    return found


def make_turned(folder: Path, image: str | None) -> None:
    from scipy import ndimage

    truth = truth_of(image)
    np.save(folder / "truth.npy", truth)
    coefficients = ndimage.spline_filter(truth.astype(np.float32), order=5, output=np.float32)
    for k, m in enumerate(matrices()):
        swap = m[:2, :2][::-1, ::-1]
        tile = ndimage.affine_transform(coefficients, swap, m[[1, 0], 2], (TILE, TILE), order=5, prefilter=False)
        tifffile.imwrite(folder / f"{k:02d}.tif", np.clip(np.rint(tile), 0, 255).astype(np.uint8))


def ours(folder: Path) -> dict[str, float]:
    from edge_scanner.fuse.lazy import as_dask, prepare

    base = peak_rss_mib()
    made = prepare([folder / f"{k:02d}.tif" for k in range(SIDE * SIDE)], matrices())
    began, cpu = time.perf_counter(), time.process_time()
    mosaic = as_dask(made, 1024).compute(scheduler="threads")
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    peak = peak_rss_mib() - base
    return {**score(folder, mosaic, made.start), "wall_s": wall, "cpu_s": cpu, "mib_above_import": peak,
            "loads_per_tile": made.reader.loads / SIDE**2}  # fmt: skip


def plain(folder: Path) -> dict[str, float]:
    """Fuse as one would without this package: cubic affine_transform of every tile that a block may touch; maximum."""
    import dask.array as da
    from scipy import ndimage

    from edge_scanner.fuse import canvas  # only to lay both on the same pixels

    names = [folder / f"{k:02d}.tif" for k in range(SIDE * SIDE)]
    y0, x0 = canvas(names, matrices())
    inverses = [np.linalg.inv(m) for m in matrices()]
    corners = np.array([[0, 0, 1], [TILE, 0, 1], [0, TILE, 1], [TILE, TILE, 1]])
    boxes = [(m @ corners.T)[:2].min(axis=1).tolist() + (m @ corners.T)[:2].max(axis=1).tolist() for m in matrices()]
    extent = [int(np.ceil(max(b[3 - a] for b in boxes))) - o for a, o in ((0, y0), (1, x0))]
    loads = []

    def block(block_info: dict | None = None) -> np.ndarray:
        (ya, yb), (xa, xb) = block_info[None]["array-location"]
        out = np.zeros((yb - ya, xb - xa), np.uint8)
        for name, inverse, (bx0, by0, bx1, by1) in zip(names, inverses, boxes, strict=True):
            if bx0 < xb + x0 and bx1 > xa + x0 and by0 < yb + y0 and by1 > ya + y0:
                loads.append(name)
                at = inverse[:2, :2] @ (xa + x0, ya + y0) + inverse[:2, 2]
                tile = tifffile.imread(name)
                moved = ndimage.affine_transform(tile, inverse[:2, :2][::-1, ::-1], at[::-1], out.shape, order=3)
                np.maximum(out, moved, out=out)
        return out

    base = peak_rss_mib()
    chunks = tuple((1024,) * (n // 1024) + ((n % 1024,) if n % 1024 else ()) for n in extent)
    began, cpu = time.perf_counter(), time.process_time()
    mosaic = da.map_blocks(block, chunks=chunks, dtype=np.uint8, meta=np.empty((0, 0), np.uint8)).compute()
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    peak = peak_rss_mib() - base
    return {**score(folder, mosaic, (y0, x0)), "wall_s": wall, "cpu_s": cpu, "mib_above_import": peak,
            "loads_per_tile": len(loads) / SIDE**2}  # fmt: skip


def score(folder: Path, mosaic: np.ndarray, start: tuple[int, ...]) -> dict[str, float]:
    """Return PSNR over what lies inside of the turned grid."""
    truth = np.load(folder / "truth.npy", mmap_mode="r")
    y, x = np.mgrid[0 : mosaic.shape[0] : 1, 0 : mosaic.shape[1] : 1]
    inverse = np.linalg.inv(matrices()[0])
    v, u = (row[0] * (x + start[1]) + row[1] * (y + start[0]) + row[2] for row in (inverse[1], inverse[0]))
    inside = (v > 20) & (u > 20) & (v < STEP * 4 + TILE - 40) & (u < STEP * 4 + TILE - 40)
    inside &= (y + start[0] < truth.shape[0]) & (x + start[1] < truth.shape[1]) & (y + start[0] >= 0)
    yy, xx = np.nonzero(inside)
    error = mosaic[yy, xx].astype(np.float32) - truth[yy + start[0], xx + start[1]]
    return {"psnr_db": float(10 * np.log10(255**2 / np.mean(error**2)))}


def many(folder: Path, count: int) -> dict[str, float]:
    """Fuse a square grid of 2048 x 2048 RGB tiles into a store; sixteen files stand for all."""
    from edge_scanner.fuse.slide import fuse_slide
    from edge_scanner.fuse.sources import open_source

    side = round(count**0.5)
    lines = ["file,x_px,y_px"]
    lines += [
        f"m{(r * 5 + c) % 16:02d}.tif,{c * 1843.3},{r * 1843.7}" for r in range(side) for c in range(count // side)
    ]
    (folder / "tiles.csv").write_text("\n".join(lines))
    base = peak_rss_mib()
    out, cpu = folder / f"many{count}.ome.zarr", time.process_time()
    report = fuse_slide(open_source(folder), out, codec="jpeg", overwrite=True)
    cpu = (time.process_time() - cpu) / report.tiles
    return {"tiles": report.tiles, "wall_s": report.wall_s, "cpu_s_per_tile": cpu,
            "peak_rss_mib": report.peak_rss_mib, "mib_above_import": report.peak_rss_mib - base,
            "loads_per_tile": report.loads_per_tile or 0.0}  # fmt: skip


def make_many(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for k in range(16):
        small = rng.integers(60, 255, (64, 64, 3), dtype=np.uint8)
        tile = np.kron(small, np.ones((32, 32, 1), np.uint8)) ^ rng.integers(0, 8, (2048, 2048, 3), dtype=np.uint8)
        tifffile.imwrite(folder / f"m{k:02d}.tif", tile, photometric="rgb")


def apart(what: str, folder: Path, *more: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--do", what, "--folder", str(folder), *more]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--image")
    parser.add_argument("--many", default="100,1000")
    parser.add_argument("--do")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--count", type=int)
    args = parser.parse_args()
    if args.do:
        made = (
            many(args.folder, args.count) if args.do == "many" else {"ours": ours, "plain": plain}[args.do](args.folder)
        )
        print(json.dumps(made))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_turned(folder, args.image)
        results = {what: apart(what, folder) for what in ("ours", "plain")}
        for what, found in results.items():
            print(what, {k: round(v, 3) for k, v in found.items()})
        for unit in ("wall_s", "cpu_s"):
            print(unit, "plain / ours:", round(results["plain"][unit] / results["ours"][unit], 2))
        make_many(folder)
        for count in (int(n) for n in args.many.split(",") if n):
            found = apart("many", folder, "--count", str(count))
            print("many", {k: round(v, 3) for k, v in found.items()})


if __name__ == "__main__":
    main()

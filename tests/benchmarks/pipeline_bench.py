"""Tiles a second through register + mosaic + pyramid + store, without stage and camera.

Tiles of 2448x2048 RGB are cut beforehand from one image, each moved by a sub-pixel stage error. Prints tiles and
megapixels a second by codec with the daemon's threads, and where one thread spends its time.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from edge_scanner import config as configs
from edge_scanner.abort import Abort
from edge_scanner.devices.rig import build_rig
from edge_scanner.geometry import Position
from edge_scanner.memory import return_large_blocks
from edge_scanner.plan import ScanRegion
from edge_scanner.scanner.pipeline import Pipeline
from edge_scanner.scanner.scan import Scan, make_plan, run_nested
from edge_scanner.sim.specimen import open_specimen
from edge_scanner.tile import FocusResult, Tile, Verdict

ROWS, COLS = 7, 6
TILE = (2048, 2448)
RUNS = 5


def tiles_of(plan, specimen, sigma_px):
    rng = np.random.default_rng(5)
    for t in plan:
        y, x = plan.corner_px(t.row, t.col)
        dy, dx = rng.normal(0, sigma_px, 2).clip(-3 * sigma_px, 3 * sigma_px)
        iy, ix = int(np.floor(dy)), int(np.floor(dx))
        big = specimen.read(y + iy - 2, x + ix - 2, TILE[0] + 5, TILE[1] + 5)
        move = np.array([[1, 0, -(dx - ix) - 2], [0, 1, -(dy - iy) - 2]])
        pixels = cv2.warpAffine(big, move, TILE[::-1], flags=cv2.INTER_CUBIC)
        position = Position(t.x_um, t.y_um, 0.0)
        focus = FocusResult(1.0, 0.0, 1, True, True)
        yield Tile(t.index, t.row, t.col, position, position, pixels, focus, Verdict.ACCEPTED)


def cost_ms(scan: Scan, tiles: list[Tile]) -> dict[str, float]:
    """Return CPU milliseconds a tile of registration, and of placing and blending; one thread."""
    spent = {"register": 0.0, "place + blend": 0.0}

    def timed(what, work):
        began = time.process_time()
        result = work()
        spent[what] += 1000 * (time.process_time() - began) / len(tiles)
        return result

    for tile in [*tiles, None]:
        if tile is not None:
            scan.spool.put(tile.index, tile.pixels)
        placed = timed("register", lambda t=tile: scan.registrar.finish() if t is None else scan.registrar.add(t))
        timed("place + blend", lambda p=placed: [chunk for place in p for chunk in scan.mosaic.add(place)])
    return spent


def main() -> None:
    """Run and print."""
    slide = sys.argv[1] if len(sys.argv) > 1 else ""
    sigma_um = 2.0
    base = ["camera.width_px=2448", "camera.height_px=2048", f"sim.slide={slide}", f"stage.error_um={sigma_um}",
            "sim.tissue_width_mm=7", "sim.tissue_height_mm=7"]  # fmt: skip
    config = configs.load(None, base)
    specimen = open_specimen(config.sim, 0.5)
    width, height = (COLS * 2244 + 204) * 0.5e-3, (ROWS * 1844 + 204) * 0.5e-3
    region = ScanRegion(0, 0, min(width, specimen.width_px * 0.5e-3), min(height, specimen.height_px * 0.5e-3))
    plan = make_plan(config, region)
    tiles = list(tiles_of(plan, specimen, sigma_um / 0.5))
    print(f"{len(tiles)} tiles of {TILE[1]}x{TILE[0]} RGB, stage error {sigma_um} um")
    cv2.setNumThreads(1)
    return_large_blocks()  # as the daemon does
    for blend in ("linear", "seam"):
        runs = []
        for _ in range(RUNS):  # the first one pays for memory that the others find in the process
            with tempfile.TemporaryDirectory() as folder:
                chosen = configs.load(None, [*base, f"mosaic.blend={blend}"])
                scan = Scan(chosen, build_rig(chosen), plan, Path(folder), scan_id="bench")
                runs.append(cost_ms(scan, tiles))
                scan.close()
        runs.sort(key=lambda spent: sum(spent.values()))
        middle, (least, most) = runs[len(runs) // 2], (sum(runs[at].values()) for at in (0, -1))
        parts = ", ".join(f"{what} {ms:.1f}" for what, ms in middle.items())
        print(
            f"{blend}: {sum(middle.values()):.1f} ms of one core a tile from registration to blending ({parts}); "
            f"{RUNS} runs, {least:.1f} to {most:.1f}"
        )
    for codec in ("jpeg", "gzip", "none"):
        for mode in ("threads", "nested"):
            with tempfile.TemporaryDirectory() as folder:
                chosen = configs.load(None, [*base, f"mosaic.codec={codec}"])
                scan = Scan(chosen, build_rig(chosen), plan, Path(folder), scan_id="bench")
                scan.acquire = lambda: iter(tiles)  # type: ignore[method-assign]
                began_s, cpu_s = time.perf_counter(), time.process_time()
                if mode == "threads":
                    Pipeline(scan, Abort(), cancelled=lambda: False, on_tile=lambda _: None).run()
                else:
                    run_nested(scan)
                wall_s, cpu_s = time.perf_counter() - began_s, time.process_time() - cpu_s
                scan.close()
            rate, cpu_rate = len(tiles) / wall_s, len(tiles) / cpu_s
            print(
                f"{codec:5s} {mode:8s} {rate:6.1f} tiles/s {rate * 5.01:6.0f} MP/s; {cpu_rate:6.1f} tiles a CPU s",
                end="",
            )
            parts = {k: scan.timings.total_ms(k) for k in ("spool", "register", "mosaic", "encode", "write")}
            print("  ms a tile:", {k: round(v / len(tiles), 1) for k, v in parts.items()})


if __name__ == "__main__":
    main()

"""Register and fuse the same tiles with this package and, where installed, ASHLAR, multiview-stitcher and m2stitch.

    python tests/benchmarks/stitch_bench.py [--record FILE] [--others DIR] [--install] [--hard-too] [--no-big]

Each contestant has a virtual environment in DIR (`--install` makes them; they need other versions of numpy) and every
figure is from a process of its own. 81 tiles of 1024 x 1024 RGB; see `stitch_tiles` for the two sets.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import tifffile
import zarr

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from register_scenes import sampled
from stitch_tiles import KINDS, MARGIN, SIDE, SIGMA, list_places, make, name_of, picture, plan_of

from edge_scanner.fuse.align import align
from edge_scanner.fuse.slide import fuse_slide
from edge_scanner.fuse.sources import open_source
from edge_scanner.geometry import Box, Position
from edge_scanner.memory import peak_rss_mib, return_large_blocks
from edge_scanner.register import Registrar
from edge_scanner.store import SlideStore
from edge_scanner.tile import Tile, Verdict

BESIDE = Path(__file__).resolve().parents[3] / "shared" / "data"
OTHERS = {"ashlar": "ashlar", "multiview-stitcher": "multiview-stitcher", "m2stitch": "m2stitch"}
COSTS = ("register CPU s", "fuse + pyramid s", "fuse CPU s")
LONGEST_S = 360
QUIET = {"MPLBACKEND": "Agg", "PYTHONWARNINGS": "ignore"}
DECODED: list[str] = []
COLUMNS = (
    "set", "tool", "median px", "p95", "max", "worst tile px", "register CPU s", "ms a pair", "register MiB",
    "fuse + pyramid s", "fuse CPU s", "fuse MiB", "decodes a frame", "PSNR dB", "seam step",
)  # fmt: skip


@contextmanager
def lap(what: str, found: dict) -> Iterator[None]:
    """Note wall, CPU, peak memory above what this process had, and decoded frames of what is done inside."""
    base, wall, cpu = peak_rss_mib(), time.perf_counter(), time.process_time()
    DECODED.clear()
    yield
    found[f"{what}_s"], found[f"{what}_cpu_s"] = time.perf_counter() - wall, time.process_time() - cpu
    found[f"{what}_mib"], found[f"{what}_decodes"] = peak_rss_mib() - base, len(DECODED)


def count_decodes() -> None:
    """Count independently of the code under test: every page that tifffile decodes."""
    asarray = tifffile.TiffPage.asarray

    def counted(page: tifffile.TiffPage, *args: object, **more: object) -> np.ndarray:
        DECODED.append(page.parent.filehandle.name)
        return asarray(page, *args, **more)

    tifffile.TiffPage.asarray = counted


def offline(folder: Path) -> dict:
    found: dict = {}
    with lap("register", found):
        aligned = align(open_source(folder / "tiles.csv"), SIGMA, 64_000_000)
    found["places"] = [[m[1, 2], m[0, 2]] for m in aligned.transforms]
    found["pairs_used"] = aligned.edges
    return found


def online(folder: Path) -> dict:
    """Place the tiles as the daemon does: three rows late."""
    told = json.loads((folder / "told.json").read_text())
    plan, found = plan_of(told["grid"]), {}
    registrar = Registrar(plan, plan.frame(), stage_error_um=SIGMA * plan.pixel_size_um)
    placed, reading = [], 0.0
    with lap("register", found):
        for t in plan:
            began = time.process_time()
            pixels = tifffile.imread(folder / name_of(t.index))
            reading += time.process_time() - began
            at = Position(t.x_um, t.y_um, 0.0)
            placed += registrar.add(Tile(t.index, t.row, t.col, at, at, pixels, None, Verdict.ACCEPTED))
        placed += registrar.finish()
    found["register_cpu_s"] -= reading  # the daemon has them in memory
    del found["register_decodes"]
    found["places"] = [[p.y_px, p.x_px] for p in sorted(placed, key=lambda p: p.index)]
    return found


def fused(folder: Path) -> dict:
    found: dict = {}
    out = folder / "ours" / "ours.ome.zarr"
    with lap("fuse", found):
        report = fuse_slide(open_source(folder / "registered.csv"), out, memory_mb=128, overwrite=True)
    return found | {"image": str(out), "origin": [report.origin_y_px, report.origin_x_px]}


OURS = {"offline": offline, "online": online, "fused": fused}


def apart(command: list[str]) -> dict:
    """Run in a process of its own; return what its last line says, or why there is nothing."""
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, env=os.environ | QUIET, timeout=LONGEST_S
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {LONGEST_S} s"}
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["?"])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def ours(what: str, folder: Path) -> dict:
    found = apart([sys.executable, __file__, "--do", what, "--folder", str(folder)])
    if "failed" in found:
        raise SystemExit(f"{what}: {found['failed']}")
    return found


def errors(folder: Path, places: list[list[float]]) -> dict[str, float]:
    """Return the errors of the tissue pairs' offsets, and the worst tile along an axis, against the truth."""
    told = json.loads((folder / "told.json").read_text())
    off = np.array(places) - np.array(told["truth"])
    pairs = np.array(told["pairs"])
    error = np.linalg.norm(off[pairs[:, 1]] - off[pairs[:, 0]], axis=1)
    worst = np.abs(off - np.median(off, axis=0)).max()
    return {"median": np.median(error), "p95": np.percentile(error, 95), "max": error.max(), "worst": worst}


def level0(path: Path) -> np.ndarray:
    """Return (y, x, 3) of what a tool wrote."""
    if path.suffix == ".tif":
        return np.moveaxis(tifffile.imread(path, series=0, level=0), 0, -1)
    if "ours" in path.parts:
        store = SlideStore.open(path)
        return store.read(0, Box(0, 0, store.levels[0].height_px, store.levels[0].width_px))
    return np.moveaxis(np.squeeze(zarr.open(path, mode="r")["0"][:]), 0, -1)


def quality(folder: Path, places: list[list[float]], image: str, origin: list[float]) -> dict[str, float]:
    """Return PSNR and coherent seam step, on the mosaic's own lattice, against the picture resampled to it.

    Seam step: per 64 px of tile border, the mean difference in error (luminance) of 3 px to both sides; RMS.
    """
    told = json.loads((folder / "told.json").read_text())
    off = np.array(places) - np.array(told["truth"])
    pairs = np.unique(np.array(told["pairs"]))
    shift = np.median(off[pairs], axis=0)
    mosaic, canvas = level0(Path(image)), np.load(folder / "canvas.npy", mmap_mode="r")
    corner = np.rint(np.array(places) - origin).astype(int)
    rows, cols = np.array(told["at"]).T
    top, left = (int(corner[v == 0, a].max()) + 8 for a, v in enumerate((rows, cols)))
    bottom, right = (int(corner[v == v.max(), a].min()) + SIDE - 8 for a, v in enumerate((rows, cols)))
    grey, squares = np.zeros(mosaic.shape[:2], np.float32), 0.0
    for y in range(top, bottom, 512):
        end = min(y + 512, bottom)
        at = np.array([y, left]) + origin - shift + MARGIN
        error = mosaic[y:end, left:right].astype(np.float32) - sampled(canvas, *at, end - y, right - left)
        squares += float(np.vdot(error, error))
        grey[y:end, left:right] = error @ np.array([0.299, 0.587, 0.114], np.float32)
    mean = squares / (3 * (bottom - top) * (right - left))
    steps = []
    for picture_, line, edge, last in ((grey, 1, cols, cols.max()), (grey.T, 0, rows, rows.max())):
        for tile in range(len(corner)):
            inner = ((corner[tile, line], edge[tile] > 0), (corner[tile, line] + SIDE, edge[tile] < last))
            start = max(corner[tile, 1 - line], (top, left)[1 - line])
            stop = min(corner[tile, 1 - line] + SIDE, (bottom, right)[1 - line])
            for x in (at for at, bounded in inner if bounded):
                near = picture_[start:stop, x - 3 : x + 3][: (stop - start) // 64 * 64].reshape(-1, 64, 2, 3)
                sides = near.mean(axis=(1, 3))
                steps.append(sides[:, 1] - sides[:, 0])
    return {"psnr": 10 * np.log10(255**2 / mean), "step": float(np.sqrt(np.mean(np.concatenate(steps) ** 2)))}


def measure(kind: str, folder: Path, others: dict[str, Path]) -> list[dict]:
    """Return a row a tool."""
    grid = json.loads((folder / "told.json").read_text())["grid"]
    found = ours("offline", folder)
    list_places(folder / "registered.csv", np.array(found["places"]))
    rows = [row(kind, folder, "edge-scanner, 3 rows late", ours("online", folder))]
    rows.insert(0, row(kind, folder, "edge-scanner", found | ours("fused", folder)))
    for name, python in others.items():
        script = Path(__file__).with_name("stitch_others.py")
        rows.append(row(kind, folder, name, apart([str(python), str(script), name, str(folder), "fuse"])))
        print("  " + " ".join(f"{k}={v}" for k, v in rows[-1].items() if v is not None), flush=True)
    pairs = 2 * grid * (grid - 1)
    for r in rows:
        if r.get("register CPU s") is not None:
            r["ms a pair"] = 1000 * r["register CPU s"] / pairs
    return rows


def row(kind: str, folder: Path, tool: str, found: dict) -> dict:
    told = {"set": kind, "tool": tool, "failed": found.get("failed"), "fuse wall": found.get("fuse_s")}
    if "places" not in found:
        return told
    error = errors(folder, found["places"])
    tiles = len(found["places"])
    told |= {"median px": error["median"], "p95": error["p95"], "max": error["max"], "worst tile px": error["worst"]}
    told |= {"register CPU s": found["register_cpu_s"], "register MiB": found["register_mib"]}
    decodes = [f"{found[f'{k}_decodes'] / tiles:.2f}" for k in ("register", "fuse") if f"{k}_decodes" in found]
    told |= {
        "fuse + pyramid s": found.get("fuse_s"),
        "fuse CPU s": found.get("fuse_cpu_s"),
        "fuse MiB": found.get("fuse_mib"),
    }
    told["decodes a frame"] = " + ".join(decodes)
    if "image" in found:
        look = quality(folder, found["places"], found["image"], found["origin"])
        told |= {"PSNR dB": look["psnr"], "seam step": look["step"]}
    return told


def table(rows: list[dict]) -> str:
    def cell(value: object) -> str:
        return (
            "-" if value is None else f"{value:.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
        )

    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    return "\n".join(lines + ["| " + " | ".join(cell(r.get(c)) for c in COLUMNS) + " |" for r in rows])


def ratios(rows: list[dict]) -> str:
    """Return how many times longer the others took, in this run."""
    own = {r["set"]: r for r in rows if r["tool"] == "edge-scanner"}
    told = []
    for r in rows:
        if r["tool"] in OTHERS and not r["failed"]:
            of = [f"{r[k] / own[r['set']][k]:.1f} x {k}" for k in COSTS if r.get(k)]
            told.append(f"- {r['set']}, {r['tool']} over edge-scanner: {', '.join(of)}.")
        elif r["tool"] in OTHERS:
            told.append(f"- {r['set']}, {r['tool']}: failed ({r['failed']}).")
    return "\n".join(told)


def installed(folder: Path, install: bool) -> dict[str, Path]:
    """Return the interpreters that have a contestant; say which are left out."""
    found = {}
    for name, package in OTHERS.items():
        python = folder / name / "bin" / "python"
        if install and not python.exists():
            venv.create(folder / name, with_pip=True)
            subprocess.run([str(python), "-m", "pip", "install", "-q", package, "tifffile"], check=True)
        if python.exists():
            found[name] = python
        else:
            print(f"{name} is left out: there is no {python} (--install makes it)")
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--others", type=Path, default=Path(tempfile.gettempdir()) / "stitchers")
    parser.add_argument("--install", action="store_true", help="make the environments of the others")
    parser.add_argument("--hard-too", action="store_true", help="the others on the hard set as well (minutes)")
    parser.add_argument("--no-big", action="store_true", help="leave the 324 tiles out")
    parser.add_argument("--record", type=Path)
    parser.add_argument("--do", choices=OURS)
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    if args.do:
        count_decodes()
        return_large_blocks()  # as the command does
        print(json.dumps(OURS[args.do](args.folder)))
        return
    data = Path(os.environ.get("EDGE_SCANNER_DATA", BESIDE))
    source = picture(data if data.is_dir() else None)
    specimen = "real H&E" if data.is_dir() else "seeded structure (no folder of real slides here)"
    print(f"specimen: {specimen}")
    others, rows = installed(args.others, args.install), []
    sets = [("mild", 9, others), ("hard", 9, others if args.hard_too else {})]
    for kind, grid, tools in [*sets, *([] if args.no_big else [("mild", 18, {})])]:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "tiles"
            make(folder, source, grid, KINDS[kind])
            rows += measure(f"{kind}, {grid * grid} tiles", folder, tools)
    text = f"{table(rows)}\n\n{ratios(rows)}\n"
    print(text)
    if args.record:
        head = Path(args.record).read_text().split("<!-- table -->")[0] if args.record.exists() else ""
        args.record.write_text(f"{head}<!-- table -->\nSpecimen: {specimen}.\n\n{text}")


if __name__ == "__main__":
    main()

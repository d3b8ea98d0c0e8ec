"""Export side by side with cp, libvips and Bio-Formats, on the same pixels, in one run; prints ratios.

Run `python tests/benchmarks/export_bench.py --gigapixels 1`. Every repetition interleaves the contestants; the best of
each counts. Readers that are not installed are left out and said so.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from edge_scanner.export import to_ome_tiff
from edge_scanner.store import Channel, Codec, EncodedChunk, SlideMetadata, SlideStore
from edge_scanner.store.codec import Gzip, Jpeg
from edge_scanner.tile import Chunk

CHUNK = 512
CODECS: dict[str, Codec] = {"jpeg": Jpeg(90, "422"), "gzip": Gzip(1)}
PEAK = """
import re, sys
from pathlib import Path
import edge_scanner.export as export
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1)) / 1024
Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
before = peak()
export.to_ome_tiff(sys.argv[1], sys.argv[2], overwrite=True)
print(before, peak() - before)
"""


def tissue(seed: int) -> np.ndarray:
    """Return a chunk, (512, 512, 3) uint8, that compresses about as well as stained tissue does."""
    rng = np.random.default_rng(seed)
    coarse = cv2.resize(rng.normal(190, 35, (24, 24, 3)), (CHUNK, CHUNK), interpolation=cv2.INTER_CUBIC)
    fine = cv2.GaussianBlur(rng.normal(0, 60, (CHUNK, CHUNK, 3)), (0, 0), 2.0)
    return np.clip(coarse + fine + rng.normal(0, 2, fine.shape), 0, 255).astype(np.uint8)


def make_store(path: Path, gigapixels: float, codec: Codec) -> SlideStore:
    """Return a finished square store with its pyramid, of a few dozen different chunks."""
    side = round((gigapixels * 1e9) ** 0.5 / CHUNK) * CHUNK
    metadata = SlideMetadata("bench", 0.25, (Channel("Brightfield"),), "2026-01-31T12:00:00Z")
    shape = {"height_px": side, "width_px": side, "channels": 3, "dtype": "uint8"}
    store = SlideStore.create(path, **shape, codec=codec, fill_value=255, metadata=metadata)
    kinds = [codec.encode(tissue(seed)) for seed in range(32)]
    for number, level in enumerate(store.levels):
        for row in range(level.rows):
            for col in range(level.cols):
                full = (row + 1) * CHUNK <= level.height_px and (col + 1) * CHUNK <= level.width_px
                if full:
                    store.append(EncodedChunk(number, row, col, (kinds[(row * 7 + col * 3 + number) % 32],)))
                else:
                    pixels = tissue(row)[: level.height_px - row * CHUNK, : level.width_px - col * CHUNK]
                    store.append(store.encode(Chunk(number, row, col, np.ascontiguousarray(pixels))))
        store.commit()
    store.close()
    return store


def timed(work: Callable[[], object], out: Path) -> float:
    """Return the seconds that some work takes, its output removed before."""
    if out.exists():
        out.unlink()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def copy(sources: list[Path], out: Path, *, sync: bool) -> None:
    """Copy files into one, in this process and as cp does it: inside the kernel."""
    with out.open("wb") as target:
        for path in sources:
            with path.open("rb") as source:
                while os.copy_file_range(source.fileno(), target.fileno(), 1 << 30):
                    pass
        if sync:
            os.fsync(target.fileno())


def contestants(store: SlideStore, folder: Path, jar: str, others: bool) -> dict[str, Callable[[Path], object]]:
    """Return what is raced, by name; each writes the path that it is given."""
    whole = folder / "whole.ome.tif"
    to_ome_tiff(store.path, whole)
    shards = sorted(path for path in store.path.glob("0/*/c/*/*/*") if path.is_file())
    race: dict[str, Callable[[Path], object]] = {
        "export": lambda out: to_ome_tiff(store.path, out),
        "cp of the shards": lambda out: copy(shards, out, sync=False),
        "cp + fsync": lambda out: copy(shards, out, sync=True),
        "cp of the TIFF": lambda out: copy([whole], out, sync=False),
    }
    if not others:
        return race
    try:
        import pyvips
    except ImportError:
        print("libvips is left out: pyvips is not installed")
    else:
        options = {"tile": True, "pyramid": True, "bigtiff": True, "tile_width": CHUNK, "tile_height": CHUNK}
        options |= {"compression": "jpeg", "Q": 90} if store.codec.name == "jpeg" else {"compression": "deflate"}
        race["libvips tiffsave"] = lambda out: pyvips.Image.new_from_file(str(whole), access="sequential").tiffsave(
            str(out), subifd=True, **options
        )
    if jar and shutil.which("java"):
        kind = "JPEG" if store.codec.name == "jpeg" else "zlib"
        convert = ["java", "-Xmx4g", "-cp", jar, "loci.formats.tools.ImageConverter", "-no-upgrade", "-noflat"]
        convert += ["-bigtiff", "-compression", kind, "-tilex", str(CHUNK), "-tiley", str(CHUNK), "-series", "0"]
        race["bfconvert"] = lambda out: subprocess.run([*convert, whole, out], check=True, capture_output=True)
    else:
        print("bfconvert is left out: give --bioformats JAR and install Java")
    return race


def race(store: SlideStore, folder: Path, repeat: int, jar: str, others: bool) -> None:
    """Print the best time of each contestant and how often the export's it is."""
    entries = contestants(store, folder, jar, others)
    out = folder / "out.ome.tiff"
    best = dict.fromkeys(entries, float("inf"))
    for turn in range(repeat):
        for name, work in entries.items():
            if name in ("libvips tiffsave", "bfconvert") and turn:
                continue
            best[name] = min(best[name], timed(lambda work=work: work(out), out))
    size_mb = (folder / "whole.ome.tif").stat().st_size / 1e6
    for name, seconds in best.items():
        print(f"  {name:18} {seconds:8.3f} s  {size_mb / seconds:7.0f} MB/s  {seconds / best['export']:7.2f} x export")
    out.unlink(missing_ok=True)


def print_peak(store: SlideStore, folder: Path) -> None:
    """Print the peak memory of an exporting process above the interpreter with the package imported."""
    command = [sys.executable, "-c", PEAK, store.path, folder / "peak.ome.tif"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    before, more = map(float, done.stdout.split())
    print(f"  peak memory {more:.1f} MiB above the {before:.1f} MiB of the interpreter with the package imported")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigapixels", type=float, nargs="+", default=[1.0])
    parser.add_argument("--codec", choices=list(CODECS), nargs="+", default=list(CODECS))
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--bioformats", default=os.environ.get("BIOFORMATS_JAR", ""), metavar="JAR")
    parser.add_argument("--alone", action="store_true", help="only cp beside the export")
    parser.add_argument("--folder", type=Path, help="where to work; needs three times the slide's bytes")
    options = parser.parse_args()
    for name in options.codec:
        for gigapixels in options.gigapixels:
            with tempfile.TemporaryDirectory(dir=options.folder) as folder:
                store = make_store(Path(folder) / "s.ome.zarr", gigapixels, CODECS[name])
                print(f"{name}, {gigapixels:g} GP, {store.levels[0].width_px} px a side")
                race(store, Path(folder), options.repeat, options.bioformats, not options.alone)
                print_peak(store, Path(folder))


if __name__ == "__main__":
    main()

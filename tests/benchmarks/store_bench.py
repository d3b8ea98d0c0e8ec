"""What storing a slide costs: pyramid, encoding, appending and committing, in CPU seconds of one core.

For each codec: megapixels of level 0 a CPU second, with the pyramid and the commits included, and where the time goes.
For zstd, tensorstore writes level 0 of the same pixels with the same codec, chunks and shards in the same run: a row of
chunks at a time, each readable as soon as it is written, which is what a scan needs and we do; and whole shards at a
time, which is its best case. The ratio is ours, with the pyramid, to its, without. Level 0 of zstd is what zarr-python
writes by default; zstd takes it for 3. Budgets: JPEG >= 100 MP/s a core; zstd at most tensorstore's CPU seconds.

Usage: python tests/benchmarks/store_bench.py [SLIDE] [--side PX] [--rounds N]; SLIDE is a picture that tifffile reads.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import cv2
import numpy as np
import tifffile

from edge_scanner import store as stores
from edge_scanner.pyramid import Pyramid
from edge_scanner.sim.tissue import TissueSpecimen
from edge_scanner.store import Channel, SlideMetadata
from edge_scanner.store.codec import Codec, Gzip, Jpeg, Uncompressed, Zstd
from edge_scanner.tile import Chunk

CHUNK = 512
COMMIT_CHUNKS = 128
WAYS = {
    "transposed": "chunks (y, x, c), array (c, y, x): our format",
    "planar": "chunks and array (c, y, x)",
    "interleaved": "chunks and array (y, x, c): no OME-Zarr",
}
REAL = Path(__file__).resolve().parents[3] / "shared/data/histology/duodenum_HE_40x_region.tif"


def main() -> None:
    """Run and print."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("slide", nargs="?", type=Path, default=REAL)
    options.add_argument("--side", type=int, default=4096, help="pixels of the square that is stored")
    options.add_argument("--rounds", type=int, default=3, help="the quickest of so many runs counts")
    given = options.parse_args()
    cv2.setNumThreads(1)
    pixels = square(given.slide, given.side)
    source = given.slide.name if given.slide.exists() else "simulated tissue"
    print(f"{pixels.shape[1]} x {pixels.shape[0]} RGB of {source}")
    for codec in (Jpeg(), Gzip(), Zstd(), Uncompressed()):
        report(codec, pixels, given.rounds)
    beside_tensorstore(pixels, given.rounds)


def square(path: Path, side: int) -> np.ndarray:
    """Return a square of a picture, repeated where it is too small; the simulator's tissue without one."""
    if path.exists():
        whole = tifffile.imread(path)[..., :3]
    else:
        tissue = TissueSpecimen(1, side * 0.5, side * 0.5, 0.5)
        whole = tissue.read(0, 0, side, side)
    rows, cols = (np.arange(side) % n for n in whole.shape[:2])
    return np.ascontiguousarray(whole[rows][:, cols])


def report(codec: Codec, pixels: np.ndarray, rounds: int) -> None:
    """Print one codec's line: the quickest run of some."""
    runs = [store_with_pyramid(codec, pixels) for _ in range(rounds)]
    spent = min(runs, key=lambda run: sum(run.values()))
    megapixels, total = pixels.shape[0] * pixels.shape[1] / 1e6, sum(spent.values())
    shares = ", ".join(f"{name} {1000 * s / megapixels:.2f}" for name, s in spent.items())
    print(f"{codec.name:5s} {megapixels / total:6.1f} MP/s of level 0 a CPU second; ms a megapixel: {shares}")


def store_with_pyramid(codec: Codec, pixels: np.ndarray) -> dict[str, float]:
    """Store all levels as a scan does, in one thread; return CPU seconds by step."""
    spent = dict.fromkeys(("pyramid", "encode", "append", "commit"), 0.0)

    def timed(step: str, call: Callable[[], object]) -> object:
        began = time.thread_time()
        result = call()
        spent[step] += time.thread_time() - began
        return result

    height, width = pixels.shape[:2]
    with tempfile.TemporaryDirectory() as folder:
        slide = stores.create(
            Path(folder) / "slide.ome.zarr", height_px=height, width_px=width, channels=3, dtype=np.uint8,
            codec=codec, fill_value=255, metadata=SlideMetadata("bench", 0.25, (Channel("Brightfield"),)),
        )  # fmt: skip
        shapes = [(level.height_px, level.width_px) for level in slide.levels]
        pyramid = Pyramid(shapes, channels=3, dtype=slide.dtype, fill=255)
        chunks = pyramid.cascade(list(cut(pixels)))
        count = 0
        while (chunk := timed("pyramid", lambda: next(chunks, None))) is not None:
            encoded = timed("encode", lambda chunk=chunk: slide.encode(chunk))
            timed("append", lambda encoded=encoded: slide.append(encoded))
            count += 1
            if count % COMMIT_CHUNKS == 0:
                timed("commit", slide.commit)
        timed("commit", slide.commit)
        slide.close()
    return spent


def cut(pixels: np.ndarray) -> Iterator[Chunk]:
    """Yield the chunks of level 0, each in memory of its own as the mosaic gives them."""
    height, width = pixels.shape[:2]
    for row, col in product(range(-(-height // CHUNK)), range(-(-width // CHUNK))):
        y, x = row * CHUNK, col * CHUNK
        yield Chunk(0, row, col, pixels[y : y + CHUNK, x : x + CHUNK].copy())


def beside_tensorstore(pixels: np.ndarray, rounds: int) -> None:
    """Print our CPU seconds for zstd with the pyramid, and tensorstore's for level 0 in each of its ways."""
    try:
        import tensorstore
    except ImportError:
        print("tensorstore is not installed: nothing to compare zstd with")
        return
    level = Zstd().level
    shard = CHUNK * 8
    whole = {(way, level, shard): [] for way in WAYS}
    ways = {("transposed", level, CHUNK): []} | whole | {("transposed", 0, shard): []}
    ours = []
    for _ in range(rounds):
        ours.append(sum(store_with_pyramid(Zstd(level), pixels).values()))
        for (way, strength, rows), runs in ways.items():
            runs.append(tensorstore_level0(tensorstore, pixels, strength, way, rows))
    print(f"zstd {level}: all levels here {min(ours):.3f} CPU s; level 0 alone by tensorstore:")
    for (way, strength, rows), runs in ways.items():
        grown = "whole shards" if rows == shard else "row by row"
        print(
            f"  zstd {strength}, {grown:12s}, {WAYS[way]:45s} {min(runs):.3f} CPU s; ratio {min(ours) / min(runs):.2f}"
        )


def tensorstore_level0(tensorstore, pixels: np.ndarray, level: int, way: str, rows: int) -> float:
    """Write level 0 with tensorstore, so many rows of a shard at a time; return CPU seconds of all its threads."""
    shard = CHUNK * 8
    source = pixels if way == "interleaved" else pixels.transpose(2, 0, 1)
    sides = (lambda n: [n, n, 3]) if way == "interleaved" else (lambda n: [3, n, n])
    order = [{"name": "transpose", "configuration": {"order": [1, 2, 0]}}] if way == "transposed" else []
    compress = [{"name": "bytes"}, {"name": "zstd", "configuration": {"level": level, "checksum": False}}]
    sharding = {"chunk_shape": sides(CHUNK), "codecs": order + compress, "index_location": "start"}
    sharding["index_codecs"] = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
    with tempfile.TemporaryDirectory() as folder:
        array = tensorstore.open(
            {
                "driver": "zarr3",
                "kvstore": {"driver": "file", "path": folder},
                "metadata": {
                    "shape": list(source.shape),
                    "data_type": "uint8",
                    "fill_value": 255,
                    "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": sides(shard)}},
                    "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
                },
            },
            create=True,
        ).result()
        y_axis = 0 if way == "interleaved" else 1
        began = time.process_time()
        for y, x in product(range(0, pixels.shape[0], rows), range(0, pixels.shape[1], shard)):
            box = (slice(y, min(y + rows, pixels.shape[0])), slice(x, min(x + shard, pixels.shape[1])))
            place = (slice(None),) * y_axis + box
            array[place].write(source[place]).result()
        return time.process_time() - began


if __name__ == "__main__":
    main()

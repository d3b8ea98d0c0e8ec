"""Seamless inference: overhead a tile beside a plain dense-weights blend of whole images, what is held, seams by size.

    python tests/benchmarks/seamless_bench.py [--size 6000]

The model is a copy, so all the time is overhead, but for what the caller's own `write` takes to put the blocks where
they belong, which is printed beside. CPU seconds of one thread, because ratios of those hold on a busy machine too.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from edge_scanner.seamless import plan, run


def ours(image: np.ndarray, tile: int, overlap: int) -> tuple[float, int]:
    laid = plan(image.shape[:2], tile, overlap)
    out = np.full_like(image, -1)  # touched, or the first write to each page would be counted

    def read(y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        return image[y0:y1, x0:x1]

    def write(y0: int, x0: int, block: np.ndarray) -> None:
        out[y0 : y0 + block.shape[0], x0 : x0 + block.shape[1]] = block

    began = time.process_time()
    run(laid, lambda tiles: tiles, read, write)
    spent = time.process_time() - began
    assert np.abs(out - image).max() < 1e-5
    return spent / len(laid.tiles) * 1000, len(laid.tiles)


def writes(image: np.ndarray, tile: int, overlap: int) -> float:
    """Return the milliseconds a tile of the writes alone, which are the caller's and not overhead."""
    laid = plan(image.shape[:2], tile, overlap)
    out = np.full_like(image, -1)
    boxes = [step.box for step in laid.steps if step.kind == "write"]
    began = time.process_time()
    for b in boxes:
        out[b.y0 : b.y1, b.x0 : b.x1] = image[b.y0 : b.y1, b.x0 : b.x1]
    return (time.process_time() - began) / len(laid.tiles) * 1000


def plain(image: np.ndarray, tile: int, overlap: int) -> tuple[float, int]:
    """Blend as one would without this package: dense weights, sums of the whole image, a division at the end."""
    stride = tile - overlap
    ramp = np.minimum(np.arange(tile) + 1, tile - np.arange(tile))
    weights = np.outer(ramp, ramp)[..., None].astype(np.float32)
    total, norm = np.full_like(image, 0), np.full((*image.shape[:2], 1), 0, np.float32)
    ys, xs = ([*range(0, n - tile, stride), n - tile] for n in image.shape[:2])
    began = time.process_time()
    for y in ys:
        for x in xs:
            total[y : y + tile, x : x + tile] += image[y : y + tile, x : x + tile] * weights
            norm[y : y + tile, x : x + tile] += weights
    out = total / norm
    spent = time.process_time() - began
    assert np.abs(out - image).max() < 1e-5
    return spent / (len(ys) * len(xs)) * 1000, len(ys) * len(xs)


def steepest(size: int, tile: int, overlap: int, seed: int = 0) -> float:
    """Return the largest step between neighbouring pixels times the overlap, for tiles of random constants."""
    rng, out = np.random.default_rng(seed), np.zeros((size, size, 1), np.float32)

    def write(y0: int, x0: int, block: np.ndarray) -> None:
        out[y0 : y0 + block.shape[0], x0 : x0 + block.shape[1]] = block

    def model(tiles: np.ndarray) -> np.ndarray:
        return np.full((*tiles.shape[:3], 1), rng.random(), np.float32)

    run(plan((size, size), tile, overlap), model, lambda y0, y1, x0, x1: np.zeros((y1 - y0, x1 - x0)), write)
    return max(float(np.abs(np.diff(out, axis=a)).max()) for a in (0, 1)) * overlap


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, default=6000)
    size = parser.parse_args().size
    for tile, overlap, channels in ((256, 64, 3), (512, 128, 8)):
        image = np.random.default_rng(0).random((size, size, channels), np.float32)
        mine, count = ours(image, tile, overlap)
        other, _ = plain(image, tile, overlap)
        theirs = writes(image, tile, overlap)
        print(f"{tile} px, overlap {overlap}, {channels} channels, {count} tiles: {mine:.3f} ms of CPU a tile, "
              f"{theirs:.3f} of them the caller's writes; plain {other:.3f} ms ({other / mine:.1f} x)")  # fmt: skip
    for tile, overlap in ((256, 64), (512, 128)):
        held = plan((40_000, 40_000), tile, overlap).held_fraction
        print(f"40,000 x 40,000 at {tile} / {overlap}: {100 * held:.3f} % held")
    for side in (832, 840, 848, 856, 1000):
        print(f"{side} px at 256 / 64: largest step x overlap {steepest(side, 256, 64):.3f}")


if __name__ == "__main__":
    main()

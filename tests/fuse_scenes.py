"""Tiles cut out of a known picture, and the files that list them."""

from __future__ import annotations

import numpy as np
import tifffile
from scipy import ndimage


def picture(height: int, width: int, channels: int | None = 3, dtype=np.uint8, seed: int = 0) -> np.ndarray:
    """Return a textured picture, no pixel of it zero."""
    shape = (height, width) if channels is None else (height, width, channels)
    sigma = (1.2, 1.2) if channels is None else (1.2, 1.2, 0)
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), sigma)
    top = 200 if dtype == np.uint8 else 40_000
    return ((noise - noise.min()) / np.ptp(noise) * top + 20).astype(dtype)


def grid(height: int, width: int, tile: int, step: int) -> list[tuple[int, int]]:
    """Return (y, x) of the tiles of a grid that covers a picture, the last flush with its edge."""
    ys = sorted({*range(0, height - tile, step), height - tile})
    xs = sorted({*range(0, width - tile, step), width - tile})
    return [(y, x) for y in ys for x in xs]


def cut(folder, image: np.ndarray, places, tile: int, name="t{:03d}.tif") -> list[str]:
    """Write tiles as files and return their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for k, (y, x) in enumerate(places):
        names.append(name.format(k))
        photometric = "rgb" if image.ndim == 3 and image.shape[2] == 3 else "minisblack"
        tifffile.imwrite(folder / names[-1], image[y : y + tile, x : x + tile], photometric=photometric)
    return names


def listed(folder, names, places, header="file,x_px,y_px", scale=1.0) -> None:
    """Write `tiles.csv`."""
    lines = [header, *(f"{n},{x * scale!r},{y * scale!r}" for n, (y, x) in zip(names, places, strict=True))]
    (folder / "tiles.csv").write_text("\n".join(lines) + "\n")

"""Small slides for the tests of export, audit and rechunk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from store_slides import places, planes, write

from edge_scanner.geometry import Box
from edge_scanner.store import Channel, Codec, SlideMetadata, SlideStore
from edge_scanner.store.codec import Gzip, Jpeg, Uncompressed, Zstd

METADATA = SlideMetadata(
    "scan-1",
    0.25,
    (Channel("Brightfield", exposure_ms=2.0),),
    acquired="2026-01-31T12:00:00Z",
    origin_x_um=1000.5,
    origin_y_um=250.0,
    z_um=3.25,
    magnification=20.0,
    numerical_aperture=0.75,
    software="edge-scanner 0.1",
    settings={"scan.overlap": "0.1", "focus.mode": "model"},
)
LABEL = np.random.default_rng(3).integers(0, 256, (60, 90, 3), np.uint8)
MACRO = np.random.default_rng(4).integers(0, 256, (50, 130, 3), np.uint8)


def slide(
    path: Path,
    codec: Codec,
    *,
    dtype: str = "uint8",
    channels: int = 3,
    rgb: bool = True,
    height_px: int = 420,
    width_px: int = 300,
    chunk_px: int = 64,
    absent: frozenset[tuple[int, int, int]] = frozenset({(0, 1, 1), (0, 5, 4), (1, 1, 0)}),
    metadata: SlideMetadata = METADATA,
) -> SlideStore:
    """Return a finished store of odd size in which some chunks were never scanned."""
    described = metadata.channels if rgb else tuple(replace(c, exposure_ms=5.0) for c in planes(channels))
    store = SlideStore.create(
        path,
        height_px=height_px,
        width_px=width_px,
        channels=channels,
        dtype=dtype,
        codec=codec,
        fill_value=np.iinfo(dtype).max if rgb else 0,
        metadata=replace(metadata, channels=described),
        chunk_px=chunk_px,
        shard_chunks=2,
    )
    write(store, [place for place in places(store) if place not in absent])
    store.commit()
    store.close()
    return store


def make(kind: str, path: Path) -> SlideStore:
    """Return a slide of one of the kinds that the tables of readers go through."""
    if kind == "uint16 channels":
        return slide(path, Gzip(), dtype="uint16", channels=4, rgb=False)
    codecs = {
        "jpeg": Jpeg(92, "422"),
        "jpeg 420": Jpeg(85, "420"),
        "gzip": Gzip(),
        "zstd": Zstd(),
        "none": Uncompressed(),
    }
    return slide(path, codecs[kind])


def level(store: SlideStore, number: int) -> np.ndarray:
    """Return the pixels of a whole level, (y, x, c)."""
    size = store.levels[number]
    return store.read(number, Box(0, 0, size.height_px, size.width_px))


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder, to prove that it was left alone."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}

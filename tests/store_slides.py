"""Small slides for the tests of the store: pixels that say where they belong."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edge_scanner.store import Channel, Codec, SlideMetadata, SlideStore
from edge_scanner.tile import Chunk

RGB = (Channel("Brightfield"),)


def metadata(channels: tuple[Channel, ...] = RGB) -> SlideMetadata:
    return SlideMetadata("scan-1", 0.5, channels, "2026-01-31T12:00:00Z", origin_x_um=1000.0, origin_y_um=250.0)


def planes(count: int) -> tuple[Channel, ...]:
    return tuple(Channel(f"Dye {k}", "00FF00") for k in range(count))


def new_store(
    path: Path,
    codec: Codec,
    *,
    height_px: int = 150,
    width_px: int = 203,
    channels: int = 3,
    dtype: str = "uint8",
    described: tuple[Channel, ...] = RGB,
    fill_value: int = 255,
    chunk_px: int = 32,
    shard_chunks: int = 2,
) -> SlideStore:
    return SlideStore.create(
        path,
        height_px=height_px,
        width_px=width_px,
        channels=channels,
        dtype=dtype,
        codec=codec,
        fill_value=fill_value,
        metadata=metadata(described),
        chunk_px=chunk_px,
        shard_chunks=shard_chunks,
    )


def truth(store: SlideStore, level: int) -> np.ndarray:
    """Return the pixels (y, x, c) that a level of the test slide shall have: smooth, different everywhere."""
    size = store.levels[level]
    y, x, c = np.mgrid[: size.height_px, : size.width_px, : store.channels]
    top = np.iinfo(store.dtype).max - 5
    return ((y * 3 + x * 2 + c * 40 + level * 10) * (1 if top < 256 else 97) % top).astype(store.dtype)


def places(store: SlideStore) -> list[tuple[int, int, int]]:
    return [(k, r, c) for k, size in enumerate(store.levels) for r in range(size.rows) for c in range(size.cols)]


def chunk_of(store: SlideStore, level: int, row: int, col: int) -> Chunk:
    t = store.chunk_px
    return Chunk(level, row, col, truth(store, level)[row * t : (row + 1) * t, col * t : (col + 1) * t].copy())


def write(store: SlideStore, what: list[tuple[int, int, int]]) -> None:
    for place in what:
        store.append(store.encode(chunk_of(store, *place)))


def expected(store: SlideStore, level: int, committed: set[tuple[int, int, int]]) -> np.ndarray:
    """Return what a reader shall see: the truth where chunks are committed, the fill value elsewhere."""
    pixels, t = truth(store, level), store.chunk_px
    out = np.full_like(pixels, store.fill_value)
    for k, row, col in committed:
        if k == level:
            there = np.s_[row * t : (row + 1) * t, col * t : (col + 1) * t]
            out[there] = pixels[there]
    return out

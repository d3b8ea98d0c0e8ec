"""Rewrite a store with other chunk sizes, within a bound on memory."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zarr

from edge_scanner.errors import AbortedError, StoreError, UsageError
from edge_scanner.geometry import Box
from edge_scanner.store import Level, SlideStore
from edge_scanner.store.output import refuse_existing, refuse_inside

_COPIES = 6
"""How often a shard's pixels are held at once: read, decoded, split, encoded, and joined."""
_SHARD_CHUNKS = 8
_SMALLEST, _LARGEST = 16, 8192


@dataclass(frozen=True, slots=True)
class RechunkReport:
    """What a rechunk did.

    Parameters
    ----------
    levels : int
    chunk_px, shard_px : tuple of int
        Side of a chunk and of a shard, one a level.
    wall_s : float
    """

    levels: int
    chunk_px: tuple[int, ...]
    shard_px: tuple[int, ...]
    wall_s: float


def rechunk(
    src: Path | str,
    out: Path | str,
    *,
    chunk: Sequence[int],
    memory_mb: float = 256.0,
    overwrite: bool = False,
    progress: Callable[[float], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> RechunkReport:
    """Decode a store shard by shard and encode it anew, with the same levels, codec and metadata.

    Lossless codecs keep every pixel; JPEG is compressed a second time. The result is a plain OME-Zarr for any reader.
    With one chunk size for all levels this program opens it again; its export then encodes gzip anew, because the
    wrapper is not this program's.

    Memory bound: six times the pixels of one output shard, whose side is chosen so that it stays below `memory_mb`.

    Parameters
    ----------
    src : path
        OME-Zarr store of this project; read only.
    out : path
        Store to write; appears whole or not at all.
    chunk : sequence of int
        Side of a chunk in pixels: one for all levels, or one a level.
    memory_mb : float
    overwrite : bool
        Replace an existing store.
    progress : callable, optional
        Called with the share done, 0 to 1.
    cancelled : callable, optional
        Polled; when it returns True the work ends.

    Raises
    ------
    UsageError
        `out` exists (with `overwrite`: unless it is an OME-Zarr other than the source), or lies within the source,
        a chunk size that cannot be, or too little memory for one chunk.
    StoreError
        The source is damaged, or `out` cannot be written.
    AbortedError
        `cancelled` returned True.
    """
    started = time.perf_counter()
    out = Path(out)
    refuse_existing(out, Path(src), overwrite=overwrite)
    refuse_inside(out, Path(src))
    source = SlideStore.open(Path(src))
    chunks = _one_a_level(chunk, len(source.levels))
    shards = tuple(size * _shard_chunks(source, size, memory_mb) for size in chunks)
    partial = out.with_name(out.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        _write_documents(source, partial, chunks, shards)
        for share in _write_levels(source, partial, shards):
            if cancelled is not None and cancelled():
                raise AbortedError("The rechunking was cancelled.")
            if progress is not None:
                progress(share)
        if overwrite and out.is_dir():
            shutil.rmtree(out)
        partial.rename(out)
    except OSError as error:
        raise StoreError(f"{out} cannot be written ({error.strerror}).", "Check the path and the space.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return RechunkReport(len(source.levels), chunks, shards, time.perf_counter() - started)


def _one_a_level(chunk: Sequence[int], levels: int) -> tuple[int, ...]:
    if len(chunk) not in (1, levels):
        raise UsageError(f"{len(chunk)} chunk sizes do not fit {levels} levels.", "Give one, or one a level.")
    for size in chunk:
        if not _SMALLEST <= size <= _LARGEST:
            raise UsageError(f"A chunk of {size} px cannot be.", f"Use {_SMALLEST} to {_LARGEST} px.")
    return tuple(chunk) * levels if len(chunk) == 1 else tuple(chunk)


def _shard_chunks(source: SlideStore, chunk_px: int, memory_mb: float) -> int:
    """Return how many chunks a side a shard may have, 8 at most."""
    chunk_mb = chunk_px**2 * source.channels * source.dtype.itemsize / 1e6
    side = math.isqrt(int(memory_mb / (chunk_mb * _COPIES)))
    if side < 1:
        raise UsageError(
            f"Chunks of {chunk_px} px need {math.ceil(chunk_mb * _COPIES)} MB.", "Give more memory or a smaller chunk."
        )
    return min(side, _SHARD_CHUNKS)


def _write_documents(source: SlideStore, out: Path, chunks: Sequence[int], shards: Sequence[int]) -> None:
    """Copy every document of the source, arrays with the new chunk sizes."""
    for file in [p for pattern in ("zarr.json", "*/zarr.json", "OME/*.xml") for p in source.path.glob(pattern)]:
        target = out / file.relative_to(source.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    for number, (chunk_px, shard_px) in enumerate(zip(chunks, shards, strict=True)):
        document = json.loads((source.path / "0" / str(number) / "zarr.json").read_text(encoding="utf-8"))
        inner = document["codecs"][0]["configuration"]
        inner["chunk_shape"][1:] = chunk_px, chunk_px
        document["chunk_grid"]["configuration"]["chunk_shape"][1:] = shard_px, shard_px
        folder = out / "0" / str(number)
        folder.mkdir()
        (folder / "zarr.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _write_levels(source: SlideStore, out: Path, shards: Sequence[int]) -> Iterator[float]:
    """Write shard by shard and yield the share of all pixels that is done."""
    total = sum(level.height_px * level.width_px for level in source.levels)
    done = 0
    for number, (level, shard_px) in enumerate(zip(source.levels, shards, strict=True)):
        array: Any = zarr.open_array(store=str(out / "0" / str(number)), mode="r+", zarr_format=3)
        for box in _boxes(level, shard_px):
            pixels = source.read(number, box)
            array[:, box.y0 : box.y1, box.x0 : box.x1] = pixels.transpose(2, 0, 1)
            done += box.height * box.width
            yield done / total


def _boxes(level: Level, side: int) -> Iterator[Box]:
    for y in range(0, level.height_px, side):
        for x in range(0, level.width_px, side):
            yield Box(y, x, min(y + side, level.height_px), min(x + side, level.width_px))

"""The whole offline job: a source of tiles in, an OME-Zarr beside a drawing and a table of its tiles out."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edge_scanner import __version__
from edge_scanner.errors import StoreError, UsageError
from edge_scanner.fuse.align import Alignment, align
from edge_scanner.fuse.fusion import FEATHER_PX, Fusion, Look
from edge_scanner.fuse.layout import layout_svg, positions_csv, replace_text
from edge_scanner.fuse.lazy import prepare
from edge_scanner.fuse.sources import TileSet
from edge_scanner.fuse.tiles import TileFile, TileReader, common_shape
from edge_scanner.fuse.write import write
from edge_scanner.memory import peak_rss_mib
from edge_scanner.mosaic.kernel import Blend
from edge_scanner.store import Channel, Codec, SlideMetadata
from edge_scanner.store.codec import Gzip, Jpeg, Uncompressed, Zstd
from edge_scanner.store.output import refuse_existing

CHUNK_PX = 512
_COLOURS = ("FFFFFF", "00FF00", "FF0000", "0000FF", "FF00FF", "00FFFF", "FFFF00")


@dataclass(frozen=True, slots=True)
class FuseReport:
    """What a fusion did.

    Parameters
    ----------
    tiles : int
    edges : int or None
        Overlaps that registration used; None without it.
    residual_px_p50, residual_px_p95 : float or None
        Between measured and final shifts of those.
    height_px, width_px : int
    origin_x_px, origin_y_px : int
        Mosaic coordinates of the first pixel.
    loads_per_tile : float or None
        How often a tile was read, on average; None on a cluster.
    pieces, pieces_computed : int
        Of the mosaic; what an earlier run had done is not computed again.
    wall_s, peak_rss_mib : float
    """

    tiles: int
    edges: int | None
    residual_px_p50: float | None
    residual_px_p95: float | None
    height_px: int
    width_px: int
    origin_x_px: int
    origin_y_px: int
    loads_per_tile: float | None
    pieces: int
    pieces_computed: int
    wall_s: float
    peak_rss_mib: float


def fuse_slide(
    tiles: TileSet,
    out: Path,
    *,
    blend: Blend | None = None,
    chunk_px: int | None = None,
    feather_px: int | None = None,
    codec: str | None = None,
    memory_mb: float = 256.0,
    register: bool = False,
    stage_error_px: float = 5.0,
    level: bool | None = None,
    overwrite: bool = False,
    client: Any = None,
    progress: Callable[[float, str], None] = lambda *_: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> FuseReport:
    """Fuse a source into an OME-Zarr slide, with `positions.csv` and `layout.svg` beside it.

    Memory bound: that of `write`, and a few copies of a chunk for each thread.

    Parameters
    ----------
    tiles : TileSet
    out : Path
    blend, chunk_px, feather_px, codec : optional
        Those of the scan, or linear, 512, 64 and gzip.
    memory_mb : float
        Tiles and unfinished chunks of the pyramid kept in memory.
    register : bool
        Correct the places by what the overlaps show.
    stage_error_px : float
        How far tiles lie from their places, one sigma, before.
    level : bool, optional
        With `register`: make tiles as bright as their neighbours; by default where they are in colour.
    overwrite : bool
    client : distributed.Client, optional
    progress : callable
        Told the share done and what is being done.
    cancelled : callable

    Raises
    ------
    ScannerError
        See `write` and `align`.
    """
    began = time.perf_counter()
    _check(tiles, out, overwrite)
    alignment: Alignment | None = None
    if register:
        alignment = align(
            tiles,
            stage_error_px,
            int(memory_mb * 1e6),
            lambda share: progress(share, "registering"),
            level=common_shape(tiles.tiles).shape[2:] == (3,) if level is None else level,
        )
        tiles = replace(tiles, transforms=alignment.transforms, gains=alignment.gains)
    scan = tiles.scan
    blend = blend or (scan.blend if scan else "linear")
    fusion = _fusion(tiles, blend, feather_px, memory_mb)
    chunk_px = chunk_px or (scan.chunk_px if scan else CHUNK_PX)
    chosen = scan.codec if scan and codec is None else _codec(codec or "gzip")
    out.parent.mkdir(parents=True, exist_ok=True)
    written = write(
        fusion,
        out,
        chunk_px=chunk_px,
        codec=chosen,
        metadata=_metadata(tiles, fusion, out.name, blend),
        cache_bytes=int(memory_mb * 1e6),
        identity=_identity(tiles, fusion, chunk_px, chosen),
        overwrite=overwrite,
        client=client,
        progress=lambda share: progress(share, "fusing"),
        cancelled=cancelled,
    )
    names = [tile.name for tile in tiles.tiles]
    try:
        replace_text(out.parent / "layout.svg", layout_svg(fusion, names, tiles.transforms))
        replace_text(out.parent / "positions.csv", positions_csv(tiles))
    except OSError as error:
        raise StoreError(f"The files beside {out.name} cannot be written ({error.strerror}).") from error
    return FuseReport(
        tiles=len(names),
        edges=alignment.edges if alignment else None,
        residual_px_p50=alignment.residual_px_p50 if alignment else None,
        residual_px_p95=alignment.residual_px_p95 if alignment else None,
        height_px=fusion.extent[0],
        width_px=fusion.extent[1],
        origin_x_px=fusion.start[1],
        origin_y_px=fusion.start[0],
        loads_per_tile=round(fusion.reader.loads / len(names), 3) if client is None else None,
        pieces=written.pieces,
        pieces_computed=written.computed,
        wall_s=round(time.perf_counter() - began, 3),
        peak_rss_mib=round(peak_rss_mib(), 1),
    )


def _check(tiles: TileSet, out: Path, overwrite: bool) -> None:
    for folder in {tiles.listing, *(Path(path).parent for tile in tiles.tiles for path, _ in tile.pages)}:
        refuse_existing(out, folder, overwrite=overwrite)
    source = tiles.listing.resolve()
    if source == out.resolve().parent / "positions.csv":
        raise UsageError(
            "positions.csv beside the output is the list of the tiles, and would be replaced.",
            "Write the output to another folder.",
        )


def _fusion(tiles: TileSet, blend: Blend, feather_px: int | None, memory_mb: float) -> Fusion:
    scan = tiles.scan
    if scan is None:
        return prepare(
            tiles.tiles,
            tiles.transforms,
            blend=blend,
            fill=_glass(tiles),
            feather_px=feather_px or FEATHER_PX,
            cache_mb=memory_mb,
            gains=tiles.gains,
        )
    shape = common_shape(tiles.tiles)
    look = Look(blend, shape.dtype, scan.fill, feather_px or scan.feather_px, cubic=scan.cubic)
    canvas = ((scan.canvas.x0, scan.canvas.y0), (scan.canvas.x1, scan.canvas.y1))
    reader = TileReader(tiles.tiles, shape, int(memory_mb * 1e6))
    return Fusion(reader, shape, tiles.transforms, canvas, look, scan.reach, scan.doubts_px, tiles.gains)


def _metadata(tiles: TileSet, fusion: Fusion, name: str, blend: str) -> SlideMetadata:
    if tiles.scan is not None:
        return tiles.scan.metadata
    size = tiles.pixel_size_um
    channels = fusion.channels or 1
    y_um, x_um = (float(v) for v in np.multiply(fusion.start, size or 1.0))
    return SlideMetadata(
        name=name.removesuffix(".ome.zarr"),
        pixel_size_um=size or 1.0,
        channels=(Channel("Brightfield"),) if _is_rgb(tiles) else _channels(tiles.tiles[0], channels),
        origin_x_um=x_um,
        origin_y_um=y_um,
        software=f"edge-scanner {__version__}",
        settings={"blend": blend, "tiles": str(len(tiles.tiles))} | ({} if size else {"pixel_size": "not known"}),
    )


def _is_rgb(tiles: TileSet) -> bool:
    """Tell, by the first, whether tiles are colour pictures, on white glass, rather than stacks of channels."""
    return common_shape(tiles.tiles[:1]).shape[2:] == (3,) and len(tiles.tiles[0].pages) == 1


def _glass(tiles: TileSet) -> int:
    """Return what is shown where no tile lies: white for colour pictures, black for all others."""
    dtype = common_shape(tiles.tiles[:1]).dtype
    return int(np.iinfo(dtype).max) if _is_rgb(tiles) and dtype.kind == "u" else 0


def _channels(tile: TileFile, count: int) -> tuple[Channel, ...]:
    files = {path for path, _ in tile.pages}
    named = [Path(path).stem.removeprefix(f"{tile.name}_") for path, _ in tile.pages] if len(files) == count else []
    labels = named or [f"Channel {c}" for c in range(count)]
    return tuple(Channel(label, _COLOURS[c % len(_COLOURS)]) for c, label in enumerate(labels))


def _identity(tiles: TileSet, fusion: Fusion, chunk_px: int, codec: Codec) -> str:
    """Return a digest of all that decides the pixels: tiles by name, size and time, transforms, and how they blend."""
    digest = hashlib.sha256(repr((__version__, chunk_px, codec, fusion.look, fusion.extent)).encode())
    for tile, matrix in zip(tiles.tiles, tiles.transforms, strict=True):
        for path, page in tile.pages:
            state = Path(path).stat()
            digest.update(repr((path, page, state.st_size, state.st_mtime_ns)).encode())
        digest.update(np.asarray(matrix).tobytes())
    digest.update(repr(tiles.gains).encode())
    return digest.hexdigest()


def _codec(name: str) -> Codec:
    known: dict[str, Codec] = {"gzip": Gzip(), "zstd": Zstd(), "jpeg": Jpeg(), "none": Uncompressed()}
    if name not in known:
        raise UsageError(f"There is no codec {name!r}.", f"Known are {', '.join(known)}.")
    return known[name]

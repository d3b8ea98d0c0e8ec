"""Commands that work out of core: `fuse` and `segment`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Any

import typer

from edge_scanner.cli.output import print_json, print_rows, progress
from edge_scanner.errors import ScannerError, UsageError
from edge_scanner.fuse.layout import refuse_foreign
from edge_scanner.fuse.slide import fuse_slide
from edge_scanner.fuse.sources import open_source
from edge_scanner.seamless.segment import segment as segment_slide


class BlendName(StrEnum):
    """How overlaps are blended."""

    LINEAR = "linear"
    MAX = "max"
    MEAN = "mean"
    FIRST = "first"
    SEAM = "seam"


def fuse(
    source: Path = typer.Argument(..., metavar="SOURCE", help="A folder of tiles, or the file that lists them."),
    out: Path = typer.Argument(..., metavar="OUT.ome.zarr"),
    pixel_size_um: float | None = typer.Option(None, "--pixel-size-um", help="Where the source does not say."),
    scheduler: str | None = typer.Option(None, "--scheduler", metavar="ADDR", help="dask.distributed, tcp://…"),
    register: bool = typer.Option(False, "--register", help="Correct the places by what the overlaps show."),
    stage_error_px: float = typer.Option(5.0, "--stage-error-px", help="Error of the places, sigma; for --register."),
    gain: bool | None = typer.Option(
        None, "--gain/--no-gain", help="With --register: make tiles equally bright; by default those in colour."
    ),
    blend: BlendName | None = typer.Option(None, "--blend", help="linear; a scan's own."),
    chunk: int | None = typer.Option(None, "--chunk", min=16, max=8192, help="Side of a chunk, px; 512."),
    feather_px: int | None = typer.Option(None, "--feather-px", min=1, help="Longest blending ramp; 64."),
    codec: str | None = typer.Option(None, "--codec", help="gzip (lossless, the default), zstd, jpeg or none."),
    memory_mb: float = typer.Option(256.0, "--memory-mb", min=1, help="Tiles kept in memory; best twenty or more."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace an existing OUT."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Fuse tiles with known places or transforms into an OME-Zarr with its pyramid; an interrupted run is resumed."""
    if chunk is not None and chunk % 2:
        raise UsageError(f"A chunk of {chunk} px cannot be.", "Use an even number.")
    tiles = open_source(source.resolve(), pixel_size_um)
    refuse_foreign(out.parent)
    with _client(scheduler) as client, progress("fusing", wanted=not as_json) as show:
        report = fuse_slide(
            tiles, out, blend=blend.value if blend else None,
            chunk_px=chunk, feather_px=feather_px, codec=codec, memory_mb=memory_mb,
            register=register, stage_error_px=stage_error_px, level=gain, overwrite=overwrite, client=client,
            progress=show,
        )  # fmt: skip
    if as_json:
        print_json(asdict(report))
    else:
        print_rows("", [(key, str(value)) for key, value in asdict(report).items() if value is not None])


def segment(
    source: Path = typer.Argument(..., metavar="SRC.ome.zarr"),
    model: Path = typer.Argument(..., metavar="MODEL.onnx", help="A file, or `tissue`, which ships."),
    out: Path = typer.Argument(..., metavar="OUT.ome.zarr"),
    tile: int | None = typer.Option(None, "--tile", min=8, max=8192, help="Side of a tile, px; the model's, or 512."),
    overlap: int | None = typer.Option(None, "--overlap", min=0, help="Of tiles, px; a quarter of the tile."),
    level: int | None = typer.Option(
        None, "--level", min=0, help="Of the slide; the one for the model's pixel size, or 0."
    ),
    probabilities: bool = typer.Option(False, "--probabilities", help="Write a channel for each class, not labels."),
    tissue_only: bool = typer.Option(False, "--tissue-only", help="Skip tiles without tissue."),
    scheduler: str | None = typer.Option(None, "--scheduler", metavar="ADDR", help="dask.distributed, tcp://…"),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace an existing OUT."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Label a slide by an ONNX network, tile by tile without seams, as an OME-Zarr label image."""
    with _client(scheduler) as client, progress("segmenting", wanted=not as_json) as show:
        report = segment_slide(
            source, model, out, tile_px=tile, overlap_px=overlap, level=level, probabilities=probabilities,
            tissue_only=tissue_only, overwrite=overwrite, client=client, progress=lambda share: show(share, ""),
        )  # fmt: skip
    if as_json:
        print_json(asdict(report))
    else:
        print_rows("", [(key, str(value)) for key, value in asdict(report).items()])


@contextmanager
def _client(address: str | None) -> Iterator[Any]:
    """Yield a client of a Dask cluster; None without an address."""
    if address is None:
        yield None
        return
    try:
        from distributed import Client
    except ImportError as error:
        raise UsageError("--scheduler needs dask.distributed.", "Install edge-scanner[distributed].") from error
    try:
        client = Client(address, timeout="5s")
    except (OSError, ValueError) as error:
        raise ScannerError(f"There is no Dask scheduler at {address}.", "Check the address.") from error
    try:
        yield client
    finally:
        client.close()

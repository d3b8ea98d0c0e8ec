"""Commands that turn files into files: `export`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import typer

from edge_scanner.cli.output import print_json, print_rows, progress
from edge_scanner.export import to_ome_tiff


def export(
    source: Path = typer.Argument(..., metavar="SRC.ome.zarr"),
    out: Path = typer.Argument(..., metavar="OUT.ome.tif"),
    compression: str = typer.Option("keep", "--compression", help="keep, jpeg, zlib, zstd or none."),
    quality: int | None = typer.Option(None, "--quality", min=1, max=100, help="Of jpeg."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace an existing OUT."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Write a pyramidal OME-TIFF; `keep` copies the stored chunks byte for byte."""
    with progress("exporting", wanted=not as_json) as show:
        report = to_ome_tiff(
            source, out, compression=compression, quality=quality, overwrite=overwrite,
            progress=lambda share: show(share, ""),
        )  # fmt: skip
    if as_json:
        print_json(asdict(report))
    else:
        print_rows("", [(key, str(value)) for key, value in asdict(report).items()])

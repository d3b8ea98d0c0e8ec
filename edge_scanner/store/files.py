"""The small files of a store: written once, synced, and renamed into place; read back strictly."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from edge_scanner.errors import StoreError
from edge_scanner.store import shard as shards
from edge_scanner.store.layout import Layout, documents, parse, same_array
from edge_scanner.store.ome_xml import build_ome_xml


def write_empty(path: Path, layout: Layout) -> None:
    """Write a store without chunks; it appears under its name whole or not at all.

    Raises
    ------
    StoreError
        When the path exists or cannot be written.
    DiskLowError
        When the disk is full.
    """
    if os.path.lexists(path):
        raise StoreError(f"{path} exists already.", "Choose another path or remove it.")
    partial = path.with_name(f"{path.name}.partial")
    with shards.disk_errors(path):
        shutil.rmtree(partial, ignore_errors=True)
        _fill(partial, layout)
        for entry in [*partial.rglob("*"), partial]:
            shards.sync(entry)
        partial.rename(path)
        shards.sync(path.parent)


def read_layout(path: Path) -> Layout:
    """Read the layout of a store.

    Raises
    ------
    StoreError
        Not a store, a level missing or of another shape or type, metadata that cannot be read.
    """
    layout = parse(_read_json(path / "0"), _read_json(path / "0" / "0"))
    expected = documents(layout)
    for k in range(len(layout.levels())):
        if not same_array(_read_json(path / "0" / str(k)), expected[f"0/{k}"]):
            raise StoreError(f"Level {k} of {path} has another shape, type or codec than level 0 asks for.")
    return layout


def _fill(folder: Path, layout: Layout) -> None:
    for k, level in enumerate(layout.levels()):
        for row in range(0, level.rows, layout.shard_chunks):
            (folder / layout.shard_of(k, row, 0)).parent.mkdir(parents=True)
    (folder / "OME").mkdir()
    for name, document in documents(layout).items():
        (folder / name / "zarr.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    xml = build_ome_xml(
        layout.metadata,
        height_px=layout.height_px,
        width_px=layout.width_px,
        channels=layout.channels,
        dtype=layout.dtype,
        kind="zarr",
    )
    (folder / "OME" / "METADATA.ome.xml").write_text(xml, encoding="utf-8")


def _read_json(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "zarr.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"{folder} is not a readable part of an OME-Zarr ({error}).", "Check the path.") from error
    if not isinstance(found, dict):
        raise StoreError(f"{folder} is not a readable part of an OME-Zarr.", "Check the path.")
    return found

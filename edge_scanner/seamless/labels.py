"""A label image as OME-Zarr 0.5: `labels/segmentation` with colours, and a pyramid of nearest pixels."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from edge_scanner.errors import StoreError
from edge_scanner.store import SlideStore

Labels = NDArray[np.uint8]

NAME = "segmentation"
MOST_CLASSES = 256
_CHUNK_PX = 512
_SHARD_CHUNKS = 8
_COLOURS = (
    (0, 0, 0, 0), (228, 26, 28, 160), (55, 126, 184, 160), (77, 175, 74, 160), (152, 78, 163, 160), (255, 127, 0, 160),
    (255, 255, 51, 160), (166, 86, 40, 160), (247, 129, 191, 160),
)  # fmt: skip


class LabelWriter:
    """Writes a label image of a slide's size, in lines of blocks as `seamless.run` gives them.

    Memory bound: the lines of chunks that a line of blocks touches, one byte a pixel.

    Parameters
    ----------
    path : Path
        A folder that does not exist.
    source : SlideStore
        The slide: size, levels, pixel size and place are taken from it.
    classes : sequence of str
    by_columns : bool
        Blocks come column by column.

    Raises
    ------
    StoreError
        When the path cannot be written.
    """

    def __init__(self, path: Path, source: SlideStore, classes: Sequence[str], *, by_columns: bool) -> None:
        self._path = path
        self._shapes = [(level.height_px, level.width_px) for level in source.levels]
        self._by_columns = by_columns
        self._lines: dict[int, Labels] = {}
        try:
            path.mkdir(parents=True)
            self._arrays = self._create(source, classes)
        except (OSError, ValueError) as error:
            raise StoreError(f"{path} cannot be written ({error}).", "Check the path and the space.") from error

    def write(self, y0: int, x0: int, labels: Labels) -> None:
        """Take a block (y, x); blocks of earlier lines than this one's are complete."""
        at, labels = (x0, labels.T) if self._by_columns else (y0, labels)
        other = y0 if self._by_columns else x0
        self._flush(at)
        length = self._shapes[0][0 if self._by_columns else 1]
        for line in range(at // _CHUNK_PX, (at + len(labels) - 1) // _CHUNK_PX + 1):
            held = self._lines.setdefault(line, np.zeros((_CHUNK_PX, length), np.uint8))
            low, high = max(at, line * _CHUNK_PX), min(at + len(labels), (line + 1) * _CHUNK_PX)
            part = labels[low - at : high - at]
            held[low - line * _CHUNK_PX : high - line * _CHUNK_PX, other : other + labels.shape[1]] = part

    def finish(self) -> None:
        """Write what is left, and the coarser levels."""
        self._flush(None)
        for finer, coarser in zip(self._arrays, self._arrays[1:], strict=False):
            step = _CHUNK_PX * _SHARD_CHUNKS
            for y in range(0, coarser.shape[0], _CHUNK_PX):
                for x in range(0, coarser.shape[1], step):
                    part = finer[2 * y : 2 * (y + _CHUNK_PX), 2 * x : 2 * (x + step)]
                    if np.any(part):
                        coarser[y : y + _CHUNK_PX, x : x + step] = np.asarray(part)[::2, ::2]

    def discard(self) -> None:
        """Remove everything."""
        shutil.rmtree(self._path, ignore_errors=True)

    def _flush(self, before: int | None) -> None:
        for line in sorted(self._lines):
            if before is not None and (line + 1) * _CHUNK_PX > before:
                return
            held, start = self._lines.pop(line), line * _CHUNK_PX
            extent = self._shapes[0][1 if self._by_columns else 0]
            held = held[: extent - start]
            if held.any():
                place = slice(start, start + len(held))
                self._arrays[0][(slice(None), place) if self._by_columns else (place, slice(None))] = (
                    held.T if self._by_columns else held
                )

    def _create(self, source: SlideStore, classes: Sequence[str]) -> list[Any]:
        size = source.metadata.pixel_size_um
        origin = (source.metadata.origin_y_um, source.metadata.origin_x_um)
        long = _CHUNK_PX * _SHARD_CHUNKS
        arrays = []
        for number, shape in enumerate(self._shapes):
            columns = self._by_columns and number == 0
            arrays.append(
                zarr.create_array(
                    str(self._path / "labels" / NAME / str(number)), shape=shape, dtype="uint8", fill_value=0,
                    chunks=(_CHUNK_PX, _CHUNK_PX), shards=(long, _CHUNK_PX) if columns else (_CHUNK_PX, long),
                    compressors=zarr.codecs.ZstdCodec(level=3), dimension_names=("y", "x"), zarr_format=3,
                )
            )  # fmt: skip
        version = {"version": "0.5"}
        scales = [
            (size * level.downsample, [o + (level.downsample - 1) / 2 * size for o in origin])
            for level in source.levels
        ]
        colours = [
            {"label-value": k, "rgba": list(_COLOURS[k % len(_COLOURS)] if k else _COLOURS[0])}
            for k in range(len(classes))
        ]
        about = [{"label-value": k, "class": name} for k, name in enumerate(classes)]
        label = {"colors": colours, "properties": about, "source": {"image": "../../"}}
        _group(self._path, {**version, "multiscales": [_multiscale(f"labels/{NAME}/", scales)]})
        _group(self._path / "labels", {**version, "labels": [NAME]})
        _group(
            self._path / "labels" / NAME, {**version, "multiscales": [_multiscale("", scales)], "image-label": label}
        )
        return arrays


def _group(path: Path, ome: dict[str, Any]) -> None:
    zarr.open_group(str(path), mode="a", zarr_format=3).attrs["ome"] = ome


def _multiscale(folder: str, scales: Sequence[tuple[float, list[float]]]) -> dict[str, Any]:
    return {
        "name": NAME,
        "axes": [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "yx"],
        "datasets": [
            {
                "path": f"{folder}{k}",
                "coordinateTransformations": [
                    {"type": "scale", "scale": [scale, scale]},
                    {"type": "translation", "translation": start},
                ],
            }
            for k, (scale, start) in enumerate(scales)
        ],
    }

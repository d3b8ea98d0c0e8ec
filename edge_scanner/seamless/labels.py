"""What a network found, as OME-Zarr 0.5: a label image with colours, or an image of probabilities; nearest pixels."""

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
    """Writes a label image of a level's size, in lines of blocks as `seamless.run` gives them.

    Memory bound: the lines of chunks that a line of blocks touches, one byte a pixel (and class, for probabilities).

    Parameters
    ----------
    path : Path
        A folder that does not exist.
    source : SlideStore
        The slide: size, levels, pixel size and place are taken from it.
    classes : sequence of str
    by_columns : bool
        Blocks come column by column.
    level : int
        Of the slide, the finest here.
    probabilities : bool
        Blocks are (y, x, class), 255 being certain, and make an image in place of labels.

    Raises
    ------
    StoreError
        When the path cannot be written.
    """

    def __init__(
        self,
        path: Path,
        source: SlideStore,
        classes: Sequence[str],
        *,
        by_columns: bool,
        level: int = 0,
        probabilities: bool = False,
    ) -> None:
        self._path, self._levels = path, source.levels[level:]
        self._shapes = [(level.height_px, level.width_px) for level in self._levels]
        self._by_columns = by_columns
        self._planes: tuple[int, ...] = (len(classes),) if probabilities else ()
        self._lines: dict[int, Labels] = {}
        try:
            path.mkdir(parents=True)
            self._arrays = self._create(source, classes)
        except (OSError, ValueError) as error:
            raise StoreError(f"{path} cannot be written ({error}).", "Check the path and the space.") from error

    def write(self, y0: int, x0: int, labels: Labels) -> None:
        """Take a block (y, x[, class]); blocks of earlier lines than this one's are complete."""
        at, labels = (x0, labels.swapaxes(0, 1)) if self._by_columns else (y0, labels)
        other = y0 if self._by_columns else x0
        self._flush(at)
        length = self._shapes[0][0 if self._by_columns else 1]
        for line in range(at // _CHUNK_PX, (at + len(labels) - 1) // _CHUNK_PX + 1):
            held = self._lines.setdefault(line, np.zeros((_CHUNK_PX, length, *self._planes), np.uint8))
            low, high = max(at, line * _CHUNK_PX), min(at + len(labels), (line + 1) * _CHUNK_PX)
            part = labels[low - at : high - at]
            held[low - line * _CHUNK_PX : high - line * _CHUNK_PX, other : other + labels.shape[1]] = part

    def finish(self) -> None:
        """Write what is left, and the coarser levels."""
        self._flush(None)
        for finer, coarser in zip(self._arrays, self._arrays[1:], strict=False):
            step = _CHUNK_PX * _SHARD_CHUNKS
            for y in range(0, coarser.shape[-2], _CHUNK_PX):
                for x in range(0, coarser.shape[-1], step):
                    part = finer[..., 2 * y : 2 * (y + _CHUNK_PX), 2 * x : 2 * (x + step)]
                    if np.any(part):
                        coarser[..., y : y + _CHUNK_PX, x : x + step] = np.asarray(part)[..., ::2, ::2]

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
                part = held.swapaxes(0, 1) if self._by_columns else held
                where = (slice(None), place) if self._by_columns else (place, slice(None))
                self._arrays[0][(..., *where)] = np.moveaxis(part, -1, 0) if self._planes else part

    def _create(self, source: SlideStore, classes: Sequence[str]) -> list[Any]:
        folder = "" if self._planes else f"labels/{NAME}/"
        arrays = [self._array(self._path / f"{folder}{number}", number) for number in range(len(self._levels))]
        version = {"version": "0.5"}
        shown = {**version, "multiscales": [_multiscale(folder, self._scales(source), channels=bool(self._planes))]}
        if self._planes:
            channels = [
                {
                    "label": name,
                    "color": _hex(k),
                    "active": k == 1,
                    "window": {"start": 0, "end": 255, "min": 0, "max": 255},
                }
                for k, name in enumerate(classes)
            ]
            _group(self._path, {**shown, "omero": {"channels": channels}})
            return arrays
        colours = [{"label-value": k, "rgba": list(_colour(k))} for k in range(len(classes))]
        about = [{"label-value": k, "class": name} for k, name in enumerate(classes)]
        label = {"colors": colours, "properties": about, "source": {"image": "../../"}}
        _group(self._path, shown)
        _group(self._path / "labels", {**version, "labels": [NAME]})
        own = {**version, "multiscales": [_multiscale("", self._scales(source))], "image-label": label}
        _group(self._path / "labels" / NAME, own)
        return arrays

    def _array(self, path: Path, number: int) -> Any:
        long = _CHUNK_PX * _SHARD_CHUNKS
        shard = (long, _CHUNK_PX) if self._by_columns and number == 0 else (_CHUNK_PX, long)
        one = (1,) * len(self._planes)
        return zarr.create_array(
            str(path), shape=(*self._planes, *self._shapes[number]), dtype="uint8", fill_value=0,
            chunks=(*one, _CHUNK_PX, _CHUNK_PX), shards=(*one, *shard), compressors=zarr.codecs.ZstdCodec(level=3),
            dimension_names=("c", "y", "x") if self._planes else ("y", "x"), zarr_format=3,
        )  # fmt: skip

    def _scales(self, source: SlideStore) -> list[tuple[float, list[float]]]:
        """Return the pixel size of each level and where its first pixel's centre lies, um."""
        size = source.metadata.pixel_size_um
        origin = (source.metadata.origin_y_um, source.metadata.origin_x_um)
        return [
            (size * level.downsample, [o + (level.downsample - 1) / 2 * size for o in origin]) for level in self._levels
        ]


def _colour(k: int) -> tuple[int, int, int, int]:
    return _COLOURS[k % len(_COLOURS)] if k else _COLOURS[0]


def _hex(k: int) -> str:
    return "".join(f"{value:02X}" for value in _colour(k)[:3]) if k else "FFFFFF"


def _group(path: Path, ome: dict[str, Any]) -> None:
    zarr.open_group(str(path), mode="a", zarr_format=3).attrs["ome"] = ome


def _multiscale(folder: str, scales: Sequence[tuple[float, list[float]]], *, channels: bool = False) -> dict[str, Any]:
    axes = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "yx"]
    one, none = ([1.0], [0.0]) if channels else ([], [])
    return {
        "name": NAME,
        "axes": [{"name": "c", "type": "channel"}, *axes] if channels else axes,
        "datasets": [
            {
                "path": f"{folder}{k}",
                "coordinateTransformations": [
                    {"type": "scale", "scale": [*one, scale, scale]},
                    {"type": "translation", "translation": [*none, *start]},
                ],
            }
            for k, (scale, start) in enumerate(scales)
        ],
    }

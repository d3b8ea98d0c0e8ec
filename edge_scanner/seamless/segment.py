"""A whole slide through a network: OME-Zarr in, label image out."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_scanner.errors import AbortedError, StoreError, UsageError
from edge_scanner.geometry import Box
from edge_scanner.seamless.labels import MOST_CLASSES, LabelWriter
from edge_scanner.seamless.onnx_model import OnnxModel
from edge_scanner.seamless.plan import Plan, plan
from edge_scanner.seamless.run import ModelError, run
from edge_scanner.store import SlideStore
from edge_scanner.tile import Pixels

TILE_PX = 512
BATCH = 4
PREFETCH = 8


@dataclass(frozen=True, slots=True)
class SegmentReport:
    """What a segmentation did.

    Parameters
    ----------
    tiles : int
    classes : dict of str to float
        Share of the slide's pixels.
    held_fraction : float
        Share of the slide's pixels that was held at once.
    providers : tuple of str
        What the network ran on.
    wall_s : float
    """

    tiles: int
    classes: dict[str, float]
    held_fraction: float
    providers: tuple[str, ...]
    wall_s: float


def segment(
    src: Path,
    model_path: Path,
    out: Path,
    *,
    tile_px: int | None = None,
    overlap_px: int | None = None,
    overwrite: bool = False,
    client: Any = None,
    progress: Callable[[float], None] = lambda _: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> SegmentReport:
    """Label every pixel of a slide by an ONNX network; see `OnnxModel` for which.

    With one output a pixel is labelled 1 above the threshold, else by the class of the largest output.
    Memory bound: `plan.held_fraction` of the slide for each output as float32, two lines of the slide's chunks, two of
    labels, and a few batches.

    Parameters
    ----------
    src, model_path, out : Path
    tile_px : int, optional
        The network's own, or 512.
    overlap_px : int, optional
        A quarter of the tile.
    overwrite : bool
    client : distributed.Client, optional
        Runs the network on its workers.
    progress : callable
        Told the share done.
    cancelled : callable

    Raises
    ------
    UsageError
        `out` exists, or sizes that cannot be.
    SourceError, ModelError, StoreError
    AbortedError
        `cancelled` returned True.
    """
    began = time.perf_counter()
    if os.path.lexists(out) and not overwrite:
        raise UsageError(f"The output {out} exists.", "Give another name or --overwrite.")
    source, model = SlideStore.open(src), OnnxModel(model_path)
    level = source.levels[0]
    if source.channels != model.channels:
        raise ModelError(
            f"The model takes {model.channels} channels; the slide has {source.channels}.", "Use another model."
        )
    sides = tuple(tile_px or side or TILE_PX for side in model.tile)
    laid = plan(
        (level.height_px, level.width_px), sides, [side // 4 if overlap_px is None else overlap_px for side in sides]
    )
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    classes = _classes(model, model.outputs)
    writer = LabelWriter(partial, source, classes, by_columns=laid.by_columns)
    counts = _Counts(laid, writer, model.threshold, len(classes), progress, cancelled)
    try:
        apply = model if client is None else _remote(client, model)
        run(laid, apply, _Reader(source).read, counts.write, batch=BATCH, prefetch=PREFETCH)
        writer.finish()
        if out.is_dir():
            shutil.rmtree(out)
        partial.rename(out)
    except OSError as error:
        raise StoreError(f"{out} cannot be written ({error.strerror}).", "Check the path and the space.") from error
    finally:
        writer.discard()
    shares = counts.pixels / (level.height_px * level.width_px)
    named = {name: round(float(share), 6) for name, share in zip(classes, shares, strict=True)}
    wall_s = round(time.perf_counter() - began, 3)
    return SegmentReport(len(laid.tiles), named, round(laid.held_fraction, 6), model.providers, wall_s)


def _classes(model: OnnxModel, outputs: int | None) -> tuple[str, ...]:
    count = max(2, outputs or len(model.classes) or MOST_CLASSES)
    if count > MOST_CLASSES:
        raise ModelError(
            f"The model gives {count} outputs a pixel.", f"At most {MOST_CLASSES} classes can be labelled."
        )
    return tuple(model.classes[k] if k < len(model.classes) else f"class {k}" for k in range(count))


def _remote(client: Any, model: OnnxModel) -> Callable[[NDArray[Any]], Any]:
    """Return the network as it is called on a cluster: each worker gets it once."""
    there = client.scatter(model, broadcast=True)
    return lambda tiles: client.submit(_apply, there, tiles, pure=False)


def _apply(model: OnnxModel, tiles: NDArray[Any]) -> NDArray[Any]:
    return model(tiles)


class _Counts:
    """Turns outputs into labels on their way to the writer."""

    def __init__(
        self,
        laid: Plan,
        writer: LabelWriter,
        threshold: float,
        classes: int,
        progress: Callable[[float], None],
        cancelled: Callable[[], bool],
    ) -> None:
        self._writer, self._threshold, self._progress, self._cancelled = writer, threshold, progress, cancelled
        self._total = laid.rows.length * laid.cols.length
        self.pixels = np.zeros(classes, np.int64)

    def write(self, y0: int, x0: int, values: NDArray[Any]) -> None:
        if self._cancelled():
            raise AbortedError("The segmentation was cancelled.")
        chosen = values[..., 0] > self._threshold if values.shape[2] == 1 else values.argmax(axis=2)
        labels = chosen.astype(np.uint8)
        self.pixels += np.bincount(labels.ravel(), minlength=len(self.pixels))
        self._writer.write(y0, x0, labels)
        self._progress(float(self.pixels.sum()) / self._total)


class _Reader:
    """Boxes of a slide, each chunk decoded about once; any thread.

    Memory bound: two lines of chunks along the shorter side.
    """

    def __init__(self, store: SlideStore) -> None:
        self._store = store
        level = store.levels[0]
        self._box = Box(0, 0, level.height_px, level.width_px)
        self._most = 2 * min(level.rows, level.cols) + 8
        self._chunks: OrderedDict[tuple[int, int], Pixels] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, y0: int, y1: int, x0: int, x1: int) -> Pixels:
        t, box = self._store.chunk_px, Box(y0, x0, y1, x1)
        out = np.empty((box.height, box.width, self._store.channels), self._store.dtype)
        for row in range(y0 // t, -(-y1 // t)):
            for col in range(x0 // t, -(-x1 // t)):
                whole = Box(row * t, col * t, (row + 1) * t, (col + 1) * t)
                part = whole.intersect(box)
                from_chunk, to = part.shifted(-whole.y0, -whole.x0), part.shifted(-y0, -x0)
                pixels = self._chunk(row, col, whole.intersect(self._box))
                out[to.y0 : to.y1, to.x0 : to.x1] = pixels[from_chunk.y0 : from_chunk.y1, from_chunk.x0 : from_chunk.x1]
        return out

    def _chunk(self, row: int, col: int, box: Box) -> Pixels:
        with self._lock:
            if (kept := self._chunks.get((row, col))) is not None:
                self._chunks.move_to_end((row, col))
                return kept
        pixels = self._store.read(0, box)
        with self._lock:
            self._chunks[row, col] = pixels
            while len(self._chunks) > self._most:
                self._chunks.popitem(last=False)
        return pixels

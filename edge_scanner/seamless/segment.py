"""A whole slide through a network: OME-Zarr in, label image out."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_scanner.errors import AbortedError, StoreError, UsageError
from edge_scanner.seamless.labels import MOST_CLASSES, LabelWriter
from edge_scanner.seamless.level import LevelReader, nearest_level
from edge_scanner.seamless.onnx_model import OnnxModel
from edge_scanner.seamless.plan import Plan, plan
from edge_scanner.seamless.run import ModelError, run
from edge_scanner.seamless.tissue import find_tissue, open_model
from edge_scanner.store import SlideStore
from edge_scanner.store.output import refuse_existing, refuse_inside

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
    level: int | None = None,
    probabilities: bool = False,
    tissue_only: bool = False,
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
    src, out : Path
    model_path : Path
        `tissue`, where there is no such file, is the network that ships: background, tissue, pen.
    tile_px : int, optional
        The network's own, or 512.
    overlap_px : int, optional
        A quarter of the tile.
    overwrite : bool
    level : int, optional
        Of the slide; the one nearest to the pixel size that the network's file states, or 0.
    probabilities : bool
        Write an image of probabilities with a channel a class, 255 being certain, in place of labels.
    tissue_only : bool
        Skip tiles in which the shipped network sees no tissue; they are labelled 0.
    client : distributed.Client, optional
        Runs the network on its workers.
    progress : callable
        Told the share done.
    cancelled : callable

    Raises
    ------
    UsageError
        `out` exists (with `overwrite`: unless it is an OME-Zarr other than the source), or lies within the source,
        or sizes that cannot be.
    SourceError, ModelError, StoreError
    AbortedError
        `cancelled` returned True.
    """
    began = time.perf_counter()
    refuse_existing(out, src, overwrite=overwrite)
    refuse_inside(out, src)
    source, model = SlideStore.open(src), open_model(model_path)
    if source.channels != model.channels:
        raise ModelError(
            f"The model takes {model.channels} channels; the slide has {source.channels}.", "Use another model."
        )
    number = nearest_level(source, model) if level is None else level
    if not 0 <= number < len(source.levels):
        raise UsageError(f"The slide has no level {number}.", f"Its levels are 0 to {len(source.levels) - 1}.")
    shape = source.levels[number].height_px, source.levels[number].width_px
    sides = tuple(tile_px or side or TILE_PX for side in model.tile)
    shared = [model.overlap_px or side // 4 if overlap_px is None else overlap_px for side in sides]
    laid = plan(shape, sides, shared, mask=find_tissue(source) if tissue_only else None)
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    classes = _classes(model, model.outputs)
    writer = LabelWriter(
        partial, source, classes, by_columns=laid.by_columns, level=number, probabilities=probabilities
    )
    counts = _Counts(laid, writer, model, len(classes), probabilities, progress, cancelled)
    try:
        apply = model if client is None else _remote(client, model)
        run(laid, apply, LevelReader(source, number).read, counts.write, batch=BATCH, prefetch=PREFETCH)
        writer.finish()
        if out.is_dir():
            shutil.rmtree(out)
        partial.rename(out)
    except OSError as error:
        raise StoreError(f"{out} cannot be written ({error.strerror}).", "Check the path and the space.") from error
    finally:
        writer.discard()
    shares = counts.shares
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
    """Return the network as it is called on a cluster: each worker gets it once, and again when it was restarted."""
    there = client.submit(_same, model, pure=False)
    return lambda tiles: client.submit(_apply, there, tiles, pure=False)


def _same(model: OnnxModel) -> OnnxModel:
    """Be a task's result, which a scheduler makes anew when all workers that held it are gone."""
    return model


def _apply(model: OnnxModel, tiles: NDArray[Any]) -> NDArray[Any]:
    return model(tiles)


class _Counts:
    """Turns outputs into labels on their way to the writer."""

    def __init__(
        self,
        laid: Plan,
        writer: LabelWriter,
        model: OnnxModel,
        classes: int,
        probabilities: bool,
        progress: Callable[[float], None],
        cancelled: Callable[[], bool],
    ) -> None:
        self._writer, self._model, self._progress, self._cancelled = writer, model, progress, cancelled
        self._probabilities = probabilities
        self._total = laid.rows.length * laid.cols.length
        self._pixels = np.zeros(classes, np.int64)

    @property
    def shares(self) -> NDArray[np.float64]:
        """Of all pixels, of each class; what was skipped is of the first."""
        pixels = self._pixels.copy()
        pixels[0] += self._total - pixels.sum()
        return pixels / self._total

    def write(self, y0: int, x0: int, values: NDArray[Any]) -> None:
        if self._cancelled():
            raise AbortedError("The segmentation was cancelled.")
        chosen = values[..., 0] > self._model.threshold if values.shape[2] == 1 else values.argmax(axis=2)
        labels = chosen.astype(np.uint8)
        self._pixels += np.bincount(labels.ravel(), minlength=len(self._pixels))
        self._writer.write(y0, x0, self._certainty(values) if self._probabilities else labels)
        self._progress(float(self._pixels.sum()) / self._total)

    def _certainty(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        shares = self._model.probabilities(values)
        if shares.shape[2] == 1:  # of two classes, one is told
            shares = np.concatenate([1 - shares, shares], axis=2)
        return (shares * 255).round().astype(np.uint8)

"""The mosaic: placed tiles in, each finished chunk out exactly once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Set
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_scanner.geometry import Box, MosaicFrame
from edge_scanner.mosaic.kernel import Blend, gather
from edge_scanner.mosaic.ledger import Ledger
from edge_scanner.mosaic.source import Source, place
from edge_scanner.plan import ScanPlan
from edge_scanner.tile import Chunk, Pixels, PlacedTile, Verdict


class FrameSource(Protocol):
    """Where the pixels of accepted tiles wait (the spool)."""

    def crop(self, index: int, box: Box) -> Pixels:
        """Return the pixels (y, x, c) of a box of a tile."""
        ...

    def drop(self, index: int) -> None:
        """Forget a tile whose chunks are all out."""
        ...


class Mosaic:
    """Gathers each chunk once every target that could touch it is placed or gone.

    Never writes. Bound: the places of the tiles that unfinished chunks need; pixels stay with the frame source.

    Parameters
    ----------
    plan : ScanPlan
    frame : MosaicFrame
    frames : FrameSource
        Told to drop a tile when its last chunk is out.
    margin_px : int
        How far a tile may lie from its nominal place; what lies beyond, across the scan line, is not used.
    channels : int
    dtype : dtype
    fill : int
    feather_px : int
    cubic : bool
    blend : str
    chunk_px : int
    stored : set of (int, int, int)
        (level, row, col) of chunks that are in the store already; they are not gathered again.
    """

    def __init__(
        self,
        plan: ScanPlan,
        frame: MosaicFrame,
        frames: FrameSource,
        *,
        margin_px: int,
        channels: int,
        dtype: np.dtype[Any],
        fill: int,
        feather_px: int,
        cubic: bool = True,
        blend: Blend = "linear",
        chunk_px: int = 512,
        stored: Set[tuple[int, int, int]] = frozenset(),
    ) -> None:
        self._tile = (plan.tile_height_px, plan.tile_width_px)
        self._frames = frames
        self._canvas = frame.canvas
        self._channels, self._dtype, self._fill = channels, dtype, fill
        self._feather, self._cubic, self._blend, self._chunk_px = feather_px, cubic, blend, chunk_px
        self._reach = reach_of(plan, frame, margin_px)
        self._ledger = Ledger(self._reach, self._canvas, chunk_px)
        self._touching: dict[tuple[int, int], list[int]] = {}
        for index in self._reach:
            for chunk in self._ledger.chunks_of(index):
                self._touching.setdefault(chunk, []).append(index)
        self._sources: dict[int, Source] = {}
        self._covered_px = 0
        self._started = False
        self._stored = stored

    @property
    def complete(self) -> bool:
        """Whether every target has settled, and so every chunk is out."""
        return self._ledger.complete

    @property
    def coverage(self) -> float:
        """Share of the canvas that a tile covers, over the chunks that are out."""
        return self._covered_px / (self._canvas.height * self._canvas.width)

    def is_stored(self, index: int) -> bool:
        """Tell whether every chunk that a target can touch is in the store, so that its pixels are not needed."""
        return all((0, row, col) in self._stored for row, col in self._ledger.chunks_of(index))

    def add(self, *line: PlacedTile) -> Iterator[Chunk]:
        """Take the places of tiles, those of a scan line together, and yield the chunks that are finished by them.

        Raises
        ------
        KeyError
            When the target is unknown or was added before.
        """
        if not self._started:
            self._started = True
            for row, col in self._ledger.untouched():
                yield Chunk(0, row, col, None)
        for placed in line:
            if placed.verdict is not Verdict.REJECTED:
                source = self._sources[placed.index] = self._source(placed)
                for chunk in self._ledger.extend(placed.index, source.usable):
                    self._touching[chunk].append(placed.index)
        for placed in line:
            for row, col in self._ledger.settle(placed.index):
                yield self._chunk(row, col)

    def _source(self, placed: PlacedTile) -> Source:
        box, shift = place(placed.y_px, placed.x_px, *self._tile, cubic=self._cubic)
        usable = box.intersect(along_line(self._reach[placed.index], self._canvas))
        index, doubt = placed.index, doubt_px(placed.verdict, placed.residual_px)
        crop = partial(self._frames.crop, index)
        return Source(index, box, usable, shift, crop, residual_px=doubt, gain=placed.gain)

    def _chunk(self, row: int, col: int) -> Chunk:
        t = self._chunk_px
        block = Box(row * t, col * t, (row + 1) * t, (col + 1) * t).intersect(self._canvas)
        indices = self._touching.pop((row, col))
        sources = [self._sources[i] for i in indices if i in self._sources]
        stored = (0, row, col) in self._stored
        pixels = None
        if not stored:
            pixels = gather(
                block, sources, channels=self._channels, dtype=self._dtype, fill=self._fill, feather=self._feather,
                blend=self._blend,
            )  # fmt: skip
        self._covered_px += covered_px(block, [s.usable for s in sources])
        for index in self._ledger.done(indices):
            if self._sources.pop(index, None) is not None:
                self._frames.drop(index)
        return Chunk(0, row, col, pixels, stored)


def doubt_px(verdict: Verdict, residual_px: float | None) -> float:
    """Return how far a tile may be from agreeing with its neighbours; glass shows nothing that could be doubled."""
    if verdict is Verdict.BLANK:
        return 0.0
    return math.inf if residual_px is None else residual_px


def margin_px(stage_error_um: float, pixel_size_um: float, *, registration: bool) -> int:
    """Return how far a tile may lie from its nominal place, px: what no stage error explains is not used."""
    return math.ceil(4 * stage_error_um / pixel_size_um) + 8 if registration else 1


def reach_of(plan: ScanPlan, frame: MosaicFrame, margin_px: int) -> dict[int, Box]:
    """Return the mosaic pixels that each target can possibly cover."""
    tile = (plan.tile_height_px, plan.tile_width_px)
    reach = {}
    for target in plan:
        y, x = frame.tile_corner(target.x_um, target.y_um, *tile)
        reach[target.index] = place(y, x, *tile, cubic=False)[0].grown(margin_px)
    return reach


def along_line(reach: Box, canvas: Box) -> Box:
    """Return where a tile may be used: all along its scan line, which is placed as a whole, for lost steps' sake."""
    return Box(reach.y0, canvas.x0, reach.y1, canvas.x1)


def covered_px(block: Box, boxes: list[Box]) -> int:
    """Return how many pixels of a block lie in at least one box."""
    if any(b.intersect(block) == block for b in boxes):
        return block.height * block.width
    return int(covered(block, boxes).sum())


def covered(block: Box, boxes: list[Box]) -> NDArray[np.bool_]:
    """Return, for each pixel (y, x) of a block, whether it lies in at least one box."""
    mask = np.zeros((block.height, block.width), bool)
    for p in (b.intersect(block) for b in boxes):
        if not p.empty:
            mask[p.y0 - block.y0 : p.y1 - block.y0, p.x0 - block.x0 : p.x1 - block.x0] = True
    return mask

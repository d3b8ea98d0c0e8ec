"""One level of a slide, read by boxes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from math import log

import numpy as np

from edge_scanner.geometry import Box
from edge_scanner.seamless.onnx_model import OnnxModel
from edge_scanner.store import SlideStore
from edge_scanner.tile import Pixels


def nearest_level(store: SlideStore, model: OnnxModel) -> int:
    """Return the level whose pixels are nearest to those that the network was trained on; 0 where it does not say."""
    wanted_um = model.pixel_size_um
    if wanted_um is None:
        return 0
    off = [abs(log(store.metadata.pixel_size_um * level.downsample / wanted_um)) for level in store.levels]
    return off.index(min(off))


class LevelReader:
    """Boxes of a level, each chunk decoded about once; any thread.

    Memory bound: two lines of chunks along the shorter side.

    Parameters
    ----------
    store : SlideStore
    number : int
        Of the level.
    """

    def __init__(self, store: SlideStore, number: int) -> None:
        self._store, self._number = store, number
        level = store.levels[number]
        self._box = Box(0, 0, level.height_px, level.width_px)
        self._most = 2 * min(level.rows, level.cols) + 8
        self._chunks: OrderedDict[tuple[int, int], Pixels] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, y0: int, y1: int, x0: int, x1: int) -> Pixels:
        """Return the pixels of a box, (y, x, c)."""
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
        pixels = self._store.read(self._number, box)
        with self._lock:
            self._chunks[row, col] = pixels
            while len(self._chunks) > self._most:
                self._chunks.popitem(last=False)
        return pixels

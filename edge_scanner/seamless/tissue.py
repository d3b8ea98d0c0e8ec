"""The network that ships: background, tissue, pen, at 8 um a pixel; models/tissue/README.md is its card."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_scanner.errors import SourceError, UsageError
from edge_scanner.seamless.level import LevelReader, nearest_level
from edge_scanner.seamless.onnx_model import OnnxModel
from edge_scanner.seamless.plan import plan
from edge_scanner.seamless.run import run
from edge_scanner.store import SlideStore

NAME = "tissue"
BACKGROUND, TISSUE, PEN = range(3)
_FILE = Path(__file__).parent / "data" / "tissue.onnx"
_TILE_PX = 256


def open_model(path: Path) -> OnnxModel:
    """Open a network by its file, or the one that ships by the name `tissue`.

    Raises
    ------
    SourceError
        There is none, or the shipped file is not the one that its card tells of.
    """
    if path.is_file() or str(path) != NAME:  # a folder of that name is none
        return OnnxModel(path)
    model = OnnxModel(_FILE)
    if hashlib.sha256(_FILE.read_bytes()).hexdigest() != json.loads(_FILE.with_suffix(".json").read_text())["sha256"]:
        raise SourceError("The tissue network is damaged.", "Install edge-scanner again.")
    return model


def find_tissue(source: SlideStore) -> NDArray[np.bool_]:
    """Return where a slide has tissue, (y, x), at its level nearest to 8 um a pixel; pen counts as none.

    Raises
    ------
    UsageError
        The slide is not 8-bit RGB.
    """
    if source.channels != 3 or source.dtype != np.uint8:
        raise UsageError("Tissue can be found in 8-bit RGB slides only.", "Leave out --tissue-only.")
    model = open_model(Path(NAME))
    number = nearest_level(source, model)
    level = source.levels[number]
    found = np.zeros((level.height_px, level.width_px), bool)

    def write(y0: int, x0: int, block: NDArray[Any]) -> None:
        found[y0 : y0 + block.shape[0], x0 : x0 + block.shape[1]] = block.argmax(axis=2) == TISSUE

    laid = plan(found.shape, _TILE_PX, model.overlap_px or _TILE_PX // 4)
    run(laid, model, LevelReader(source, number).read, write)
    return found

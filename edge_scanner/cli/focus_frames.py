"""Labelled frames from the simulator: any slide seen by simulated optics, at known distances from focus."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from edge_scanner.config import Config
from edge_scanner.focus.labelled import LabelledFrame
from edge_scanner.focus.score import texture
from edge_scanner.geometry import Position
from edge_scanner.sim.optics import Objective
from edge_scanner.sim.specimen import open_specimen
from edge_scanner.sim.surface import FocalSurface

BLANK_TEXTURE = 16.0
"""A place whose sharp picture has less coarse contrast than this, in units of the noise, is blank or nearly so: too
little is left of it 8 um from focus. Found on 800 frames of two slides trained on (`models/README.md`)."""


def simulated_frames(config: Config, slide: str, count: int, range_um: float, seed: int) -> Iterator[LabelledFrame]:
    """Yield frames of random places of a slide, evenly spread over plus and minus `range_um`.

    Parameters
    ----------
    config : Config
        `camera`, `optics` and `sim` decide how it is seen; the focal surface is off.
    slide : str
        An image or slide; empty: synthetic tissue.
    count : int
    range_um : float
    seed : int

    Raises
    ------
    SourceError
        When the slide cannot be read.
    """
    sim = config.sim.model_copy(update={"slide": slide, "surface": False})
    config = config.model_copy(update={"sim": sim})
    pixel_um = config.optics.pixel_size_um
    specimen = open_specimen(sim, pixel_um)
    objective = Objective(config, specimen, FocalSurface(sim, config.stage.limits))
    sharp = Objective(_unblurred(config), specimen, FocalSurface(sim, config.stage.limits))
    rng = np.random.default_rng([seed, 0xF0C5])
    name = Path(slide).stem or f"synthetic {sim.seed}"
    for number in range(count):
        z_um = range_um * (2 * (number + rng.random()) / count - 1)
        x_um, y_um = (_place(rng, *sizes) * pixel_um for sizes in (
            (specimen.width_px, config.camera.width_px), (specimen.height_px, config.camera.height_px)))  # fmt: skip
        there = Position(x_um, y_um, z_um)
        blank = texture(sharp.render(there, (seed, number))) < BLANK_TEXTURE
        yield LabelledFrame(name, objective.render(there, (seed, number)), z_um, blank)


def _place(rng: np.random.Generator, whole_px: int, frame_px: int) -> int:
    """Return a centre of the field along one axis, inside the slide where it fits."""
    spare = whole_px - frame_px
    return frame_px // 2 + int(rng.integers(spare + 1)) if spare > 0 else whole_px // 2


def _unblurred(config: Config) -> Config:
    return config.model_copy(update={"sim": config.sim.model_copy(update={"blur": False})})

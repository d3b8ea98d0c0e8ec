"""Learned focus: one frame tells how far and which way, a retake is made only where that is not good enough.

The network judges the most textured patches of a frame and their consensus is the defocus. A frame within half a
depth of field is kept as it is. Otherwise the stage goes where the consensus points, by a bounded step, and the next
frame has to prove it: it must be sharper, or the step is taken back to the other side. So a wrong sign costs a frame
and never the tile.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from edge_scanner.config import Config
from edge_scanner.errors import ConfigError, SourceError
from edge_scanner.focus.calibration import named_focus_calibration
from edge_scanner.focus.classical import COLD_REACH, ClassicalFocus
from edge_scanner.focus.consensus import Consensus, agree
from edge_scanner.focus.method import FocusOutcome, Snap
from edge_scanner.focus.model import BATCH, ModelFile, OnnxFocusModel, Providers
from edge_scanner.focus.samples import camera_side_px, choose, cut, reference_unit, saturated
from edge_scanner.focus.score import sharpness
from edge_scanner.tile import FocusResult, Frame, Pixels

ENOUGH = 0.6
"""A frame is kept when it lies within so many depths of field of focus."""

RETAKES = 4
"""Frames that a tile may cost beyond its first."""

UNSURE_STEP_DEPTHS = 3.0
"""Where the consensus is not sure, the stage goes no further than so many depths of field to see more."""

SEEN_SIGMA = 2.0
"""A defocus is seen when it exceeds so many of its standard deviations, whether or not its side is agreed on."""

SAME_Z_UM = 0.02

MOST_SATURATED = 0.3
"""Share of a patch that may be at full scale; beyond it the colours are cut off that tell the side."""


class Estimator:
    """Tells the defocus of single frames.

    Parameters
    ----------
    config : Config
        `focus` and `optics`; `camera` must be RGB, since it is the colours that tell the side.

    Raises
    ------
    ConfigError
        No network (see `OnnxFocusModel`), a mono camera, or frames too small for one patch.
    SourceError
        A calibration that does not fit.
    """

    def __init__(self, config: Config) -> None:
        self._side_px = camera_side_px(config.optics)
        self._unit = reference_unit(config.optics)
        camera = config.camera
        if camera.channels != 3:
            raise ConfigError("Learned focus needs an RGB camera.", 'Set focus.mode = "classical".')
        if min(camera.height_px, camera.width_px) < self._side_px:
            raise ConfigError(
                f"Learned focus needs frames of at least {self._side_px} x {self._side_px} px with this objective.",
                'Set focus.mode = "classical".',
            )
        self.model = OnnxFocusModel(config)
        self._stretch = self.model.file.stretch(config.optics)
        self._calibration = named_focus_calibration(config, self.model.file)

    def judge(self, pixels: Pixels) -> Consensus | None:
        """Return the consensus on a frame, in micrometres of this objective; None where there is nothing to judge.

        Parameters
        ----------
        pixels : ndarray, (y, x, 3), uint8 or uint16

        Raises
        ------
        SourceError
            When it is anything else.
        """
        if (calibration := self._calibration) is None:
            return self.read(pixels)
        seen = self.read(pixels, swapped=calibration.swapped)
        return None if seen is None else calibration.line.applied(seen)

    def read(self, pixels: Pixels, *, swapped: bool = False) -> Consensus | None:
        """Return the same without the instrument's calibration, with red and blue exchanged where `swapped`."""
        if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype not in (np.uint8, np.uint16):
            raise SourceError(
                f"Learned focus cannot judge a frame of {pixels.shape} {pixels.dtype}.",
                "It takes RGB of 8 or 16 bits a channel.",
            )
        corners = choose(pixels, self._side_px, BATCH)
        if not corners:
            return None
        patches = cut(pixels, corners, self._side_px)
        patches = patches[saturated(patches) <= MOST_SATURATED]
        dz_um, sigma_um = self.model(np.ascontiguousarray(patches[:, ::-1]) if swapped else patches)
        found = agree(dz_um, sigma_um, self.model.file.sigma_scale)
        return None if found is None else found.scaled(1 / self._unit).stretched(self._stretch)


@dataclass(frozen=True, slots=True)
class _Look:
    """One frame of a tile, where it was taken, and what was seen."""

    z_um: float
    frame: Frame
    sharpness: float
    seen: Consensus | None

    @property
    def sure(self) -> bool:
        return self.seen is not None and self.seen.sure


class ModelFocus:
    """The learned method; see the module.

    Where nothing is known yet, neither by the surface nor by the network, the classical climb finds the way.

    Parameters
    ----------
    config : Config

    Raises
    ------
    ConfigError
        See `Estimator`; an objective that the model's card does not name.
    """

    def __init__(self, config: Config) -> None:
        ModelFile.open(config.focus.model).require(config.optics)
        self._estimator = Estimator(config)
        self._climb = ClassicalFocus(config)
        self._range_um = config.focus.range_um
        self._limits = config.stage.limits
        self._depth_um = config.optics.depth_of_field_um
        self._frames = min(1 + RETAKES, config.focus.max_frames)

    @property
    def providers(self) -> Providers:
        """What the network was asked to run on, and what it runs on."""
        return self._estimator.model.providers

    def run(self, z_start_um: float, snap: Snap, surface_known: bool, first: Frame | None = None) -> FocusOutcome:
        """Focus a tile; see `Focus.run`.

        No frame is asked for further than `focus.range_um` from `z_start_um` (three times that while the
        surface is not known) nor outside the stage's limits. A frame
        that the network refuses is kept at the predicted z where the surface is known, marked as not measured.
        """
        frame = first if first is not None else snap(z_start_um)
        looks = [self._look(z_start_um, frame)]
        if not (looks[0].sure or surface_known):
            return self._climbed(z_start_um, snap, frame)
        reach_um = self._range_um * (1.0 if surface_known else COLD_REACH)
        while self._worth_another(looks):
            z_um = self._next(z_start_um, reach_um, looks)
            if z_um is None:
                break
            looks.append(self._look(z_um, snap(z_um)))
        return self._outcome(looks, self._best(looks))

    def _look(self, z_um: float, frame: Frame) -> _Look:
        return _Look(z_um, frame, sharpness(frame.pixels), self._estimator.judge(frame.pixels))

    def _good(self, look: _Look) -> bool:
        return look.seen is not None and look.sure and abs(look.seen.dz_um) <= ENOUGH * self._depth_um

    def _worth_another(self, looks: list[_Look]) -> bool:
        """Tell whether another frame may better the tile.

        A sure look that is not good is worth it. One that is not sure is worth it once, where its patches see a
        defocus but not its side; where they see next to nothing, the prediction is better than any step.
        """
        last = looks[-1]
        if last.seen is None or self._good(last) or len(looks) >= self._frames:
            return False
        if last.sure:
            return True
        tried = len(looks) > 1 and not looks[-2].sure
        return not tried and abs(last.seen.dz_um) > max(self._depth_um, SEEN_SIGMA * last.seen.sigma_um)

    def _next(self, start_um: float, reach_um: float, looks: list[_Look]) -> float | None:
        """Return where to look next; None when there is no new place worth it."""
        last, before = looks[-1], looks[-2] if len(looks) > 1 else None
        if before is not None and last.sharpness < before.sharpness and not last.sure:
            goal = 2 * before.z_um - last.z_um
        else:
            most = math.inf if last.sure else UNSURE_STEP_DEPTHS * self._depth_um
            goal = last.z_um - min(max(last.seen.dz_um if last.seen else 0.0, -most), most)
        low = max(start_um - reach_um, self._limits.z_min_um)
        high = min(start_um + reach_um, self._limits.z_max_um)
        goal = min(max(goal, low), high)
        return None if any(abs(goal - look.z_um) < SAME_Z_UM for look in looks) else goal

    def _best(self, looks: list[_Look]) -> _Look:
        """Return the look to keep: the last one if it is good, else the sharpest."""
        return looks[-1] if self._good(looks[-1]) else max(looks, key=lambda look: look.sharpness)

    def _outcome(self, looks: list[_Look], kept: _Look) -> FocusOutcome:
        dz_um = kept.seen.dz_um if kept.seen else None
        sigma_um = kept.seen.sigma_um if kept.seen else None
        in_focus = kept.sure and dz_um is not None and abs(dz_um) <= self._depth_um
        result = FocusResult(
            kept.sharpness, kept.z_um, len(looks), in_focus, measured=kept.sure, dz_um=dz_um, sigma_um=sigma_um
        )
        return FocusOutcome(kept.frame, result)

    def _climbed(self, z_start_um: float, snap: Snap, first: Frame) -> FocusOutcome:
        return self._climb.run(z_start_um, snap, False, first)

"""Classical focus: a short, bounded climb of the sharpness curve that ends on a parabola's peak.

The reciprocal of the sharpness grows about with the square of the defocus, near the focus and far down the flanks, so
a parabola through three reciprocals finds the peak from around it and foretells it from one flank. With a good
prediction a tile costs three or four frames.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from edge_scanner.config import Config
from edge_scanner.focus.method import FocusOutcome, Snap
from edge_scanner.focus.score import sharpness, sharpness_error
from edge_scanner.tile import FocusResult, Frame

COLD_REACH = 3.0
"""Without a measured prediction the window is so many times as wide: a tilted slide is far off at its other end."""

GROWTH = 0.8
"""A step of the climb is as long as this share of the way that was searched already."""

LONGEST_STEP = 4.0
"""No step is longer than this many first steps, so that the peak cannot be jumped over unseen."""

DISTINCT = 0.1
"""Share of the best score by which the curve must fall on both sides of a peak."""

SIGNIFICANT = 8.0
"""The same in standard deviations of the score's noise."""

FLAT_DEPTHS = 7.0
"""A curve that does not fall within so many depths of field has no peak worth looking for."""

SAME_Z_UM = 0.02
"""Two z closer than this are the same place."""


@dataclass(slots=True)
class _Curve:
    """The scores of one climb by z, and the sharpest frame.

    Parameters
    ----------
    snap : callable
    low_um, high_um : float
        Window of z; nothing is asked for outside.
    max_frames : int
    error : float
        Standard deviation of a score.
    """

    snap: Snap
    low_um: float
    high_um: float
    max_frames: int
    error: float
    scores: dict[float, float] = field(default_factory=dict)
    best_um: float = 0.0
    best: Frame | None = None

    def judge(self, z_um: float, frame: Frame) -> None:
        """Score a frame; keep it when it is the sharpest."""
        score = sharpness(frame.pixels)
        if self.best is None or score > self.scores[self.best_um]:
            self.best_um, self.best = z_um, frame
        self.scores[z_um] = score

    def take(self, z_um: float) -> bool:
        """Take and judge a frame at z, moved into the window; False when there is none left to take."""
        z_um = min(max(z_um, self.low_um), self.high_um)
        if len(self.scores) >= self.max_frames or any(abs(z_um - z) < SAME_Z_UM for z in self.scores):
            return False
        self.judge(z_um, self.snap(z_um))
        return True

    def flanks(self) -> tuple[float | None, float | None]:
        """Return the nearest z below and above the best where the score is distinctly lower."""
        best = self.scores[self.best_um]
        enough = best - max(DISTINCT * best, SIGNIFICANT * self.error)
        lower = [z for z, score in self.scores.items() if score < enough]
        below = max((z for z in lower if z < self.best_um), default=None)
        return below, min((z for z in lower if z > self.best_um), default=None)

    def peak(self, z_um: tuple[float, float, float]) -> float | None:
        """Return the vertex of the parabola through the reciprocals of three scores; None when it has no minimum."""
        floor = max(self.error, 1e-12)
        a, b, c = z_um
        fa, fb, fc = (1 / max(self.scores[z], floor) for z in z_um)
        left, right = (fb - fa) / (b - a), (fc - fb) / (c - b)
        bend = (right - left) / (c - a)
        return (a + b) / 2 - left / (2 * bend) if bend > 0 else None

    def foretold(self) -> float | None:
        """Return the peak that the best and the two frames nearest to it foretell; None when they do not."""
        if len(self.scores) < 3:
            return None
        a, b, c = sorted(sorted(self.scores, key=lambda z: abs(z - self.best_um))[:3])
        return self.peak((a, b, c))


class ClassicalFocus:
    """Hill climb within a hard window; see the module.

    Parameters
    ----------
    config : Config
        `focus` (range, step, budget), `optics` (depth of field) and `stage` (limits of z).
    """

    def __init__(self, config: Config) -> None:
        self._range_um = config.focus.range_um
        self._step_um = max(config.focus.step_um, config.optics.depth_of_field_um)
        self._max_frames = config.focus.max_frames
        self._limits = config.stage.limits
        self._tolerance_um = config.optics.depth_of_field_um / 3
        self._flat_um = FLAT_DEPTHS * config.optics.depth_of_field_um

    def run(self, z_start_um: float, snap: Snap, surface_known: bool, first: Frame | None = None) -> FocusOutcome:
        """Climb to the sharpest frame; see `Focus.run`.

        No frame is asked for further than `focus.range_um` from `z_start_um` (three times that while the surface is
        not known) nor outside the stage's limits. A flat curve is no measurement: the frame at the predicted z is
        kept then, marked out of focus. A curve that still rises at the window's end is none either: its sharpest
        frame is kept, marked likewise.
        """
        reach, step = (1.0, 1.0) if surface_known else (COLD_REACH, 2.0)
        low = max(z_start_um - reach * self._range_um, self._limits.z_min_um)
        high = min(z_start_um + reach * self._range_um, self._limits.z_max_um)
        start = min(max(z_start_um, low), high)
        frame = first if first is not None else snap(start)
        curve = _Curve(snap, low, high, self._max_frames, sharpness_error(frame.pixels))
        curve.judge(start, frame)
        peak = self._climb(curve, step * self._step_um)
        spent = len(curve.scores)
        if peak is None and curve.flanks() == (None, None):
            return FocusOutcome(frame, FocusResult(curve.scores[start], start, spent, in_focus=False, measured=False))
        best, z_um, score = curve.best or frame, curve.best_um, curve.scores[curve.best_um]
        if peak is None:
            return FocusOutcome(best, FocusResult(score, z_um, spent, in_focus=False, measured=False))
        dz_um = z_um - peak
        in_focus = abs(dz_um) <= 1.5 * self._tolerance_um
        return FocusOutcome(best, FocusResult(score, z_um, spent, in_focus, measured=True, dz_um=dz_um))

    def _climb(self, curve: _Curve, step_um: float) -> float | None:
        """Take frames until the peak is known; return it, or None when the window holds no distinct one."""
        while True:
            below, above = curve.flanks()
            if below is None or above is None:
                flat = below is above and max(curve.scores) - min(curve.scores) > self._flat_um
                if flat or not curve.take(self._onward(curve, step_um, below, above)):
                    return None
                continue
            peak = curve.peak((below, curve.best_um, above))
            if peak is None:
                return curve.best_um
            more = self._closer(curve, below, above, peak)
            if more is None or not curve.take(more):
                return peak

    def _onward(self, curve: _Curve, step_um: float, below: float | None, above: float | None) -> float:
        """Return where to look next for a flank that is still missing."""
        top, bottom = max(curve.scores), min(curve.scores)
        up = above is None and (below is not None or top - curve.best_um <= curve.best_um - bottom)
        edge, side = (top, 1.0) if up else (bottom, -1.0)
        foretold = curve.foretold()
        reach = GROWTH * (top - bottom) if foretold is None else side * (foretold - edge)
        return edge + side * min(max(reach, step_um), LONGEST_STEP * self._step_um)

    def _closer(self, curve: _Curve, below: float, above: float, peak: float) -> float | None:
        """Return where one more frame would sharpen the peak; None when it is known well enough."""
        if abs(peak - curve.best_um) > self._tolerance_um:
            return peak
        for flank, side in ((above, 1.0), (below, -1.0)):
            if abs(flank - curve.best_um) > 2.5 * self._step_um:
                return curve.best_um + side * self._step_um
        return None

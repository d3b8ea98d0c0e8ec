"""Acquisition: every target is moved to, photographed, judged and focused; out comes one tile a target.

Results do not depend on timing: the z of target n is predicted from results of targets up to n - 2 only, and every
place is approached from the same side, so that backlash is the same whether a scan was interrupted or not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from dataclasses import replace
from typing import Protocol

import numpy as np

from edge_scanner.config import Config
from edge_scanner.devices.rig import Rig
from edge_scanner.drift import Drift
from edge_scanner.errors import AbortedError, DeviceError
from edge_scanner.focus import FocusOutcome, make_focus
from edge_scanner.focus.score import sharpness, texture
from edge_scanner.focus.surface import FocusSurface
from edge_scanner.geometry import Position
from edge_scanner.lamp import Lamp
from edge_scanner.plan import Target
from edge_scanner.tile import FocusResult, Frame, Pixels, Tile, Verdict

LEAD_IN_UM = 50.0
"""How far before the first target of a row the approach begins in x and y; more than any backlash."""

LEAD_IN_Z_UM = 15.0
"""How far below a z the approach to it begins when the stage is above."""

LAG = 2
"""The z of target n uses results of targets up to n - LAG, so that moving need not wait for the last one's focus."""


class Shading(Protocol):
    """Flat-field correction."""

    def apply(self, pixels: Pixels) -> Pixels:
        """Return the corrected frame, same shape and dtype."""
        ...


class NoShading:
    """Leaves frames as the camera gave them."""

    def apply(self, pixels: Pixels) -> Pixels:
        """Return the frame itself."""
        return pixels


class Acquirer:
    """Drives the rig through targets; one thread.

    Parameters
    ----------
    rig : Rig
        Open and homed.
    config : Config
    wait_if_paused : callable
        Called between targets; returns when the scan may go on.
    aborted : callable
        Asked before every move and every frame; True ends the run with `AbortedError`.
    focus_lost : callable
        Told the number of tiles when `focus.max_failed` in a row could not be focused, to pause before the next one.
    light_lost : callable, optional
        Called when the light went out, to pause until it is back; a `DeviceError` without.
    bright : (Target, float), optional
        A place and its z that are known to be bright, see `Lamp`.
    backlash_um : float
        Measured backlash in x, see `Mover`.
    shading : Shading, optional
        Flat-field correction of the pixels that are handed on.
    drift : Drift, optional
        Instead, one that follows the light; blank tiles tell it.
    """

    def __init__(
        self,
        rig: Rig,
        config: Config,
        *,
        wait_if_paused: Callable[[], None] = lambda: None,
        focus_lost: Callable[[int], None] = lambda _: None,
        light_lost: Callable[[], None] | None = None,
        aborted: Callable[[], bool] = lambda: False,
        shading: Shading | None = None,
        drift: Drift | None = None,
        bright: tuple[Target, float] | None = None,
        backlash_um: float = 0.0,
    ) -> None:
        self._rig = rig
        self._light_lost = light_lost or _no_light
        self._config = config
        self._wait_if_paused, self._focus_lost = wait_if_paused, focus_lost
        self._shading, self._drift = shading or NoShading(), drift
        self._focus = make_focus(config)
        self._mover = Mover(rig, config.stage.settle_ms, aborted, backlash_um=backlash_um)
        self._lamp = Lamp(
            rig, brightfield=config.illumination.brightfield, look=self._glance, lost=self._miss_light, bright=bright
        )
        self._surface = FocusSurface()
        self._measured: deque[tuple[int, Position]] = deque()

    def restore(self, results: Iterable[tuple[Target, FocusResult]]) -> None:
        """Take over what an earlier run measured, in scan order; `run` then goes on as that run would have."""
        for target, result in results:
            self._remember(target, result)

    def learn(self, tile: Tile) -> None:
        """Take over what a tile, of this run or an earlier one, told of the light."""
        if self._drift:
            self._drift.learn(tile)

    def run(self, targets: Iterable[Target]) -> Generator[Tile, None, None]:
        """Yield one tile for every target, in their order; the light is on meanwhile and off afterwards.

        Whoever does not take all of them closes it: that puts the light off, and raises where it cannot be.

        Raises
        ------
        DeviceError
            When the stage fails, or `scan.max_rejected` targets in a row had no frame.
        AbortedError
            When `aborted` said so.
        """
        rejected = unfocused = 0
        self._mover.forget()
        try:
            self._lamp.on()
            for target in targets:
                self._wait_if_paused()
                if self._lamp.is_to_be_told():
                    self._mover.check_abort()
                    self._lamp.on()
                tile = self._acquire(target)
                rejected = rejected + 1 if tile.verdict is Verdict.REJECTED else 0
                unfocused = self._unfocused(tile, unfocused)
                yield tile
                if unfocused >= self._config.focus.max_failed:
                    self._focus_lost(unfocused)
                    unfocused = 0
                if rejected >= self._config.scan.max_rejected:
                    raise DeviceError(
                        f"{rejected} targets in a row had no usable frame; the last one's reason: {tile.reason}",
                        "Check the camera and its cable, then resume the scan.",
                    )
        finally:
            self._lamp.off()

    def _unfocused(self, tile: Tile, before: int) -> int:
        """Return how many tiles with something to see could not be focused in a row; the others do not count."""
        if not self._config.focusable or tile.verdict is not Verdict.ACCEPTED or tile.focus is None:
            return before
        return 0 if tile.focus.in_focus else before + 1

    def look(self, target: Target, z_um: float) -> Pixels:
        """Return one frame (y, x, c) of a target at a z, outside of any run: to compare with an earlier one.

        Raises
        ------
        DeviceError
            When the stage or the camera fails.
        """
        try:
            self._lamp.on()
            return self._shading.apply(self._glance(target, z_um))
        finally:
            self._lamp.off()

    def _glance(self, target: Target, z_um: float) -> Pixels:
        return _Visit(self._mover, target, self._config.scan.attempts).snap(z_um).pixels

    def _miss_light(self) -> None:
        self._light_lost()
        self._wait_if_paused()

    def _acquire(self, target: Target) -> Tile:
        known, z_um = self._predict(target)
        visit = _Visit(self._mover, target, self._config.scan.attempts)
        try:
            first = visit.snap(z_um)
            if not self._lamp.was_on(first.pixels, target, z_um):
                first = visit.snap(z_um)
            outcome, verdict = self._judge(first, visit, z_um, known)
        except _FrameError as error:
            return visit.rejected(z_um, error.message)
        shading = self._drift.correction(target.row) or NoShading() if self._drift else self._shading
        tile = visit.tile(outcome, verdict, shading)
        if self._drift and verdict is Verdict.BLANK:
            tile = replace(tile, glass=self._drift.read(outcome.frame.pixels))
            self.learn(tile)
        self._remember(target, tile.focus)
        return tile

    def _judge(self, first: Frame, visit: _Visit, z_um: float, known: bool) -> tuple[FocusOutcome, Verdict]:
        """Tell empty glass, which keeps the predicted z, from what can be focused, and focus it."""
        if texture(first.pixels) < self._config.focus.blank_texture:
            result = FocusResult(sharpness(first.pixels), z_um, frames=1, in_focus=False, measured=False)
            return FocusOutcome(first, result), Verdict.BLANK
        return self._focus.run(z_um, visit.snap, known, first), Verdict.ACCEPTED

    def _predict(self, target: Target) -> tuple[bool, float]:
        """Return whether the focus surface is known, and the z to start from, within the limits."""
        while self._measured and self._measured[0][0] <= target.index - LAG:
            point = self._measured.popleft()[1]
            self._surface.add(point.x_um, point.y_um, point.z_um)
        z_um = self._surface.predict(target.x_um, target.y_um)
        limits = self._rig.stage.limits
        known = z_um is not None and bool(np.isfinite(z_um))
        start = z_um if z_um is not None and known else self._config.focus.z_start_um
        return known, min(max(start, limits.z_min_um), limits.z_max_um)

    def _remember(self, target: Target, result: FocusResult | None) -> None:
        if result is not None and result.measured:
            best_um = result.z_um - (result.dz_um or 0.0)
            self._measured.append((target.index, Position(target.x_um, target.y_um, best_um)))


class Mover:
    """The stage as acquisition moves it, and the frames it takes there.

    Parameters
    ----------
    rig : Rig
        Open and homed.
    settle_ms : float
    aborted : callable
        Asked before every move and every frame.
    backlash_um : float
        How much further in x an approach from high values ends: rows that are scanned that way aim so much short.
    """

    def __init__(self, rig: Rig, settle_ms: float, aborted: Callable[[], bool], *, backlash_um: float = 0.0) -> None:
        self.rig = rig
        self._backlash_um = backlash_um
        self._settle_ms = settle_ms
        self._aborted = aborted
        self._target: Target | None = None
        self._at: Position | None = None
        self._reached: Position | None = None
        self._still_since_s = 0.0
        self._frame_id = -1

    def forget(self) -> None:
        """Take nothing for granted about where the stage stands and where it came from."""
        self._target = self._at = self._reached = None

    def go(self, target: Target, z_um: float, timings_ms: dict[str, float]) -> Position:
        """Bring the target under the objective, from the approach side of its row and from below; wait until still."""
        goal = self._goal(target, z_um)
        if goal == self._at and self._reached is not None:
            return self._reached
        started_s = self.rig.clock.now_s()
        lead_in = self._lead_in(target, goal)
        if lead_in is not None:
            self._move(lead_in)
        self._reached = self._move(goal)
        self._target, self._at = target, goal
        moved_s = self.rig.clock.now_s()
        self.rig.clock.sleep_s(self._settle_ms / 1000)
        self._still_since_s = self.rig.clock.now_s()
        _add(timings_ms, "move", moved_s - started_s)
        _add(timings_ms, "settle", self._still_since_s - moved_s)
        return self._reached

    def _goal(self, target: Target, z_um: float) -> Position:
        limits, short_um = self.rig.stage.limits, self._backlash_um * (target.row % 2)
        x_um = min(max(target.x_um - short_um, limits.x_min_um), limits.x_max_um) if short_um else target.x_um
        return Position(x_um, target.y_um, z_um)

    def expose(self, timings_ms: dict[str, float]) -> Frame:
        """Take a frame where the stage stands.

        Raises
        ------
        DeviceError
            When the camera fails, or the frame is not a new one of the promised kind, begun after all was still.
        """
        self.check_abort()
        started_s = self.rig.clock.now_s()
        try:
            frame = self.rig.camera.snap()
        finally:
            _add(timings_ms, "expose", self.rig.clock.now_s() - started_s)
        self._check(frame)
        self._frame_id = frame.frame_id
        return frame

    def _check(self, frame: Frame) -> None:
        promised = self.rig.camera.pixel_format
        shape = (promised.height_px, promised.width_px, promised.channels)
        dtype = np.uint8 if promised.bits == 8 else np.uint16
        if frame.pixels.shape != shape or frame.pixels.dtype != dtype:
            raise DeviceError(
                f"The camera gave a frame of {frame.pixels.shape} {frame.pixels.dtype} instead of {shape} "
                f"{np.dtype(dtype)}.",
                "Check the camera's settings.",
            )
        if frame.frame_id <= self._frame_id:
            raise DeviceError(f"The camera gave frame {frame.frame_id} again.", "Check the camera's driver.")
        if not frame.exposure_start_s >= self._still_since_s:
            raise DeviceError(
                f"Frame {frame.frame_id} was exposed before the stage was still.", "Check the camera's trigger."
            )

    def _lead_in(self, target: Target, goal: Position) -> Position | None:
        """Return where to begin the approach; None where going straight comes from the right side anyway."""
        last, at = self._target, self._at
        along = last is not None and at is not None and last.row == target.row and target.index - last.index in (0, 1)
        if along and at is not None and goal.z_um >= at.z_um:
            return None
        x_um, y_um = goal.x_um, goal.y_um
        if not along:
            x_um -= LEAD_IN_UM if target.row % 2 == 0 else -LEAD_IN_UM
            y_um -= LEAD_IN_UM
        limits = self.rig.stage.limits
        return Position(
            min(max(x_um, limits.x_min_um), limits.x_max_um),
            min(max(y_um, limits.y_min_um), limits.y_max_um),
            max(goal.z_um - LEAD_IN_Z_UM, limits.z_min_um),
        )

    def _move(self, goal: Position) -> Position:
        self.check_abort()
        self.forget()
        self.rig.stage.start_move(goal)
        return self.rig.stage.wait()

    def check_abort(self) -> None:
        """Raise `AbortedError` when the work is to end."""
        if self._aborted():
            raise AbortedError("The scan was cancelled.")


class _Visit:
    """One target while it is under the objective: its frames, failures and timings.

    Holds no frames, only where each of them was taken.
    """

    def __init__(self, mover: Mover, target: Target, attempts: int) -> None:
        self._mover = mover
        self._target = target
        self._allowed = attempts
        self._failures = 0
        self._timings_ms: dict[str, float] = {}
        self._began_s = mover.rig.clock.now_s()
        self._reached: dict[int, Position] = {}
        self._truth: dict[int, Position | None] = {}

    def snap(self, z_um: float) -> Frame:
        """Take a frame of the target at a z; what the camera fails to give is tried again, `attempts` times in all.

        Raises
        ------
        DeviceError
            When the stage fails, or the camera once too often (`_FrameError`).
        """
        while True:
            reached = self._mover.go(self._target, z_um, self._timings_ms)
            try:
                frame = self._mover.expose(self._timings_ms)
            except DeviceError as error:
                self._failures += 1
                if self._failures >= self._allowed:
                    raise _FrameError(error.message, error.advice) from error
            else:
                self._reached[frame.frame_id] = reached
                self._truth[frame.frame_id] = self._mover.rig.stage.true_position()
                return frame

    def tile(self, outcome: FocusOutcome, verdict: Verdict, shading: Shading) -> Tile:
        """Return the tile of the frame that was kept."""
        target, frame_id = self._target, outcome.frame.frame_id
        reached = self._reached[frame_id]
        spent_s = self._mover.rig.clock.now_s() - self._began_s
        self._timings_ms["focus"] = max(0.0, spent_s * 1000 - sum(self._timings_ms.values()))
        return Tile(
            target.index,
            target.row,
            target.col,
            Position(target.x_um, target.y_um, reached.z_um),
            reached,
            shading.apply(outcome.frame.pixels),
            replace(outcome.result, z_um=reached.z_um),
            verdict,
            attempts=self._failures + 1,
            timings_ms=self._timings_ms,
            truth=self._truth[frame_id],
        )

    def rejected(self, z_um: float, reason: str) -> Tile:
        """Return the tile of a target whose frame could not be had."""
        target = self._target
        position = Position(target.x_um, target.y_um, z_um)
        return Tile(
            target.index,
            target.row,
            target.col,
            position,
            None,
            None,
            None,
            Verdict.REJECTED,
            attempts=self._failures,
            reason=reason,
            timings_ms=self._timings_ms,
        )


def _add(timings_ms: dict[str, float], stage: str, seconds: float) -> None:
    timings_ms[stage] = timings_ms.get(stage, 0.0) + seconds * 1000


def _no_light() -> None:
    raise DeviceError(
        "The light went out: a place that was bright is dark now.", "Check the lamp, then resume the scan."
    )


class _FrameError(DeviceError):
    """A target's frame could not be had in the allowed number of tries."""

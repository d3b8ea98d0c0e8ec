"""The device contracts as executable checks: for the tests, and for `check --devices` on the rig itself.

The stage checks move the stage by at most half a millimetre in x and y, never in z, besides homing it twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from edge_scanner.devices.camera import Camera
from edge_scanner.devices.clock import Clock
from edge_scanner.devices.illumination import Illumination
from edge_scanner.devices.stage import Stage
from edge_scanner.errors import EmergencyStopError, LimitsError, PositionUnknownError, ScannerError
from edge_scanner.geometry import Position
from edge_scanner.tile import Frame

_REACH_UM = 500.0


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One line of the doctor's table; `detail` says what was wrong."""

    name: str
    ok: bool
    detail: str


Check = Callable[[], str]
"""Returns what is wrong, or nothing."""


def check_stage(stage: Stage, clock: Clock, tolerance_um: float = 5.0) -> list[CheckResult]:
    """Check a closed stage against its contract; it is closed again at the end.

    Parameters
    ----------
    stage : Stage
        Closed. Nothing may be in its way near its home position.
    clock : Clock
        The rig's.
    tolerance_um : float
        How near a move must end.

    Returns
    -------
    list of CheckResult
        In the order of the checks; a device that raises fails the check and the next one is tried.
    """
    checks = _StageChecks(stage, clock, tolerance_um)
    return _run(
        ("closed stage counts as busy", checks.closed_is_busy),
        ("opens and tells its identity", lambda: _identity(stage.open())),
        ("position unknown before homing", checks.unknown),
        ("motion refused before homing", checks.refuses_unhomed),
        ("homing makes the position known", checks.homes),
        ("move beyond the limits refused, nothing moved", checks.refuses_beyond),
        ("NaN refused, nothing moved", checks.refuses_nan),
        ("busy during a move, idle after it", checks.busy_then_idle),
        ("move ends within tolerance", checks.arrives),
        ("stop makes the position unknown", checks.stops),
        ("motion refused after stop", checks.refuses_stopped),
        ("stop is idempotent", checks.stops),
        ("homing recovers from stop", checks.homes),
        ("close is idempotent", lambda: _twice(stage.close)),
    )


def check_camera(camera: Camera, clock: Clock) -> list[CheckResult]:
    """Check a closed camera against its contract; it is closed again at the end. See `check_stage`."""
    checks = _CameraChecks(camera, clock)
    return _run(
        ("opens and tells its identity", lambda: _identity(camera.open())),
        ("frames have the announced shape and type", checks.fits_format),
        ("frame ids strictly increase", checks.ids_increase),
        ("exposure begins after the call", checks.exposes_after_call),
        ("exposure ends before the frame comes", checks.exposes_before_return),
        ("frames are read-only and keep their pixels", checks.keeps_pixels),
        ("close is idempotent", lambda: _twice(camera.close)),
    )


def check_illumination(illumination: Illumination, stage: Stage | None = None) -> list[CheckResult]:
    """Check that a light can be switched, twice the same way too; it is off at the end. See `check_stage`.

    Parameters
    ----------
    illumination : Illumination
    stage : Stage, optional
        Closed. Opened and homed first, for lights that hang on its controller, and closed at the end.
    """
    if stage is None:
        return _check_switching(illumination)
    opened = _run(("stage opens and homes for its light", lambda: _opened(stage)))
    return [*opened, *_check_switching(illumination), *_run(("stage closes", lambda: _twice(stage.close)))]


def _check_switching(illumination: Illumination) -> list[CheckResult]:
    return _run(
        ("switches off, twice too", lambda: _twice(illumination.off)),
        ("switches on, twice too", lambda: _twice(illumination.on)),
        ("switches off again", lambda: _twice(illumination.off)),
    )


class _StageChecks:
    """The stage's checks, in the order in which they must run."""

    def __init__(self, stage: Stage, clock: Clock, tolerance_um: float) -> None:
        self._stage = stage
        self._clock = clock
        self._tolerance_um = tolerance_um

    def closed_is_busy(self) -> str:
        return "" if self._stage.busy() else "busy() is False though nothing is connected"

    def unknown(self) -> str:
        where = self._stage.position()
        return "" if where is None else f"it claims to be at {where}"

    def refuses_unhomed(self) -> str:
        return _refused(PositionUnknownError, lambda: self._stage.start_move(self._centre()))

    def homes(self) -> str:
        self._stage.home()
        where = self._stage.position()
        if where is None:
            return "the position is still unknown"
        return "" if self._stage.limits.contains(where) else f"home, {where}, is outside the limits"

    def refuses_beyond(self) -> str:
        limits = self._stage.limits
        return self._stays(
            Position(limits.x_max_um + 1, limits.y_min_um, limits.z_min_um),
            Position(limits.x_min_um, limits.y_min_um - 1, limits.z_min_um),
            Position(limits.x_min_um, limits.y_min_um, limits.z_max_um + 1),
        )

    def refuses_nan(self) -> str:
        here = self._where()
        return self._stays(
            Position(math.nan, here.y_um, here.z_um),
            Position(here.x_um, math.nan, here.z_um),
            Position(here.x_um, here.y_um, math.inf),
        )

    def busy_then_idle(self) -> str:
        self._stage.start_move(self._near())
        moving = self._stage.busy()
        self._stage.wait()
        if not moving:
            return "busy() was False right after the start of a move"
        return "busy() is True after wait()" if self._stage.busy() else ""

    def arrives(self) -> str:
        target = self._near()
        self._stage.start_move(target)
        waited = self._stage.wait()
        for name, got in (("wait()", waited), ("position()", self._where())):
            off = max(abs(got.x_um - target.x_um), abs(got.y_um - target.y_um), abs(got.z_um - target.z_um))
            if not off <= self._tolerance_um:
                return f"{name} says {off:.3g} um from the target, more than {self._tolerance_um:g}"
        return ""

    def stops(self) -> str:
        if self._stage.position() is not None:
            self._stage.start_move(self._near())
        self._stage.stop()
        where = self._stage.position()
        return "" if where is None else f"it still claims to be at {where}"

    def refuses_stopped(self) -> str:
        return _refused(EmergencyStopError, lambda: self._stage.start_move(self._centre()))

    def _stays(self, *targets: Position) -> str:
        here = self._where()
        for target in targets:
            if wrong := _refused(LimitsError, partial(self._stage.start_move, target)):
                return f"{target}: {wrong}"
            if self._stage.busy() or self._where() != here:
                return f"it moved towards {target}"
        return ""

    def _where(self) -> Position:
        where = self._stage.position()
        if where is None:
            raise PositionUnknownError("The position is unknown.")
        return where

    def _centre(self) -> Position:
        limits = self._stage.limits
        return Position(
            (limits.x_min_um + limits.x_max_um) / 2,
            (limits.y_min_um + limits.y_max_um) / 2,
            (limits.z_min_um + limits.z_max_um) / 2,
        )

    def _near(self) -> Position:
        """Return a place up to half a millimetre away, towards the middle of the limits."""
        here, centre = self._where(), self._centre()
        step_x = min(max(centre.x_um - here.x_um, -_REACH_UM), _REACH_UM)
        step_y = min(max(centre.y_um - here.y_um, -_REACH_UM), _REACH_UM)
        return Position(here.x_um + step_x, here.y_um + step_y, here.z_um)


class _CameraChecks:
    """The camera's checks."""

    def __init__(self, camera: Camera, clock: Clock) -> None:
        self._camera = camera
        self._clock = clock

    def fits_format(self) -> str:
        wanted = self._camera.pixel_format
        pixels = self._camera.snap().pixels
        shape = (wanted.height_px, wanted.width_px, wanted.channels)
        dtype = np.dtype(np.uint8 if wanted.bits == 8 else np.uint16)
        if pixels.shape == shape and pixels.dtype == dtype:
            return ""
        return f"got {pixels.shape} {pixels.dtype}, announced {shape} {dtype}"

    def ids_increase(self) -> str:
        ids = [self._camera.snap().frame_id for _ in range(3)]
        return "" if ids[0] < ids[1] < ids[2] else f"the ids were {ids}"

    def exposes_after_call(self) -> str:
        called_s = self._clock.now_s()
        late_s = called_s - self._camera.snap().exposure_start_s
        return "" if late_s <= 0 else f"the exposure began {late_s * 1000:.3g} ms before the call"

    def exposes_before_return(self) -> str:
        frame = self._camera.snap()
        early_s = frame.exposure_start_s + frame.exposure_ms / 1000 - self._clock.now_s()
        return "" if early_s <= 1e-9 else f"the frame came {early_s * 1000:.3g} ms before its exposure ended"

    def keeps_pixels(self) -> str:
        first: Frame = self._camera.snap()
        before = first.pixels.copy()
        self._camera.snap()
        if first.pixels.flags.writeable:
            return "the pixels can be written"
        return "" if np.array_equal(before, first.pixels) else "the next frame overwrote the pixels"


def _run(*checks: tuple[str, Check]) -> list[CheckResult]:
    results = []
    for name, check in checks:
        try:
            wrong = check()
        except Exception as error:  # noqa: BLE001 - whatever a driver raises fails its check
            wrong = f"{type(error).__name__}: {error}"
        results.append(CheckResult(name, not wrong, wrong))
    return results


def _refused(kind: type[ScannerError], action: Callable[[], None]) -> str:
    try:
        action()
    except kind:
        return ""
    except ScannerError as error:
        return f"refused with {type(error).__name__}, not {kind.__name__}"
    return "it was not refused"


def _opened(stage: Stage) -> str:
    stage.open()
    stage.home()
    return ""


def _identity(text: str) -> str:
    return "" if text.strip() else "the identity is empty"


def _twice(action: Callable[[], None]) -> str:
    action()
    action()
    return ""

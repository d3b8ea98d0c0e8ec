"""The rig as calibration uses it: frames at places of its choice, always approached from the same side."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from edge_scanner.acquire import Mover
from edge_scanner.config import Config
from edge_scanner.devices.rig import Rig
from edge_scanner.errors import DeviceError
from edge_scanner.geometry import Position
from edge_scanner.plan import Target
from edge_scanner.tile import Frame


class Probe:
    """Takes frames outside a scan; one thread.

    Parameters
    ----------
    rig : Rig
        Open and homed; the light is left to the caller.
    config : Config
    aborted : callable
        Asked before every move and every frame; True ends the work with `AbortedError`.
    """

    def __init__(self, rig: Rig, config: Config, aborted: Callable[[], bool] = lambda: False) -> None:
        self.rig, self.config = rig, config
        self._mover = Mover(rig, config.stage.settle_ms, aborted)
        self._attempts = config.scan.attempts

    def reaches(self, x_um: float, y_um: float) -> bool:
        """Tell whether the stage may go there."""
        return self.rig.stage.limits.contains(Position(x_um, y_um, self.z_start_um))

    @property
    def z_start_um(self) -> float:
        """Where focusing starts, within the limits."""
        limits = self.rig.stage.limits
        return min(max(self.config.focus.z_start_um, limits.z_min_um), limits.z_max_um)

    def snap(
        self, x_um: float, y_um: float, z_um: float | None = None, *, via: tuple[float, float] | None = None
    ) -> Frame:
        """Take a frame at a place, approached from low x, y and z, or straight from `via` (x, y) micrometres off.

        Raises
        ------
        DeviceError
            When the stage fails, or the camera `scan.attempts` times.
        LimitsError
        AbortedError
        """
        self._mover.forget()
        z_um = self.z_start_um if z_um is None else z_um
        if via is not None:
            self._mover.go(Target(0, 0, 0, x_um + via[0], y_um + via[1]), z_um, {})
        self._mover.go(Target(1, 0, 0, x_um, y_um), z_um, {})
        return self.expose()

    def expose(self) -> Frame:
        """Take a frame where the stage stands; see `snap`."""
        for _ in range(self._attempts - 1):
            with contextlib.suppress(DeviceError):
                return self._mover.expose({})
        return self._mover.expose({})

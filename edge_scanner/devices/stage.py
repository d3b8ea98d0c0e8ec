"""The stage contract."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from edge_scanner.geometry import Limits, Position


def never() -> bool:
    """Return False: nobody calls it off."""
    return False


class Stage(ABC):
    """An XYZ stage. Fails closed: unknown is busy, unknown position is no motion.

    One thread drives it; `stop` alone may be called from any thread at any time and never waits for the driver's
    command lock. A stopped stage refuses motion with `EmergencyStopError` until `home`.
    """

    @property
    @abstractmethod
    def limits(self) -> Limits:
        """Soft limits, checked by the driver before a byte is sent."""

    @abstractmethod
    def open(self) -> str:
        """Connect and return the device's identity (model, firmware). Moves nothing.

        Raises
        ------
        DeviceError
            When the device is not there or is not what was expected.
        """

    @abstractmethod
    def close(self) -> None:
        """Disconnect; safe to call twice."""

    @abstractmethod
    def home(self, aborted: Callable[[], bool] = never) -> None:
        """Find the reference of every axis; blocks. Afterwards the position is known.

        Homing lifts the latch of an earlier `stop`, so a `stop` that comes just before it would be lost: the driver
        asks `aborted` after it has lifted the latch and before anything moves.

        Parameters
        ----------
        aborted : callable, optional
            True when the homing was called off meanwhile.

        Raises
        ------
        DeviceError
            When homing fails; the position stays unknown.
        EmergencyStopError
            When `stop` was called meanwhile, or it was called off.
        """

    @abstractmethod
    def position(self) -> Position | None:
        """Read the position back; None while it is unknown."""

    @abstractmethod
    def busy(self) -> bool:
        """Tell whether the stage may be moving; True whenever that cannot be told."""

    @abstractmethod
    def start_move(self, target: Position) -> None:
        """Start an absolute move and return.

        Raises
        ------
        LimitsError
            When the target is outside the limits or not finite; nothing was sent.
        PositionUnknownError
            Before homing.
        EmergencyStopError
            After `stop`.
        """

    @abstractmethod
    def wait(self) -> Position:
        """Block until the stage is idle and within tolerance of the target; return the position read back.

        Raises
        ------
        DeviceError
            When it stalls, goes silent or ends elsewhere; the position is then unknown.
        EmergencyStopError
            When `stop` was called meanwhile.
        """

    @abstractmethod
    def stop(self) -> None:
        """Halt all axes at once; from any thread; idempotent. The position is unknown afterwards."""

    def true_position(self) -> Position | None:
        """Return where the stage really is; only simulated stages know, others return None."""
        return None

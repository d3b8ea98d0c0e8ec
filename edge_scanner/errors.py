"""One root for every error: a sentence with the cause, a piece of advice, and the code a client sees."""

from __future__ import annotations


class ScannerError(Exception):
    """Root of all errors of this package.

    Parameters
    ----------
    message : str
        One sentence that names the cause.
    advice : str
        What the operator can do about it.
    code : str, optional
        Protocol code; the class's own when omitted.
    """

    code = "internal"

    def __init__(self, message: str, advice: str = "", *, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.advice = advice
        if code is not None:
            self.code = code

    def __str__(self) -> str:
        return f"{self.message} {self.advice}".strip()


class UsageError(ScannerError):
    """Wrong usage: the command line or a request cannot be carried out as written (exit code 2)."""

    code = "bad_argument"


class ConfigError(UsageError):
    """The configuration cannot be used as written."""


class PlanError(UsageError):
    """A region or a plan file cannot be scanned as written."""


class SourceError(ScannerError):
    """An input file is missing, truncated or of a kind that cannot be read."""

    code = "bad_argument"


class StoreError(ScannerError):
    """A store or an output file cannot be read or written."""


class DiskLowError(ScannerError):
    """There is not enough room on the disk."""

    code = "disk.low"


class NotFoundError(ScannerError):
    """What the request names does not exist."""

    code = "not_found"


class StateError(ScannerError):
    """The command is not legal in the present state."""

    code = "state.illegal"


class DeviceError(ScannerError):
    """A device failed, went silent or answered with an error."""

    code = "device"


class LimitsError(ScannerError):
    """A target lies outside the stage's limits."""

    code = "limits.exceeded"


class PositionUnknownError(ScannerError):
    """The stage's position is not known, so nothing may move before homing."""

    code = "position.unknown"


class EmergencyStopError(ScannerError):
    """The emergency stop was pressed; latched until reset and home."""

    code = "emergency_stop"


class AbortedError(ScannerError):
    """A wait was woken because the scan was cancelled or another part failed."""

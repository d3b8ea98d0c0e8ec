"""The driver `gpio`: a lamp on a line of a GPIO chip, by libgpiod 2 (the extra `gpio`).

`illumination.chip` and `illumination.line` name the line. It is requested at the first use, as an output that is off,
and the kernel keeps it from others until the process ends; what it is then, the chip decides, so fit a pull resistor
that puts the lamp off.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_scanner.config import Config, IlluminationConfig
from edge_scanner.devices.clock import Clock
from edge_scanner.devices.illumination import Illumination
from edge_scanner.devices.stage import Stage
from edge_scanner.errors import ConfigError, DeviceError

if TYPE_CHECKING:
    import gpiod


class GpioIllumination(Illumination):
    """A lamp that is on or off.

    Parameters
    ----------
    config : IlluminationConfig
    """

    def __init__(self, config: IlluminationConfig) -> None:
        self._config = config
        self._line: int | str = int(config.line) if config.line.isdigit() else config.line
        self._request: gpiod.LineRequest | None = None

    def on(self) -> None:
        """Switch on."""
        self._set(active=True)

    def off(self) -> None:
        """Switch off."""
        self._set(active=False)

    def _set(self, *, active: bool) -> None:
        from gpiod.line import Value

        try:
            if self._request is None:
                self._request = self._requested()
            self._request.set_value(self._line, Value.ACTIVE if active else Value.INACTIVE)
        except (OSError, ValueError) as error:
            raise DeviceError(
                f"The lamp's line {self._config.line!r} of {self._config.chip} cannot be used ({error}).",
                "Check illumination.chip and illumination.line (gpioinfo lists them) and the group of the device.",
            ) from error

    def _requested(self) -> gpiod.LineRequest:
        import gpiod
        from gpiod.line import Direction, Value

        settings = gpiod.LineSettings(
            direction=Direction.OUTPUT, output_value=Value.INACTIVE, active_low=self._config.active_low
        )
        return gpiod.request_lines(self._config.chip, consumer="edge-scanner", config={self._line: settings})


def make_illumination(config: Config, clock: Clock, stage: Stage) -> Illumination:  # noqa: ARG001
    """Return the lamp on the configured line.

    Raises
    ------
    ConfigError
        When libgpiod is not installed, no line is named, or the level is one that a line cannot give.
    """
    try:
        import gpiod  # noqa: F401
    except ImportError as error:
        raise ConfigError("illumination.driver gpio needs libgpiod.", "Install the extra [gpio].") from error
    if not config.illumination.line:
        raise ConfigError("illumination.line is empty.", "Name the line of illumination.chip that the lamp hangs on.")
    if config.illumination.level != 1.0:
        raise ConfigError("A lamp on a GPIO line is on or off.", "Set illumination.level to 1.")
    return GpioIllumination(config.illumination)

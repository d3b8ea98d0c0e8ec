"""The illumination contract."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable


class Illumination(ABC):
    """A light that can be switched. Off on stop, fault, disconnect and exit."""

    @abstractmethod
    def on(self) -> None:
        """Switch on at the configured level."""

    @abstractmethod
    def off(self) -> None:
        """Switch off; from any thread; idempotent. A controller that is gone is no error: nothing more can be done."""


class NoIllumination(Illumination):
    """The driver `none`: a light that is always on or is switched by hand."""

    def on(self) -> None:
        """Do nothing."""

    def off(self) -> None:
        """Do nothing."""


class ControllerLight(Illumination):
    """A light on the stage's controller, switched by commands on the stage's line.

    Parameters
    ----------
    on, off : callable
        Of the stage; `on` knows the configured level.
    """

    def __init__(self, on: Callable[[], None], off: Callable[[], None]) -> None:
        self._on, self._off = on, off

    def on(self) -> None:
        """Switch on at the configured level."""
        self._on()

    def off(self) -> None:
        """Switch off."""
        self._off()

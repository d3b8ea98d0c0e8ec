"""The illumination contract."""

from __future__ import annotations

from abc import ABC, abstractmethod


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

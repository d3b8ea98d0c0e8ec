"""The light of a scan: told to shine again after a long wait, and missed when it is not there."""

from __future__ import annotations

from collections.abc import Callable

from edge_scanner.devices.rig import Rig
from edge_scanner.plan import Target
from edge_scanner.tile import Pixels

DARK = 0.04
"""Of full scale; a frame whose mean is below shows no light, or something opaque."""
RELIGHT_S = 20.0
"""After so long without a tile the light is told to shine again: controllers put it off when nobody speaks to them."""
_EVERY_PX = 8


def level(pixels: Pixels) -> float:
    """Return the mean of a frame (y, x, c), 0 to 1 of full scale."""
    full: int = 255 if pixels.dtype.itemsize == 1 else 65535
    return float(pixels[::_EVERY_PX, ::_EVERY_PX].mean()) / full


class Lamp:
    """Keeps the light on while targets are acquired, and tells a lamp that went out from a place that is opaque.

    When a frame in brightfield is dark, the place that was bright last is looked at again.

    Parameters
    ----------
    rig : Rig
    brightfield : bool
        In fluorescence, dark frames are what most of the slide looks like; they are believed.
    look : callable
        `look(target, z_um)` returns a frame of a place.
    lost : callable
        Called while the light is gone, until it is there again; raises to give up.
    bright : (Target, float), optional
        A place and its z that are known to be bright.
    """

    def __init__(
        self,
        rig: Rig,
        *,
        brightfield: bool,
        look: Callable[[Target, float], Pixels],
        lost: Callable[[], None],
        bright: tuple[Target, float] | None = None,
    ) -> None:
        self._rig, self._brightfield = rig, brightfield
        self._look, self._lost = look, lost
        self._bright = bright
        self._told_s = 0.0

    def on(self) -> None:
        """Switch on."""
        self._rig.illumination.on()
        self._told_s = self._rig.clock.now_s()

    def off(self) -> None:
        """Switch off."""
        self._rig.illumination.off()

    def is_to_be_told(self) -> bool:
        """Tell whether so long passed since this was asked that the light may have been put off."""
        before_s, self._told_s = self._told_s, self._rig.clock.now_s()
        return self._told_s - before_s > RELIGHT_S

    def was_on(self, pixels: Pixels, target: Target, z_um: float) -> bool:
        """Tell whether a frame was taken in light; if not, there is light again when this returns.

        Raises
        ------
        ScannerError
            What `look` and `lost` raise.
        """
        if not self._brightfield:
            return True
        if level(pixels) >= DARK:
            self._bright = target, z_um
            return True
        if self._bright is None or self._shines(*self._bright):
            return True
        self.on()
        while not self._shines(*self._bright):
            self._lost()
            self.on()
        return False

    def _shines(self, target: Target, z_um: float) -> bool:
        return level(self._look(target, z_um)) >= DARK

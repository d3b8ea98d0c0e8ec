"""The rig: the configured devices, found by name. What is configured is what is built, or an error."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

from edge_scanner.config import Config
from edge_scanner.devices.camera import Camera
from edge_scanner.devices.clock import Clock, RealClock, VirtualClock
from edge_scanner.devices.illumination import Illumination
from edge_scanner.devices.stage import Stage
from edge_scanner.errors import ConfigError

_PACKAGE = "edge_scanner.devices.drivers"
_GROUP = "edge_scanner.drivers"


@dataclass(frozen=True, slots=True)
class Rig:
    """The devices of one scanner and the clock they share; nothing is open yet."""

    clock: Clock
    stage: Stage
    camera: Camera
    illumination: Illumination


def build_rig(config: Config) -> Rig:
    """Build the devices that the configuration names.

    A driver is a module of `edge_scanner.devices.drivers` or an entry point (module or object) of the group
    `edge_scanner.drivers`, and offers any of `make_stage(config, clock)`, `make_camera(config, clock, stage)` and
    `make_illumination(config, clock, stage)`.

    Raises
    ------
    ConfigError
        When there is no such driver, or it cannot be imported, or makes no such device.
    """
    clock = _clock(config)
    stage: Stage = _maker(config.stage.driver, "stage")(config, clock)
    camera: Camera = _maker(config.camera.driver, "camera")(config, clock, stage)
    illumination: Illumination = _maker(config.illumination.driver, "illumination")(config, clock, stage)
    return Rig(clock, stage, camera, illumination)


def _clock(config: Config) -> Clock:
    """Return a virtual clock only where nothing real could be asked to keep up with it."""
    simulated = config.stage.driver == config.camera.driver == "sim"
    simulated = simulated and config.illumination.driver in ("sim", "none")
    return VirtualClock() if simulated and config.sim.clock == "virtual" else RealClock()


def known_drivers() -> list[str]:
    """Return the names that a `driver` key may have."""
    own = [module.name for module in pkgutil.iter_modules(importlib.import_module(_PACKAGE).__path__)]
    return sorted({*own, *(point.name for point in entry_points(group=_GROUP))})


def _maker(name: str, kind: str) -> Callable[..., Any]:
    make = getattr(_driver(name, kind), f"make_{kind}", None)
    if make is None:
        raise ConfigError(f"The driver {name!r} makes no {kind}.", f"Choose another {kind}.driver.")
    return make  # type: ignore[no-any-return]


def _driver(name: str, kind: str) -> Any:
    try:
        if name.isidentifier() and importlib.util.find_spec(f"{_PACKAGE}.{name}"):
            return importlib.import_module(f"{_PACKAGE}.{name}")
        for point in entry_points(group=_GROUP, name=name):
            return point.load()
    except ImportError as error:
        raise ConfigError(f"The driver {name!r} cannot be loaded ({error}).", "Install what it needs.") from error
    known = known_drivers()
    near = difflib.get_close_matches(name, known, 1, 0.0)[0]
    raise ConfigError(
        f"{kind}.driver is {name!r}; the nearest known driver is {near!r}.", f"Known: {', '.join(known)}."
    )

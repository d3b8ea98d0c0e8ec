"""The driver `sim`: stage, camera and light of the simulated world."""

from __future__ import annotations

from edge_scanner.config import Config
from edge_scanner.devices.camera import Camera, PixelFormat
from edge_scanner.devices.clock import Clock
from edge_scanner.devices.illumination import Illumination
from edge_scanner.devices.stage import Stage
from edge_scanner.errors import ConfigError, DeviceError
from edge_scanner.geometry import Position
from edge_scanner.sim.optics import Objective
from edge_scanner.sim.specimen import open_specimen
from edge_scanner.sim.stage import SimStage, nanometres
from edge_scanner.sim.surface import FocalSurface
from edge_scanner.tile import Frame

READ_OUT_S = 0.002


class LitStage(SimStage):
    """The simulated stage with the lamp that shines through it, which is where camera and light meet."""

    lit = True


class SimIllumination(Illumination):
    """A lamp below the simulated stage; off at first."""

    def __init__(self, stage: LitStage) -> None:
        self._stage = stage
        stage.lit = False

    def on(self) -> None:
        """Switch on at the configured level."""
        self._stage.lit = True

    def off(self) -> None:
        """Switch off; frames are dark from now on."""
        self._stage.lit = False


class SimCamera(Camera):
    """Renders the true stage position; the noise of a frame is fixed by seed and commanded position.

    Parameters
    ----------
    config : Config
    clock : Clock
        Exposure and read-out take time on it.
    stage : Stage
        Of any driver; where it knows no true position, its read-back is taken for true.
    """

    def __init__(self, config: Config, clock: Clock, stage: Stage) -> None:
        self._config = config
        self._clock = clock
        self._stage = stage
        self._objective: Objective | None = None
        self._frames = 0

    @property
    def pixel_format(self) -> PixelFormat:
        """Shape and depth of the frames."""
        return PixelFormat.of(self._config.camera)

    def open(self) -> str:
        """Open the specimen.

        Raises
        ------
        SourceError
            When `sim.slide` cannot be read.
        """
        specimen = open_specimen(self._config.sim, self._config.optics.pixel_size_um)
        surface = FocalSurface(self._config.sim, self._config.stage.limits)
        self._objective = Objective(self._config, specimen, surface)
        return f"simulated camera, {self._config.sim.slide or 'synthetic tissue'}"

    def close(self) -> None:
        """Let the specimen go."""
        self._objective = None

    def snap(self) -> Frame:
        """Expose; what moves meanwhile is smeared."""
        if self._objective is None:
            raise DeviceError("The simulated camera is not open.", "Open it first.")
        exposure_ms = self._config.camera.exposure_ms
        began_s = self._clock.now_s()
        first = self._where()
        self._clock.sleep_s(exposure_ms / 1000)
        last = self._where()
        middle = Position(*((a + b) / 2 for a, b in zip(_axes(first), _axes(last), strict=True)))
        commanded = self._stage.position() or middle
        pixels = self._objective.render(
            middle,
            (self._config.sim.seed, *nanometres(*_axes(commanded))),
            travel_um=(last.x_um - first.x_um, last.y_um - first.y_um),
            brightness=self._config.illumination.level if getattr(self._stage, "lit", True) else 0.0,
        )
        self._clock.sleep_s(READ_OUT_S)
        self._frames += 1
        return Frame(pixels, self._frames, began_s, exposure_ms)

    def _where(self) -> Position:
        where = self._stage.true_position() or self._stage.position()
        if where is None:
            raise DeviceError("The simulated camera cannot tell where the stage is.", "Home the stage first.")
        return where


def make_stage(config: Config, clock: Clock) -> Stage:
    """Return the simulated stage."""
    return LitStage(config, clock)


def make_camera(config: Config, clock: Clock, stage: Stage) -> Camera:
    """Return the simulated camera over a stage."""
    return SimCamera(config, clock, stage)


def make_illumination(config: Config, clock: Clock, stage: Stage) -> Illumination:  # noqa: ARG001
    """Return the simulated light.

    Raises
    ------
    ConfigError
        When the stage is not simulated: there would be nothing to shine through.
    """
    if not isinstance(stage, LitStage):
        raise ConfigError("illumination.driver sim needs stage.driver sim.", 'Use illumination.driver = "none".')
    return SimIllumination(stage)


def _axes(position: Position) -> tuple[float, float, float]:
    return position.x_um, position.y_um, position.z_um

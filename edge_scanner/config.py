"""The configuration: TOML in, a frozen and validated value out. An unknown key names the nearest known one."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from edge_scanner.errors import ConfigError
from edge_scanner.geometry import Limits

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A frozen section that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class StageConfig(Section):
    """`[stage]`: the driver, its port, what it may do."""

    driver: str = "sim"
    port: str = Field("", description="A device path, or a part of its name in /dev/serial/by-id.")
    baud: int = Field(0, ge=0, description="0: the protocol's own.")
    x_min_mm: Finite = -2.0
    x_max_mm: Finite = 78.0
    y_min_mm: Finite = -2.0
    y_max_mm: Finite = 28.0
    z_min_um: Finite = -300.0
    z_max_um: Finite = 300.0
    x_home_mm: Finite = Field(0.0, description="Stage coordinates of the place that homing finds.")
    y_home_mm: Finite = 0.0
    z_home_um: Finite = 0.0
    x_step_um: NotNegative = Field(
        0.0, description="Controller unit of protocols that count steps; 0: the driver's own."
    )
    y_step_um: NotNegative = 0.0
    z_step_um: NotNegative = 0.0
    z_scale: Positive = Field(1.0, description="grbl: controller millimetres per millimetre; 10 gives z in 0.1 um.")
    tolerance_um: Positive = 5.0
    z_tolerance_um: Positive = 0.5
    error_um: NotNegative = Field(1.0, description="Repeatability, sigma; bounds registration and the auto overlap.")
    speed_mm_s: Positive = 25.0
    acceleration_mm_s2: Positive = 500.0
    settle_ms: NotNegative = 20.0
    calibration: str = Field("", description="File of `calibrate pixel-size` and `backlash`.")
    matrix: Literal["auto", "nominal"] = Field(
        "auto", description="How the axes lie in the picture: from the file or measured before each scan, or as built."
    )
    timeout_s: Positive = Field(30.0, description="How long a moving stage may stand still or be silent.")
    home_timeout_s: Positive = 120.0

    @property
    def limits(self) -> Limits:
        """The soft limits in micrometres."""
        return Limits(
            self.x_min_mm * 1000, self.x_max_mm * 1000, self.y_min_mm * 1000, self.y_max_mm * 1000,
            self.z_min_um, self.z_max_um,
        )  # fmt: skip

    @model_validator(mode="after")
    def _ordered(self) -> StageConfig:
        for axis, low, high in (
            ("x", self.x_min_mm, self.x_max_mm),
            ("y", self.y_min_mm, self.y_max_mm),
            ("z", self.z_min_um, self.z_max_um),
        ):
            if low >= high:
                raise ValueError(f"the {axis} limits are {low:g} to {high:g}: the lower must be below the upper")
        return self


class CameraConfig(Section):
    """`[camera]`: the driver and the frame."""

    driver: str = "sim"
    device: str = Field("", description="Path, number, URL, pipeline or name, as the driver takes it.")
    properties: tuple[Annotated[str, Field(pattern="^[^=]+=")], ...] = Field(
        (), description='"Name=value" of the camera\'s own, set in order and read back: aravis, micromanager.'
    )
    width_px: int = Field(1224, ge=64, le=16384)
    height_px: int = Field(1024, ge=64, le=16384)
    channels: Literal[1, 3] = 3
    bits: Literal[8, 16] = 8
    exposure_ms: Positive = 2.0
    gain: Positive = 1.0
    timeout_s: Positive = 5.0
    rotation_deg: Finite = 0.0
    flat_field: str = Field("", description="File of `calibrate flat-field`; empty: measured before each scan.")
    white_balance: Literal["auto", "off"] = Field("auto", description="Makes glass neutral where that clips nothing.")


class SimConfig(Section):
    """`[sim]`: the simulated world, used by the drivers named `sim` and by the hardware-in-the-loop runs."""

    slide: str = Field("", description="An image file or pyramidal slide; empty: seeded synthetic tissue.")
    slide_pixel_size_um: NotNegative = Field(0.0, description="0: one specimen pixel is one camera pixel in focus.")
    seed: int = Field(1, ge=0)
    clock: Literal["real", "virtual"] = "virtual"
    tissue_width_mm: Positive = Field(4.0, description="Size of the synthetic specimen.")
    tissue_height_mm: Positive = 3.0
    stage_error_um: NotNegative = Field(0.0, description="Repeatability of the true position, sigma.")
    backlash_um: NotNegative = 0.0
    rotation_deg: Finite = Field(0.0, description="Turn of the camera against the stage.")
    scale_error: Finite = Field(0.0, description="Relative error of the stage's unit; 0.001 is one per mille.")
    mirror: bool = Field(False, description="The camera sees x mirrored.")
    blur: bool = True
    noise: bool = True
    vignetting: bool = True
    surface: bool = Field(True, description="A focal surface with tilt, bow and local bumps; off: flat at z = 0.")
    tilt_um_per_mm: Finite = 1.5
    bow_um: Finite = 4.0
    bumps_um: NotNegative = 1.0
    axial_colour_um: Finite = Field(
        0.45,
        description="Red focuses that much above green at NA 0.75, blue below; as the depth of field at others.",
    )
    spherical_waves: Finite = 0.08
    full_well_electrons: Positive = 10_000.0
    read_noise_electrons: NotNegative = 6.0
    vignetting_corner: Share = Field(0.12, description="Light lost in the corner of the field.")
    motion_blur: bool = True
    light_drift_per_mm: Finite = Field(
        0.0, description="How much brighter than its middle the field's lower right corner gets with each mm of y."
    )


class IlluminationConfig(Section):
    """`[illumination]`: the light."""

    driver: str = "sim"
    level: Share = 1.0
    source: int = Field(0, ge=0, le=255, description="squid: the firmware's number of the light; 0: the LED array.")
    chip: str = Field("/dev/gpiochip0", description="gpio: the chip.")
    line: str = Field("", description="gpio: the line that the lamp hangs on, its number or its name.")
    active_low: bool = Field(False, description="gpio: the lamp shines while the line is low.")
    brightfield: bool = Field(True, description="False: fluorescence, dark background.")
    wavelength_um: Positive = Field(0.53, description="Mono cameras; RGB uses 0.61, 0.53 and 0.46.")


STEEPEST_SINE = 0.98
"""Of the angle of the steepest ray that is reckoned with, whatever aperture is stated."""


class OpticsConfig(Section):
    """`[optics]`: the objective and the pixel."""

    pixel_size_um: Positive = 0.5
    magnification: Positive = 20.0
    numerical_aperture: float = Field(0.75, gt=0, lt=1.6)
    immersion: Literal["air", "water", "oil"] = "air"
    field_curvature_um: NotNegative = Field(0.0, description="Measured sag between centre and corner of the field.")

    @property
    def depth_of_field_um(self) -> float:
        """Diffraction-limited depth of field, lambda * n / NA^2 at 0.53 um (0.94 um in air at NA 0.75)."""
        return 0.53 * self.refractive_index / self.numerical_aperture**2

    @property
    def refractive_index(self) -> float:
        """What the immersion refracts: 1 in air, 1.33 in water, 1.515 in oil."""
        return {"air": 1.0, "water": 1.33, "oil": 1.515}[self.immersion]


class ScanConfig(Section):
    """`[scan]`: how a region becomes targets."""

    overlap: Annotated[float, Field(ge=0, le=0.75)] | Literal["auto"] = 0.1
    keep_tiles: bool = Field(False, description="Keep every accepted frame in `tiles/` beside the mosaic.")
    buffer_mb: Positive = Field(128.0, description="Bound of the buffer between acquisition and mosaic.")
    cache_mb: Positive = Field(96.0, description="Bound of the frames that the mosaic keeps in memory.")
    attempts: int = Field(2, ge=1, le=10, description="Tries of a target whose frame could not be had.")
    max_rejected: int = Field(20, ge=1, description="Rejected targets in a row before the scan fails.")
    shading: Literal["auto", "off"] = Field("auto", description="Flat-field correction.")
    glass_update: bool = Field(True, description="The flat field follows the light, by the blank tiles in passing.")
    settle_pass: bool = Field(
        False, description="After the scan: all places anew, and a new mosaic where they moved; needs keep_tiles."
    )


class FocusConfig(Section):
    """`[focus]`: how each tile is focused."""

    mode: Literal["model", "classical", "off"] = "classical"
    range_um: Positive = Field(12.0, description="How far from the predicted z a climb may go.")
    step_um: Positive = Field(1.2, description="First step of the climb.")
    max_frames: int = Field(25, ge=3)
    z_start_um: Finite = 0.0
    blank_texture: Positive = Field(4.0, description="Coarse contrast, in noise units, below which a tile is blank.")
    max_failed: int = Field(30, ge=1, description="Tiles in a row that could not be focused before the scan pauses.")
    model: str = Field("", description="ONNX file; empty: the one that ships.")
    calibration: str = Field("", description="File of `calibrate focus`; empty: the model as it was trained.")
    providers: tuple[Literal["tensorrt", "cuda", "cpu"], ...] = Field(
        ("tensorrt", "cuda", "cpu"), min_length=1, description="Execution providers of the model, best first."
    )
    strict_providers: bool = Field(False, description="Refuse to run on another provider than the first.")
    fp16: bool = Field(True, description="Half precision on TensorRT.")
    engine_cache: str = Field("", description="Folder of compiled engines; empty: `.engines` below storage.root.")


class MosaicConfig(Section):
    """`[mosaic]`: placement, blending and the codec of the store."""

    codec: Literal["auto", "jpeg", "gzip", "zstd", "none"] = Field("auto", description="jpeg for 8-bit RGB, else gzip.")
    quality: int = Field(90, ge=1, le=100)
    subsampling: Literal["444", "422", "420"] = "422"
    gzip_level: int = Field(1, ge=0, le=12)
    zstd_level: int = Field(1, ge=1, le=22)
    placement: Literal["cubic", "pixel"] = "cubic"
    registration: bool = Field(True, description="Place tiles by their overlaps; off: by the stage alone.")
    blend: Literal["linear", "seam", "max", "first"] = Field(
        "linear", description="seam parts tiles that disagree by over 1 px along the least difference."
    )
    feather_px: int = Field(64, ge=1, description="Longest blending ramp; overlaps narrower than it are ramped whole.")
    gain: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Make tiles as bright as their neighbours; auto: in brightfield with cubic placement.",
    )
    background: Literal["auto", "white", "black"] = "auto"
    chunk_px: Literal[256, 512, 1024] = 512


class ExportConfig(Section):
    """`[export]`: the OME-TIFF."""

    auto: bool = True
    compression: Literal["keep", "jpeg", "zlib", "zstd", "none"] = "keep"
    quality: int = Field(90, ge=1, le=100)


class StorageConfig(Section):
    """`[storage]`: where scans go."""

    root: str = "scans"
    reserve_mb: NotNegative = Field(512.0, description="Room that is never used; a scan pauses before it.")
    reserve_files: int = Field(256, ge=0, description="The same for files, where the file system has so many inodes.")


class ControlConfig(Section):
    """`[control]`: the sockets and the rules of the control server."""

    endpoint: str = "ipc:///run/edge-scanner/control.ipc"
    events: str = "ipc:///run/edge-scanner/events.ipc"
    lease_s: Positive = 10.0
    heartbeat_s: Positive = 1.0
    max_message_kb: Positive = 1024.0
    keys: str = Field("", description="Folder of CURVE keys (edge-scanner keys); TCP off loopback needs one.")
    metrics: str = Field("", description="Loopback ADDRESS:PORT of GET /metrics; empty: off.")


class LogConfig(Section):
    """`[log]`: how much is told."""

    level: Literal["debug", "info", "warning", "error"] = "info"


class Config(Section):
    """The whole configuration; every key has a default that works on the simulator."""

    stage: StageConfig = StageConfig()
    camera: CameraConfig = CameraConfig()
    sim: SimConfig = SimConfig()
    illumination: IlluminationConfig = IlluminationConfig()
    optics: OpticsConfig = OpticsConfig()
    scan: ScanConfig = ScanConfig()
    focus: FocusConfig = FocusConfig()
    mosaic: MosaicConfig = MosaicConfig()
    export: ExportConfig = ExportConfig()
    storage: StorageConfig = StorageConfig()
    control: ControlConfig = ControlConfig()
    log: LogConfig = LogConfig()

    @property
    def codec(self) -> Literal["jpeg", "gzip", "zstd", "none"]:
        """The codec in use: `mosaic.codec`, `auto` resolved."""
        if self.mosaic.codec != "auto":
            return self.mosaic.codec
        return "jpeg" if (self.camera.channels, self.camera.bits) == (3, 8) else "gzip"

    @property
    def stage_error_um(self) -> float:
        """How far, one sigma, a tile may lie from the stage model; the simulator's own error counts."""
        simulated = self.sim.stage_error_um if self.stage.driver == "sim" else 0.0
        return max(self.stage.error_um, simulated)

    @property
    def focusable(self) -> bool:
        """Whether z is looked for and changes the picture: not on a simulator without blur."""
        return self.focus.mode != "off" and self.sim.blur

    @property
    def levels_tiles(self) -> bool:
        """Whether tiles are made as bright as their neighbours: `mosaic.gain`, which needs registration."""
        by_itself = self.illumination.brightfield and self.mosaic.placement == "cubic"
        return self.mosaic.registration and (self.mosaic.gain == "on" or (self.mosaic.gain == "auto" and by_itself))

    @property
    def fill_value(self) -> int:
        """Pixel value of unscanned area."""
        white = self.mosaic.background == "white" or (
            self.mosaic.background == "auto" and self.illumination.brightfield
        )
        return (255 if self.camera.bits == 8 else 65535) if white else 0


def load(path: Path | None, overrides: Iterable[str] = ()) -> Config:
    """Read a TOML file and apply `section.key=value` overrides, validated alike.

    Parameters
    ----------
    path : Path or None
        None: all defaults.
    overrides : iterable of str
        Values are TOML (`true`, `3`, `"text"`); anything that is not is taken as text.

    Raises
    ------
    ConfigError
        Unreadable file, bad TOML, unknown key (names the nearest), wrong value.
    """
    raw: dict[str, Any] = {}
    if path is not None:
        try:
            raw = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ConfigError(f"There is no configuration file {path}.", "See deploy/config/ for examples.") from error
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"The configuration {path} cannot be read ({error}).") from error
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"The configuration {path} is not valid TOML: {error}.") from error
    for text in overrides:
        _override(raw, text)
    return parse(raw)


def parse(raw: Mapping[str, Any]) -> Config:
    """Validate parsed TOML; see `load`."""
    try:
        config = Config.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(_sentence(error)) from error
    if config.scan.settle_pass and not config.scan.keep_tiles:
        raise ConfigError("scan.settle_pass needs the tiles of the scan.", "Set scan.keep_tiles = true too.")
    if config.codec == "jpeg" and (config.camera.channels, config.camera.bits) != (3, 8):
        raise ConfigError("mosaic.codec is jpeg, which stores 8-bit RGB only.", "Use gzip for this camera.")
    return config


def dump(config: Config) -> dict[str, Any]:
    """Return the effective configuration as plain JSON types."""
    plain: dict[str, Any] = json.loads(config.model_dump_json())
    return plain


def _override(raw: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    section, dot, name = key.strip().partition(".")
    if not (equals and dot and section and name):
        raise ConfigError(f"--set {text!r} is not of the form section.key=value.")
    try:
        parsed: Any = tomllib.loads(f"v = {value}")["v"]
    except tomllib.TOMLDecodeError:
        parsed = value
    table = raw.setdefault(section, {})
    if not isinstance(table, dict):
        raise ConfigError(f"{section} is not a section.")
    table[name] = parsed


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    loc = [str(part) for part in first["loc"]]
    where = ".".join(loc[:2])
    if first["type"] == "extra_forbidden":
        known, what = _known(loc)
        near = difflib.get_close_matches(loc[-1], known, 1, 0.0)
        prefix = f"{loc[0]}." if len(loc) > 1 else ""
        return f"Unknown {what} {'.'.join(loc)!r}; the nearest known one is {prefix + near[0]!r}."
    return f"{where} is {first['input']!r}: {first['msg'].lower()}."


def _known(loc: list[str]) -> tuple[list[str], str]:
    if len(loc) == 1:
        return list(Config.model_fields), "section"
    section = Config.model_fields[loc[0]].annotation
    assert isinstance(section, type)
    assert issubclass(section, BaseModel)
    return list(section.model_fields), "key"

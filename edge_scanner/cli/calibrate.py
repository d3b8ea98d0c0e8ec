"""`calibrate`: measure the rig and write the calibration files that the configuration names."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import typer

from edge_scanner import config as configs
from edge_scanner.calibrate.axes import StageAxes, measure_axes
from edge_scanner.calibrate.backlash import measure_backlash
from edge_scanner.calibrate.focus import measure_focus
from edge_scanner.calibrate.glass import measure_flat_field
from edge_scanner.calibrate.probe import Probe
from edge_scanner.calibrate.stage_file import StageCalibration
from edge_scanner.cli.output import print_json, print_rows
from edge_scanner.config import Config
from edge_scanner.devices.rig import build_rig
from edge_scanner.errors import ConfigError, SourceError
from edge_scanner.plan import ScanRegion

app = typer.Typer(help="Measure the rig and write the file that the configuration names; the stage MOVES.")


@dataclass(frozen=True, slots=True)
class _Wish:
    config: Config
    region: ScanRegion
    as_json: bool


@app.callback()
def _options(
    context: typer.Context,
    config: Path | None = typer.Option(None, "--config", "-c", help="TOML file."),
    overrides: list[str] = typer.Option([], "--set", metavar="SECTION.KEY=VALUE", help="Override a key."),
    x_mm: float = typer.Option(0.0, "--x-mm", help="Top-left corner of where to look for glass or tissue."),
    y_mm: float = typer.Option(0.0, "--y-mm"),
    width_mm: float = typer.Option(4.0, "--width-mm"),
    height_mm: float = typer.Option(3.0, "--height-mm"),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    context.obj = _Wish(configs.load(config, overrides), ScanRegion(x_mm, y_mm, width_mm, height_mm), as_json)


@app.command("flat-field")
def flat_field(context: typer.Context) -> None:
    """Measure the light on clean glass and write `camera.flat_field`."""
    wish: _Wish = context.obj
    path = _named("camera.flat_field", wish.config.camera.flat_field)
    with _probe(wish.config) as probe:
        flat = measure_flat_field(probe, wish.region)
    flat.save(path)
    profile = flat.profile()
    _tell(
        wish,
        {
            "file": str(path),
            "glass": [round(level, 2) for level in flat.glass],
            "dark": [round(level, 2) for level in flat.dark],
            "darkest_share": round(float(profile.min() / profile.max()), 4),
        },
    )


@app.command("pixel-size")
def pixel_size(context: typer.Context) -> None:
    """Measure how the stage's axes lie in the picture and write `stage.calibration`."""
    wish: _Wish = context.obj
    path = _named("stage.calibration", wish.config.stage.calibration)
    before = _before(path, wish.config)
    with _probe(wish.config) as probe:
        axes, _ = measure_axes(probe, wish.region, quick=False)
    replace(before, measured=_now(), axes=axes).save(path)
    _tell(wish, {"file": str(path), **_figures(axes)})


@app.command()
def backlash(context: typer.Context) -> None:
    """Measure how far the stage ends from itself when approached from the other side, and add it to that file."""
    wish: _Wish = context.obj
    path = _named("stage.calibration", wish.config.stage.calibration)
    before = _before(path, wish.config)
    with _probe(wish.config) as probe:
        axes, spot = measure_axes(probe, wish.region, quick=False)
        x_um, y_um = measure_backlash(probe, axes, spot)
    replace(before, measured=_now(), axes=axes, backlash_um=(x_um, y_um)).save(path)
    _tell(wish, {"file": str(path), "backlash_x_um": round(x_um, 3), "backlash_y_um": round(y_um, 3)})


@app.command()
def focus(context: typer.Context) -> None:
    """Map what the focus model says to this instrument by short stacks on tissue; write `focus.calibration`."""
    wish: _Wish = context.obj
    path = _named("focus.calibration", wish.config.focus.calibration)
    bare = wish.config.focus.model_copy(update={"calibration": ""})
    with _probe(wish.config.model_copy(update={"focus": bare})) as probe:
        found = measure_focus(probe, wish.region)
    found.save(path)
    line = {key: round(value, 4) for key, value in asdict(found.line).items()}
    _tell(wish, {"file": str(path), "frames": found.frames, "swapped": found.swapped, **line})


def _named(key: str, value: str) -> Path:
    if not value:
        raise ConfigError(f"{key} names no file to write.", f"Set it in the configuration, or --set {key}=PATH.")
    if not Path(value).resolve().parent.is_dir():
        raise ConfigError(f"{key} is {value!r}: there is no such folder.", "Make it first.")
    return Path(value)


def _before(path: Path, config: Config) -> StageCalibration:
    """Return what the file said, where it is there and fits; what it does not measure anew is kept."""
    with contextlib.suppress(SourceError):
        return StageCalibration.load(path, config)
    return StageCalibration(_now(), config.optics.pixel_size_um, config.optics.magnification)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@contextlib.contextmanager
def _probe(config: Config) -> Iterator[Probe]:
    """Open and home the rig, with the light on; everything is off and closed afterwards."""
    rig = build_rig(config)
    try:
        rig.stage.open()
        rig.camera.open()
        rig.stage.home()
        rig.illumination.on()
        yield Probe(rig, config)
    finally:
        rig.illumination.off()
        rig.camera.close()
        rig.stage.close()


def _figures(axes: StageAxes) -> dict[str, Any]:
    return {
        "pixel_size_um": round(axes.pixel_size_um, 6),
        "rotation_deg": round(axes.rotation_deg, 4),
        "mirrored": axes.mirrored,
        "relative_error": float(f"{axes.sigma * axes.pixel_size_um:.2g}"),
        "matrix_px_per_um": [axes.xx, axes.xy, axes.yx, axes.yy],
    }


def _tell(wish: _Wish, figures: dict[str, Any]) -> None:
    if wish.as_json:
        print_json(figures)
    else:
        print_rows("", [(key, str(value)) for key, value in figures.items()])

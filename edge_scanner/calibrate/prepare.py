"""What a scan takes from calibration: files that the configuration names, or measurements made before it starts."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path

from edge_scanner.calibrate.axes import NoTextureError, StageAxes, measure_axes
from edge_scanner.calibrate.frame import frame_of
from edge_scanner.calibrate.glass import NoGlassError, find_light, measure_flat_field
from edge_scanner.calibrate.probe import Probe
from edge_scanner.calibrate.stage_file import StageCalibration
from edge_scanner.config import Config
from edge_scanner.devices.rig import Rig
from edge_scanner.drift import Drift
from edge_scanner.geometry import MosaicFrame
from edge_scanner.journal import Journal
from edge_scanner.plan import ScanPlan, Target
from edge_scanner.shading import Correction, FlatField, Setting, correction

FLAT_FILE = "flat.npz"


@dataclass(frozen=True, slots=True)
class Prepared:
    """The frame and the correction of one scan.

    Parameters
    ----------
    frame : MosaicFrame
    shading : Correction or None
    backlash_um : float
        In x, as calibrated; 0 where it is not, or within the stage's error.
    drift : Drift or None
        Keeps the correction up with the light during the scan.
    """

    frame: MosaicFrame
    shading: Correction | None = None
    backlash_um: float = 0.0
    drift: Drift | None = field(default=None, compare=False)


def prepare(
    config: Config, rig: Rig, plan: ScanPlan, folder: Path, *, aborted: Callable[[], bool] = lambda: False
) -> Prepared:
    """Return the calibration of a scan; measured at most once, then read from the scan's folder.

    Parameters
    ----------
    config : Config
    rig : Rig
        Open and homed; the light is off afterwards.
    plan : ScanPlan
    folder : Path
        The scan's folder: `flat.npz` and the journal go there.
    aborted : callable
        True ends the work with `AbortedError`.

    Raises
    ------
    SourceError
        When a calibration file that the configuration names is missing, damaged or for another setting.
    DeviceError
        When the stage or the camera fails.
    ScannerError
        When the camera is turned so far against the stage that the plan cannot cover the region.
    AbortedError
    """
    with closing(Journal(folder / "journal.sqlite")) as journal:
        probe = Probe(rig, config, aborted)
        try:
            flat = _flat(probe, plan, folder, journal)
            axes = _axes(probe, plan, journal)
            backlash_um = _backlash_um(config, journal)
        finally:
            rig.illumination.off()
    shading = None if flat is None else correction(flat, balance=config.camera.white_balance == "auto")
    followed = flat is not None and config.scan.glass_update and config.illumination.brightfield
    drift = Drift(flat, shading) if flat is not None and followed else None
    return Prepared(frame_of(plan, axes), shading, backlash_um, drift)


def bright_place(
    config: Config, rig: Rig, plan: ScanPlan, *, aborted: Callable[[], bool] = lambda: False
) -> tuple[Target, float] | None:
    """Return a place of a scan and its z that are bright, to see that the lamp shines; see `find_light`.

    None in fluorescence. The light is off afterwards.

    Raises
    ------
    DeviceError
        When the lamp does not shine, or stage or camera fail.
    AbortedError
    """
    if not config.illumination.brightfield:
        return None
    try:
        return find_light(Probe(rig, config, aborted), plan.region)
    finally:
        rig.illumination.off()


def named_flat_field(config: Config) -> FlatField | None:
    """Return the flat field that `camera.flat_field` names; None where it names none.

    Raises
    ------
    SourceError
        When the file is missing, damaged or for another setting.
    """
    if not config.camera.flat_field:
        return None
    path = Path(config.camera.flat_field)
    flat = FlatField.load(path)
    flat.require(Setting.of(config), path)
    return flat


def named_stage_calibration(config: Config) -> StageCalibration | None:
    """Return what `stage.calibration` names, likewise."""
    return StageCalibration.load(Path(config.stage.calibration), config) if config.stage.calibration else None


def _flat(probe: Probe, plan: ScanPlan, folder: Path, journal: Journal) -> FlatField | None:
    """Return the flat field, from the scan's folder if it was there already; None to leave frames as they are."""
    if (noted := journal.noted("shading")) is not None:
        return FlatField.load(folder / FLAT_FILE) if noted["applied"] else None
    flat, why = _chosen_flat(probe, plan)
    if flat is not None:
        flat.save(folder / FLAT_FILE)
    journal.note("shading", {"applied": flat is not None, "source": why})
    return flat


def _chosen_flat(probe: Probe, plan: ScanPlan) -> tuple[FlatField | None, str]:
    """Return the flat field to use and, in words, where it comes from or why there is none."""
    config = probe.config
    if config.scan.shading == "off":
        return None, "scan.shading is off"
    if (flat := named_flat_field(config)) is not None:
        return flat, f"file, measured {flat.measured}"
    if not config.illumination.brightfield:
        return None, "fluorescence shows no glass to measure on"
    probe.rig.illumination.on()
    try:
        return measure_flat_field(probe, plan.region), "measured on glass"
    except NoGlassError as error:
        return None, error.message


def _axes(probe: Probe, plan: ScanPlan, journal: Journal) -> StageAxes | None:
    """Return the stage's axes, from the journal if they were there already; None for the nominal ones."""
    if (noted := journal.noted("stage_axes")) is not None:
        return StageAxes(**noted["axes"]) if noted["axes"] else None
    axes, why = _chosen_axes(probe, plan)
    journal.note("stage_axes", {"axes": asdict(axes) if axes else None, "source": why})
    return axes


def _backlash_um(config: Config, journal: Journal) -> float:
    """Return the backlash in x to make up for, from the journal if it was there already."""
    if (noted := journal.noted("backlash_um")) is not None:
        return float(noted)
    calibration = named_stage_calibration(config)
    found = calibration.backlash_um[0] if calibration and calibration.backlash_um else 0.0
    counts = found if abs(found) > config.stage_error_um else 0.0
    journal.note("backlash_um", counts)
    return counts


def _chosen_axes(probe: Probe, plan: ScanPlan) -> tuple[StageAxes | None, str]:
    config = probe.config
    if config.stage.matrix == "nominal":
        return None, "stage.matrix is nominal"
    if (calibration := named_stage_calibration(config)) is not None and calibration.axes is not None:
        return calibration.axes, f"file, measured {calibration.measured}"
    probe.rig.illumination.on()
    try:
        return measure_axes(probe, plan.region)[0], "measured on texture"
    except NoTextureError as error:
        return None, error.message

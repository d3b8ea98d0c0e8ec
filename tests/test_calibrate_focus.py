"""`calibrate focus`: instruments unlike the one the network was trained for are found out and put right."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_acquire import Wire
from test_calibrate import run_cli

from edge_scanner.calibrate.axes import NoTextureError
from edge_scanner.calibrate.focus import measure_focus
from edge_scanner.calibrate.probe import Probe
from edge_scanner.config import Config, load
from edge_scanner.devices.rig import build_rig
from edge_scanner.errors import ConfigError, ScannerError, SourceError
from edge_scanner.focus import check_focus
from edge_scanner.focus.autofocus import Estimator, ModelFocus
from edge_scanner.focus.calibration import FocusCalibration, Line, UncalibratedError, fitted, named_focus_calibration
from edge_scanner.focus.classical import ClassicalFocus
from edge_scanner.focus.consensus import Consensus
from edge_scanner.focus.model import SHIPPED, ModelFile
from edge_scanner.journal import Journal
from edge_scanner.plan import ScanPlan, ScanRegion
from edge_scanner.scanner.archive import Archive
from edge_scanner.tile import Frame
from hil_sim import bench, scenario
from hil_sim.daemon import settings

REGION = ScanRegion(0.5, 0.5, 3.0, 2.0)
Z_UM = np.linspace(-6, 6, 13)


def config(*overrides: str) -> Config:
    camera = ["camera.width_px=512", "camera.height_px=512", "sim.seed=41"]
    return load(None, ["focus.mode=model", 'focus.providers=["cpu"]', *camera, *overrides])


@given(
    gain=st.floats(0.5, 2).flatmap(lambda g: st.sampled_from([g, -g])), offset=st.floats(-2, 2),
    wrong=st.integers(0, 1), noise=st.integers(0, 99),
)  # fmt: skip
def test_the_line_is_found_in_spite_of_a_minority(gain, offset, wrong, noise):
    read_um = (Z_UM - offset) / gain + np.random.default_rng(noise).normal(0, 0.02, len(Z_UM))
    read_um[:wrong] *= -1
    line = Line.through(read_um, Z_UM)
    assert line.gain == pytest.approx(gain, rel=0.05)
    assert line.offset_um == pytest.approx(offset, abs=0.15)
    assert line.residual_um < 0.2


@pytest.mark.parametrize("gain", [2.0, -0.5])
def test_a_line_maps_a_consensus_and_leaves_it_as_sure(gain):
    seen = Consensus(1.5, 0.2, 1.0, 6)
    there = Line(gain, 0.25).applied(seen)
    assert (there.dz_um, there.sigma_um) == pytest.approx((gain * 1.5 + 0.25, abs(gain) * 0.2))
    assert there.sure == seen.sure


def test_the_order_of_colours_that_fits_is_taken():
    line = 1.1 * Z_UM - 0.3
    noise = np.random.default_rng(1).normal(0, 2, len(Z_UM))
    assert fitted(line, noise, Z_UM, 0.94)[0] is False
    assert fitted(noise, line, Z_UM, 0.94)[0] is True


@pytest.mark.parametrize("read_um", [np.abs(Z_UM), np.where(np.arange(13) % 4 == 0, -Z_UM, Z_UM), np.full(13, np.nan)])
def test_readings_that_do_not_tell_defocus_are_no_calibration(read_um):
    with pytest.raises(UncalibratedError):
        fitted(read_um, read_um, Z_UM, 0.94)


def blue_first(_: int, frame: Frame) -> Frame:
    return replace(frame, pixels=np.ascontiguousarray(frame.pixels[..., ::-1]))


def probe_of(instrument: Config, *, bgr: bool = False) -> Probe:
    rig = build_rig(instrument)
    rig = replace(rig, camera=Wire(rig.camera, blue_first)) if bgr else rig
    rig.stage.open(), rig.camera.open(), rig.stage.home(), rig.illumination.on()
    return Probe(rig, instrument)


FLAT = "sim.surface=false"


@pytest.mark.parametrize(("bgr", "optics"), [(True, ()), (False, ("sim.spherical_waves=-0.08",))])
def test_an_instrument_unlike_the_trained_one_is_put_right(tmp_path, bgr, optics):
    """Blue comes first, or all is mirrored in z, which is blue first and a stage that counts the other way."""
    pytest.importorskip("onnxruntime", reason="learned focus needs the extra [cpu]")
    instrument = config(FLAT, *optics)
    probe = probe_of(instrument, bgr=bgr)
    found = measure_focus(probe, REGION)
    assert (found.swapped, found.line.gain < 0) == (True, not bgr)
    assert abs(found.line.gain) == pytest.approx(1, abs=0.1)
    found.save(tmp_path / "focus.json")
    right = Estimator(config(FLAT, *optics, f'focus.calibration="{tmp_path}/focus.json"'))
    assert_better(right, Estimator(instrument), probe)


def assert_better(calibrated: Estimator, plain: Estimator, probe: Probe) -> None:
    """Compare both at known distances from what is sharpest, on a place that calibration has not seen."""
    at = 1900.0, 1300.0
    climbed = ClassicalFocus(probe.config).run(0.0, lambda z: probe.snap(*at, z), True).result
    frames = [(z, probe.snap(*at, climbed.z_um - climbed.dz_um + z).pixels) for z in (-4.0, -1.5, 0.0, 1.5, 4.0)]
    off = [[abs(judge(pixels).dz_um - z) for z, pixels in frames] for judge in (calibrated.judge, plain.judge)]
    assert max(off[0]) <= probe.config.optics.depth_of_field_um
    assert np.mean(off[0]) < 0.7 * np.mean(off[1])


def some(instrument: Config) -> FocusCalibration:
    optics = instrument.optics
    sha256 = ModelFile.open("").sha256
    na = optics.numerical_aperture
    return FocusCalibration(
        "then", sha256, optics.magnification, na, optics.pixel_size_um, 36, True, Line(1.1, -0.2, 0.3)
    )


def test_a_calibration_reads_back_and_serves_no_other_objective_or_model(tmp_path):
    instrument, path = config(), tmp_path / "focus.json"
    named = config(f'focus.calibration="{path}"')
    with pytest.raises(SourceError, match="There is no focus calibration"):
        check_focus(named)
    some(instrument).save(path)
    assert named_focus_calibration(named, ModelFile.open("")) == some(instrument)
    assert check_focus(named) == "measured then"
    for other in ("optics.numerical_aperture=0.78", "optics.pixel_size_um=0.4", "optics.magnification=40"):
        with pytest.raises(SourceError, match=other.split("=")[0].split(".")[1]):
            check_focus(config(f'focus.calibration="{path}"', other))
    replace(some(instrument), model_sha256="0" * 64).save(path)
    with pytest.raises(SourceError, match="another focus model"):
        ModelFocus(named)


def test_a_scan_goes_on_with_its_own_calibration_only(tmp_path):
    path, plan = tmp_path / "secret" / "focus.json", ScanPlan(REGION, 512, 512, 0.5, 48)
    path.parent.mkdir()
    some(config()).save(path)
    archive = Archive(config(f'focus.calibration="{path}"', f'storage.root="{tmp_path}/scans"'))
    archive.prepare()
    folder = archive.create("scan", plan, "then")
    assert str(tmp_path) not in (folder / "scan.json").read_text()
    Journal(folder / "journal.sqlite").close()
    assert archive.unfinished("scan")[0] == folder
    replace(some(config()), swapped=False).save(path)
    with pytest.raises(ScannerError, match="the focus calibration is another file"):
        archive.unfinished("scan")


def test_a_damaged_calibration_is_refused(tmp_path):
    path = tmp_path / "focus.json"
    some(config()).save(path)
    text = path.read_text()
    for hurt in (text.replace("1.1", "1.2"), text[:50], "[]", "{}", "\0"):
        path.write_text(hurt)
        with pytest.raises(SourceError, match="Measure it"):
            check_focus(config(f'focus.calibration="{path}"'))


def test_an_objective_the_card_does_not_name_is_refused_everywhere_but_in_evaluation():
    low = config("optics.numerical_aperture=0.2", "optics.pixel_size_um=1.0")
    for refuses in (check_focus, ModelFocus):
        with pytest.raises(ConfigError, match=r"of 0\.25 to 0\.95; this objective has 0\.2,") as refused:
            refuses(low)
        assert "classical" in refused.value.advice
    assert check_focus(low.model_copy(update={"focus": config().focus.model_copy(update={"mode": "classical"})}))


UNLIKE = "sim.axial_colour_um=-0.45"
"""Blue focuses above red, the reverse of what the network was taught."""


def test_the_command_writes_the_file_on_hardware_in_the_loop(tmp_path, monkeypatch, capsys):
    """The real driver on an emulated controller, the camera a process of its own; the file serves the simulator too."""
    pytest.importorskip("onnxruntime", reason="learned focus needs the extra [cpu]")
    path, bench_folder = tmp_path / "focus.json", tmp_path / "b"
    path.write_text("what was there before does not matter")
    bench_folder.mkdir()
    case = scenario.load(Path(scenario.__file__).parent / "scenarios" / "grbl.toml")
    ours = ["camera.width_px=512", "camera.height_px=512", "optics.pixel_size_um=0.5", "sim.seed=41", FLAT, UNLIKE]
    given_ = [*settings(case, bench_folder, tmp_path / "out"), *ours, "sim.tissue_width_mm=2", "sim.tissue_height_mm=2"]
    words = ["--json", "--width-mm", "2", "--height-mm", "2", *(word for text in given_ for word in ("--set", text))]
    with bench.emulator(case.stage, bench_folder), bench.camera(load(None, given_), bench_folder):
        code, out, err = run_cli(monkeypatch, capsys, *words, "--set", f"focus.calibration={path}", "focus")
    assert code == 0, err
    told = json.loads(out)
    assert (told["swapped"], told["frames"]) == (True, 36)
    assert told["gain"] == pytest.approx(1, abs=0.1)
    assert told["residual_um"] < 0.94
    named = config(FLAT, UNLIKE, f'focus.calibration="{path}"')
    assert check_focus(named).startswith("measured 20")
    assert_better(Estimator(named), Estimator(config()), probe_of(named))


def test_without_a_file_to_write_the_command_is_wrong_usage(monkeypatch, capsys):
    code, out, err = run_cli(monkeypatch, capsys, "focus")
    assert (code, out) == (2, "")
    assert "focus.calibration" in err


def test_empty_glass_is_no_calibration(tmp_path):
    pytest.importorskip("onnxruntime", reason="learned focus needs the extra [cpu]")
    with pytest.raises(NoTextureError, match="Nothing was found to focus on"):
        measure_focus(probe_of(config()), ScanRegion(20.0, 20.0, 1.0, 1.0))


def test_the_shipped_card_names_its_objectives():
    file = ModelFile.open(str(SHIPPED))
    assert [o.lowest_na for o in file.objectives] == [0.25, 0.37, 0.67, 0.83]
    assert [o.highest_na for o in file.objectives] == [0.37, 0.67, 0.83, 0.95]
    assert file.stretch(config().optics) == pytest.approx(1.0)
    assert file.stretch(config("optics.numerical_aperture=0.95").optics) > 1.1

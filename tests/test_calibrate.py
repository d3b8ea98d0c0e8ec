"""Stage axes and backlash: what the simulator was told is found, and scans on a wrong stage come out right."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scan_rig import EXACT, calibrated_scan, homed_rig, levels_of, small_config

from edge_scanner.__main__ import main
from edge_scanner.calibrate import Prepared, prepare
from edge_scanner.calibrate.axes import NoTextureError, StageAxes, measure_axes
from edge_scanner.calibrate.backlash import measure_backlash
from edge_scanner.calibrate.frame import frame_of
from edge_scanner.calibrate.probe import Probe
from edge_scanner.calibrate.stage_file import StageCalibration
from edge_scanner.errors import ScannerError, SourceError
from edge_scanner.plan import ScanPlan, ScanRegion
from edge_scanner.report.report import true_axes, truth_errors_px
from edge_scanner.scanner.scan import make_plan, run_nested
from edge_scanner.sealed import write_sealed
from edge_scanner.sim.specimen import open_specimen

REGION = ScanRegion(0.0, 0.0, 0.8, 0.6)
PLAIN = ("sim.noise=false", "sim.vignetting=false", "sim.surface=false", "focus.mode=off")


def axes_of(turn_deg, scale=1.0, mirror=False, sigma=0.0):
    """The matrix by the simulator's convention: mirrored in x, then turned."""
    cos, sin = math.cos(math.radians(turn_deg)) * scale, math.sin(math.radians(turn_deg)) * scale
    sign = -1 if mirror else 1
    return StageAxes(sign * cos, sign * sin, -sin, cos, sigma)


def lit_probe(config):
    rig = homed_rig(config)
    rig.illumination.on()
    return Probe(rig, config)


@pytest.mark.parametrize(
    ("turn", "scale", "mirror"),
    [(0, 0, False), (1, 0, False), (-3, 0.01, False), (0, -0.01, True), (0.8, 0.004, True), (90, 0, False),
     (178, 0.01, True)],
)  # fmt: skip
def test_the_matrix_is_found_whatever_it_is(tmp_path, turn, scale, mirror):
    told = (f"sim.rotation_deg={turn}", f"sim.scale_error={scale}", f"sim.mirror={str(mirror).lower()}")
    found, _ = measure_axes(lit_probe(small_config(tmp_path, *PLAIN, *told)), REGION)
    wanted = axes_of(turn, 1 + scale, mirror)
    for name in ("xx", "xy", "yx", "yy"):
        assert getattr(found, name) == pytest.approx(getattr(wanted, name), abs=6e-4)
    assert found.mirrored is mirror
    assert math.remainder(found.rotation_deg - turn, 360) == pytest.approx(0, abs=0.04)
    assert found.pixel_size_um == pytest.approx(1 / (1 + scale), abs=5e-4)


def test_a_stage_that_scatters_says_how_little_is_known(tmp_path):
    off = []
    for seed in range(3):
        config = small_config(tmp_path, *PLAIN, "sim.stage_error_um=1.5", f"sim.seed={seed}")
        found, _ = measure_axes(lit_probe(config), REGION)
        off += [abs(found.xx - 1) / found.sigma, abs(found.xy) / found.sigma, abs(found.yy - 1) / found.sigma]
        assert 3e-4 < found.sigma < 1e-2
        assert found.exact(1.0) == axes_of(0)
    assert max(off) < 4


def test_without_texture_the_axes_stay_nominal_and_the_journal_says_so(tmp_path):
    config = small_config(tmp_path)
    empty = ScanRegion(5.0, 5.0, 0.2, 0.15)
    with pytest.raises(NoTextureError, match="Nothing was found"):
        measure_axes(lit_probe(config), empty)
    plan = make_plan(config, empty)
    (tmp_path / "scan").mkdir()
    assert prepare(config, homed_rig(config), plan, tmp_path / "scan").frame == plan.frame()


@given(turn=st.floats(-179, 179), scale=st.floats(0.5, 2), mirror=st.booleans())
def test_figures_of_a_matrix(turn, scale, mirror):
    axes = axes_of(turn, scale, mirror)
    assert axes.mirrored is mirror
    assert axes.rotation_deg == pytest.approx(turn, abs=1e-6)
    assert axes.pixel_size_um == pytest.approx(1 / scale)
    y, x = axes.to_px(12.5, -3.25)
    assert axes.to_um(y, x) == pytest.approx((12.5, -3.25))


@settings(max_examples=100)
@given(
    turn=st.floats(-3, 3), half=st.booleans(), scale=st.floats(0.95, 1.05), mirror=st.booleans(),
    size=st.tuples(st.floats(0.2, 3), st.floats(0.2, 3)), corner=st.tuples(st.floats(-5, 5), st.floats(-5, 5)),
)  # fmt: skip
def test_the_canvas_holds_the_region_and_no_more(turn, half, scale, mirror, size, corner):
    plan = ScanPlan(ScanRegion(*corner, *size), 192, 256, 1.0, 60)
    frame = frame_of(plan, axes_of(turn + 180 * half, scale, mirror))
    x, y = corner[0] * 1000, corner[1] * 1000
    at = [frame.to_px(x + a * size[0] * 1000, y + b * size[1] * 1000) for a in (0, 1) for b in (0, 1)]
    ys, xs = [p[0] for p in at], [p[1] for p in at]
    assert min(ys) == pytest.approx(0, abs=1e-6)
    assert min(xs) == pytest.approx(0, abs=1e-6)
    assert -1e-5 < frame.height_px - max(ys) < 1
    assert -1e-5 < frame.width_px - max(xs) < 1


@given(st.floats(-1.9e-4, 1.9e-4), st.floats(-1.9e-4, 1.9e-4), st.sampled_from([(1, 1), (-1, 1), (1, -1)]))
def test_what_cannot_be_told_from_an_exact_stage_is_one(a, b, signs):
    plan = ScanPlan(REGION, 192, 256, 1.0, 40)
    frame = frame_of(plan, StageAxes(signs[0] + a, b, a, signs[1] + b))
    assert (frame.xx, frame.xy, frame.yx, frame.yy) == (signs[0], 0, 0, signs[1])
    if signs == (1, 1):
        assert frame == plan.frame()


@pytest.mark.parametrize(("sigma", "told"), [(1e-4, True), (4e-4, True), (5e-4, False), (1e-2, False)])
def test_a_turn_counts_from_four_standard_errors_on(sigma, told):
    turned = axes_of(0.1, sigma=sigma)
    assert (turned.exact(1.0) == turned) is told
    assert (turned.exact(1.0) == axes_of(0)) is not told


@pytest.mark.parametrize("turn", [90, 20, -15, 100])
def test_a_turn_that_would_leave_gaps_is_refused(turn):
    with pytest.raises(ScannerError, match="gaps") as refused:
        frame_of(ScanPlan(ScanRegion(0, 0, 3, 2), 192, 256, 1.0, 20), axes_of(turn))
    assert "Turn the camera" in refused.value.advice


@pytest.mark.parametrize("scale", [0.5, 0.8, 1.3, 2.0])
def test_another_objective_is_noticed(scale):
    with pytest.raises(ScannerError, match="pixel is") as refused:
        frame_of(ScanPlan(REGION, 192, 256, 1.0, 40), axes_of(0.5, scale, True))
    assert "objective" in refused.value.advice


@settings(max_examples=30)
@given(
    turn=st.floats(-60, 60), scale=st.floats(0.9, 1.2), mirror=st.booleans(), overlap=st.integers(0, 96)
)  # fmt: skip
def test_no_accepted_turn_leaves_a_hole_between_tiles(turn, scale, mirror, overlap):
    plan = ScanPlan(ScanRegion(0, 0, 1.2, 1.0), 192, 256, 1.0, overlap)
    try:
        frame = frame_of(plan, axes_of(turn, scale, mirror))
    except ScannerError:
        return
    covered = np.zeros((frame.height_px + 800, frame.width_px + 800), bool)
    for t in plan:
        y, x = (round(v) + 400 for v in frame.tile_corner(t.x_um, t.y_um, 192, 256))
        covered[max(0, y - 1) : y + 193, max(0, x - 1) : x + 257] = True
    inner = []
    for a in np.linspace(0.2, 0.8, 60):
        for b in np.linspace(0.2, 0.8, 60):
            y, x = frame.to_px(a * 1200, b * 1000)
            inner.append(covered[int(y) + 400, int(x) + 400])
    assert all(inner)


def finished(config, folder):
    scan = calibrated_scan(config, folder)
    run_nested(scan)
    scan.close()
    return scan


@pytest.mark.parametrize(
    "wrong",
    [("rotation_deg=1",), ("scale_error=0.01",), ("mirror=true",),
     ("rotation_deg=-1.2", "mirror=true", "scale_error=0.005", "backlash_um=8", "stage_error_um=1")],
)  # fmt: skip
def test_a_scan_on_a_wrong_stage_is_right_to_a_tenth_of_a_pixel(tmp_path, wrong):
    config = small_config(tmp_path, *PLAIN, *(f"sim.{key}" for key in wrong))
    scan = finished(config, tmp_path / "scan")
    errors = truth_errors_px(scan.plan, true_axes(config, scan.frame), scan.records.all())
    assert len(errors) > 20
    assert errors.max() <= 0.1
    assert scan.mosaic.coverage > 0.995


def test_a_mirrored_scan_is_the_mirrored_specimen(tmp_path):
    config = small_config(tmp_path, *EXACT, "sim.mirror=true")
    level0 = levels_of(finished(config, tmp_path / "scan").folder)[0]
    assert np.array_equal(level0, open_specimen(config.sim, 1.0).read(0, 0, 600, 800)[:, ::-1])


def test_an_exact_rig_gives_the_specimen_with_calibration_too(tmp_path):
    config = small_config(tmp_path, *EXACT)
    scan = finished(config, tmp_path / "scan")
    assert scan.frame == scan.plan.frame()
    assert np.array_equal(levels_of(scan.folder)[0], open_specimen(config.sim, 1.0).read(0, 0, 600, 800))


def test_a_resumed_scan_measures_nothing_again(tmp_path):
    config = small_config(tmp_path, *PLAIN, "sim.rotation_deg=1")
    plan = make_plan(config, REGION)
    first = prepare(config, homed_rig(config), plan, tmp_path)
    silent = homed_rig(config)
    silent.camera.close()
    assert prepare(config, silent, plan, tmp_path) == Prepared(first.frame)
    assert first.frame != plan.frame()


def test_backlash_is_measured_along_both_axes(tmp_path):
    config = small_config(tmp_path, *PLAIN, "sim.backlash_um=6.5", "sim.rotation_deg=2", "sim.mirror=true")
    probe = lit_probe(config)
    axes, spot = measure_axes(probe, REGION)
    assert measure_backlash(probe, axes, spot) == pytest.approx((6.5, 6.5), abs=0.05)


def run_cli(monkeypatch, capsys, *args):
    monkeypatch.setattr("sys.argv", ["edge-scanner", "calibrate", *args])
    code = main()
    told = capsys.readouterr()
    return code, told.out, told.err


def small_file(tmp_path, *more):
    config = small_config(tmp_path, *PLAIN, f'stage.calibration="{tmp_path}/stage.json"',
                          f'camera.flat_field="{tmp_path}/flat.npz"', *more)  # fmt: skip
    sections = json.loads(config.model_dump_json())
    text = "\n".join(
        f"[{name}]\n" + "\n".join(f"{key} = {json.dumps(value)}" for key, value in section.items())
        for name, section in sections.items()
    )
    (tmp_path / "rig.toml").write_text(text)
    return config


def test_the_commands_write_files_that_scans_then_use(tmp_path, monkeypatch, capsys):
    config = small_file(tmp_path, "sim.rotation_deg=1", "sim.vignetting=true", "sim.backlash_um=3")
    given = ("--config", str(tmp_path / "rig.toml"), "--json", "--width-mm", "0.8", "--height-mm", "0.6")
    told = {}
    for verb in ("pixel-size", "backlash", "flat-field"):
        code, out, _ = run_cli(monkeypatch, capsys, *given, verb)
        assert code == 0
        told |= json.loads(out)
    assert told["rotation_deg"] == pytest.approx(1, abs=0.02)
    assert told["backlash_x_um"] == pytest.approx(3, abs=0.05)
    assert told["darkest_share"] == pytest.approx(0.88, abs=0.01)
    rig = homed_rig(config)
    rig.camera.close()
    made = prepare(config, rig, make_plan(config, REGION), tmp_path)
    assert made.shading is not None
    assert made.frame.xy == pytest.approx(math.sin(math.radians(1)), abs=3e-4)


def test_a_calibration_of_another_objective_or_a_damaged_one_is_refused_and_measured_anew(
    tmp_path, monkeypatch, capsys
):
    config = small_file(tmp_path)
    path = tmp_path / "stage.json"
    StageCalibration("now", 1.0, 10.0, axes_of(1)).save(path)
    with pytest.raises(SourceError, match="its magnification was 10"):
        StageCalibration.load(path, config)
    StageCalibration("now", 1.0, 20.0, axes_of(1), (1.0, 2.0)).save(path)
    assert StageCalibration.load(path, config).backlash_um == (1.0, 2.0)
    text = path.read_text()
    for hurt in (
        text.replace('"xy": 0.0', '"xy": 0.1'),
        text[:80],
        "[]",
        "{}",
        text.replace('"format": 1', '"format": 2'),
    ):
        path.write_text(hurt)
        with pytest.raises(SourceError):
            StageCalibration.load(path, config)
    write_sealed(path, "focus calibration", {"measured": "now", "swapped": False})
    with pytest.raises(SourceError, match="is not a stage calibration"):
        StageCalibration.load(path, config)
    code, _, _ = run_cli(monkeypatch, capsys, "--config", str(tmp_path / "rig.toml"), "--width-mm", "0.8", "pixel-size")
    assert code == 0
    assert StageCalibration.load(path, config).axes.exact(1.0) == axes_of(0)


def test_the_doctor_names_what_is_wrong_with_the_files(tmp_path, monkeypatch, capsys):
    small_file(tmp_path)
    StageCalibration("now", 1.0, 10.0, axes_of(1)).save(tmp_path / "stage.json")
    monkeypatch.setattr("sys.argv", ["edge-scanner", "check", "--config", str(tmp_path / "rig.toml"), "--json"])
    assert main() == 1
    findings = {f["what"]: f for f in json.loads(capsys.readouterr().out)["findings"]}
    assert "There is no flat field" in findings["flat field"]["detail"]
    assert "magnification was 10" in findings["stage calibration"]["detail"]
    assert not findings["flat field"]["ok"]
    assert not findings["stage calibration"]["ok"]


def test_a_command_without_a_file_to_write_is_wrong_usage(monkeypatch, capsys):
    for verb, key in (("flat-field", "camera.flat_field"), ("pixel-size", "stage.calibration")):
        code, out, err = run_cli(monkeypatch, capsys, verb)
        assert (code, out) == (2, "")
        assert key in err
    code, _, err = run_cli(monkeypatch, capsys, "--set", "stage.calibration=/nowhere/at/all.json", "backlash")
    assert code == 2
    assert "no such folder" in err


def test_calibrated_backlash_is_made_up_for(tmp_path):
    """Rows scanned from high x aim short by it: every tile is taken where it was planned."""
    config = small_config(tmp_path, *EXACT, "sim.backlash_um=8", f'stage.calibration="{tmp_path / "stage.json"}"')
    StageCalibration("now", 1.0, 20.0, None, (8.0, 8.0)).save(tmp_path / "stage.json")
    scan = calibrated_scan(config, tmp_path / "scan")
    truth = {tile.index: tile.truth for tile in scan.acquire()}
    scan.close()
    assert len(truth) == len(scan.plan)
    for target in scan.plan:
        assert truth[target.index].x_um == pytest.approx(target.x_um, abs=1e-6)
        assert truth[target.index].y_um == pytest.approx(target.y_um, abs=1e-6)


def test_backlash_within_the_error_of_the_stage_is_none(tmp_path):
    config = small_config(tmp_path, *EXACT, "stage.error_um=2", f'stage.calibration="{tmp_path / "stage.json"}"')
    StageCalibration("now", 1.0, 20.0, None, (1.5, 8.0)).save(tmp_path / "stage.json")
    prepared = prepare(config, homed_rig(config), make_plan(config, REGION), tmp_path)
    assert prepared.backlash_um == 0.0

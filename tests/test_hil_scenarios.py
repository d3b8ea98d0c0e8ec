"""Hardware in the loop: the real daemon on emulated controllers. A few of the scenarios; `hil_sim run` has all."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from hil_sim import __main__ as hil
from hil_sim import runner
from hil_sim.scenario import Scenario, load

SHIPPED = sorted(hil.SHIPPED.glob("*.toml"))


@pytest.mark.parametrize("name", ["noise", "unplug-moving", "stop-grbl", "mjpeg", "dead-lamp"])
def test_scenario(name, tmp_path):
    scenario = load(hil.SHIPPED / f"{name}.toml")
    unhurried = {"wall_s_max": 900.0}  # how fast is asked on a quiet machine, by `make hil`
    if scenario.budgets.stop_ms_max is not None:
        unhurried["stop_ms_max"] = 5000.0
    budgets = scenario.budgets.model_copy(update=unhurried)
    result = runner.run(scenario.model_copy(update={"budgets": budgets}), tmp_path)
    assert result.ok, [row for row in result.rows if not row.ok]
    told = json.loads((tmp_path / "hil.json").read_text())
    assert told["ok"]
    assert told["measured"]["truth_px_p95"] < 0.4
    assert (tmp_path / "path.svg").read_text().count("<circle") == 16


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_scenario_can_be_read(path):
    scenario = load(path)
    assert scenario.script
    assert scenario.stage.protocol in ("grbl", "squid", "asi", "sangaboard", "prior")


def test_a_missed_budget_is_told_and_a_scenario_inherits(tmp_path):
    (tmp_path / "base.toml").write_text((hil.SHIPPED / "grbl.toml").read_text())
    (tmp_path / "mine.toml").write_text('like = "base.toml"\nname = "mine"\n[budgets]\nseam_step_max = 0.5\n')
    scenario = load(tmp_path / "mine.toml")
    assert (scenario.name, scenario.budgets.seam_step_max) == ("mine", 0.5)
    assert scenario.stage == load(hil.SHIPPED / "grbl.toml").stage
    status = {"state": "IDLE", "outcome": "completed", "fault": None}
    status["report"] = {"rejected": 0, "holes": [], "peak_rss_mib": 100.0, "seam_step": 0.7}
    measured = {"trouble": "", "ended": "", "wall_s": 1.0, "refused_targets": 0, "light_left": 0.0, "status": status}
    measured |= {"truth_px_p95": 0.1, "specimen_psnr_db": 40.0}
    assert [row.what for row in runner.judge(scenario.budgets, measured) if not row.ok] == ["seam_step"]
    measured["light_left"] = 0.5
    assert [row.what for row in runner.judge(scenario.budgets, measured) if not row.ok] == ["light_left", "seam_step"]


@pytest.mark.parametrize("text", ["", 'name = "x"', "[stage\n", 'name = "x"\nscript = []\n[stage]\nprotocl = "grbl"\n'])
def test_a_scenario_that_does_not_fit_is_refused(text, tmp_path):
    (tmp_path / "bad.toml").write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "hil_sim", "run", str(tmp_path / "bad.toml")], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "cannot be used" in done.stderr
    assert "Traceback" not in done.stderr


def test_unknown_keys_are_refused():
    raw = tomllib.loads((hil.SHIPPED / "grbl.toml").read_text())
    with pytest.raises(ValueError, match="budgts"):
        Scenario.model_validate({**raw, "budgts": {}})


def test_no_emulator_knows_a_driver():
    """The two sides are written from the protocol, not from each other."""
    root = Path(hil.__file__).parent
    for path in [*root.glob("firmware/*.py"), root / "mechanics.py", root / "emulator.py", root / "terminal.py"]:
        assert "edge_scanner" not in path.read_text(), path

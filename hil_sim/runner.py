"""Runs a scenario: programs of the bench, the real daemon, a ZeroMQ client as the user interface; then the budgets."""

from __future__ import annotations

import json
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edge_scanner import config as configs
from edge_scanner.control.client import Client, RemoteError
from hil_sim import bench, measure
from hil_sim.daemon import Daemon, settings
from hil_sim.scenario import Budgets, Fault, Scenario, Step

BUSY = ("STARTING", "HOMING", "PREPARING", "SCANNING", "FINISHING", "EXPORTING")
POLL_S = 0.02
COAST_S = 0.25


@dataclass(frozen=True, slots=True)
class Row:
    """One budget and what was measured."""

    what: str
    measured: Any
    wanted: str
    ok: bool


@dataclass(slots=True)
class Result:
    """How a scenario went; `rows` is the table."""

    name: str
    rows: list[Row] = field(default_factory=list)
    measured: dict[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether every budget was held."""
        return all(row.ok for row in self.rows)


def run(scenario: Scenario, out: Path) -> Result:
    """Run a scenario; its scan, `hil.json` and `path.svg` are left in `out`.

    Parameters
    ----------
    scenario : Scenario
    out : Path
        An empty folder, or none yet.
    """
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="hil-") as name, ExitStack() as stack:
        folder = Path(name)
        overrides = settings(scenario, folder, out.resolve())
        config = configs.load(None, overrides)
        stage = stack.enter_context(bench.emulator(scenario.stage, folder))
        camera = stack.enter_context(bench.camera(config, folder))
        performance = _Performance(scenario, Daemon(overrides, folder), stage, camera)
        try:
            performance.play()
        finally:
            performance.measured["ended"] = performance.end()
        measured = performance.measured
        measured["refused_targets"] = stage.ask("heard")["refused"]
        frames = camera.ask("log")["frames"]
        scan_id = measured["status"].get("scan_id")
        if scan_id and measured["status"]["outcome"] == "completed":
            measured["truth_px_p95"] = measure.truth_px_p95(out / scan_id, config, frames)
            if scenario.budgets.specimen_psnr_db_min is not None:
                measured["specimen_psnr_db"] = measure.specimen_psnr_db(out / scan_id, config)
        if scan_id and frames:
            (out / "path.svg").write_text(measure.path_svg(out / scan_id, frames))
    result = Result(scenario.name, judge(scenario.budgets, measured), measured)
    (out / "hil.json").write_text(json.dumps({"ok": result.ok, **asdict(result)}, indent=1))
    return result


def judge(budgets: Budgets, measured: dict[str, Any]) -> list[Row]:
    """Return the table of budgets."""
    status, report = measured["status"], measured["status"].get("report") or {}
    rows = [
        Row("script", measured["trouble"] or "done", "done", not measured["trouble"]),
        Row("daemon", measured["ended"] or "ended well", "ended well", not measured["ended"]),
        _equal("state", status["state"], budgets.state),
        _equal("outcome", status["outcome"], budgets.outcome),
        _equal("fault_code", (status["fault"] or {}).get("code"), budgets.fault_code),
        _most("wall_s", measured["wall_s"], budgets.wall_s_max),
        _most("refused_targets", measured["refused_targets"], budgets.refused_targets_max),
    ]
    if budgets.outcome == "completed":
        rows += _completed(budgets, measured, report)
    if (most := budgets.stop_ms_max) is not None:
        rows.append(_most("stop_ms", measured.get("stop_ms"), most))
    if (most := budgets.moved_after_stop_um_max) is not None:
        rows.append(_most("moved_after_stop_um", measured.get("moved_after_stop_um"), most))
    return rows


def _completed(budgets: Budgets, measured: dict[str, Any], report: dict[str, Any]) -> list[Row]:
    """Return what is asked of a mosaic."""
    rows = [
        _most("rejected", report.get("rejected"), budgets.rejected_max),
        _most("holes", len(report.get("holes", "x" * 99)), budgets.holes_max),
        _most("peak_rss_mib", report.get("peak_rss_mib"), budgets.peak_rss_mib_max),
    ]
    if (most := budgets.seam_step_max) is not None:
        rows.append(_most("seam_step", report.get("seam_step"), most))
    if (most := budgets.truth_px_p95_max) is not None:
        rows.append(_most("truth_px_p95", measured.get("truth_px_p95"), most))
    if (least := budgets.specimen_psnr_db_min) is not None:
        got = measured.get("specimen_psnr_db")
        rows.append(Row("specimen_psnr_db", got, f">= {least:g}", got is not None and got >= least))
    return rows


class _Performance:
    """The script and the faults, on one daemon."""

    def __init__(self, scenario: Scenario, daemon: Daemon, stage: bench.Side, camera: bench.Side) -> None:
        self._scenario = scenario
        self._daemon = daemon
        self._sides = {"stage": stage, "camera": camera}
        self._waiting = list(scenario.faults)
        self._under_way: list[tuple[float, Fault]] = []
        self._client: Client | None = None
        self._began_s = time.monotonic()
        self.measured: dict[str, Any] = {"trouble": "", "status": {}, "wall_s": 0.0}

    def play(self) -> None:
        """Go through the script; what goes wrong is noted as trouble."""
        self._client = self._daemon.start()
        self._began_s = time.monotonic()
        try:
            for number, step in enumerate(self._scenario.script, 1):
                if wrong := self._step(step):
                    self.measured["trouble"] = f"step {number} ({step.do}): {wrong}"
                    break
        except Exception as error:  # noqa: BLE001 - any trouble is the scenario's result
            self.measured["trouble"] = f"{type(error).__name__}: {error}"
        self.measured["wall_s"] = round(time.monotonic() - self._began_s, 2)
        self.measured["status"] = self._client.status()

    def end(self) -> str:
        """End the daemon; return what is wrong with how it ended."""
        if self._client is not None:
            self._client.close()
        return self._daemon.end()

    def _step(self, step: Step) -> str:
        assert self._client is not None
        if step.do == "wait":
            return self._wait(step)
        if step.do == "kill":
            self._client.close()
            self._daemon.kill()
            self._client = self._daemon.start()
            return ""
        try:
            self._command(step, self._client)
        except RemoteError as error:
            return "" if error.code == step.refused else f"{error.code}: {error}"
        return f"it was not refused with {step.refused}" if step.refused else ""

    def _command(self, step: Step, client: Client) -> None:
        if step.do == "scan" and step.again:
            client.scan(resume=client.scans()[-1]["scan_id"])
        elif step.do == "scan":
            client.scan(**dict(zip(("x_mm", "y_mm", "width_mm", "height_mm"), step.region_mm, strict=True)))
        elif step.do == "stop":
            self._stop(client)
        else:
            getattr(client, step.do)()
        if step.do in ("home", "reset"):
            self._wait(Step(do="wait", state="" if step.do == "home" else "IDLE"))

    def _stop(self, client: Client) -> None:
        """Stop, and measure how soon the halt bytes came and how far the load went afterwards, once at rest."""
        stage = self._sides["stage"]
        stage.ask("heard")  # from here on
        asked_s = time.monotonic()
        client.stop()
        heard = stage.ask("heard")
        if heard["halt_t"] is not None:
            stop_ms = round(1000 * (heard["halt_t"] - asked_s), 2)
            self.measured["stop_ms"] = max(stop_ms, self.measured.get("stop_ms", 0.0))
        time.sleep(COAST_S)
        first = stage.ask("truth")
        time.sleep(COAST_S)
        last = stage.ask("truth")
        moved = max(abs(first[axis] - last[axis]) for axis in ("x_um", "y_um", "z_um"))
        self.measured["moved_after_stop_um"] = round(moved, 3)

    def _wait(self, step: Step) -> str:
        assert self._client is not None
        deadline_s = self._began_s + self._scenario.budgets.wall_s_max
        while True:
            status = self._client.status()
            self._fire(status)
            state = status["state"]
            if step.state and state == step.state:
                return ""
            if not step.state and (status["done"] >= step.tiles if step.tiles else state not in BUSY):
                return ""
            if step.tiles and state not in BUSY:
                return f"the scan ended before tile {step.tiles}"
            if time.monotonic() > deadline_s:
                return f"still {state} after {self._scenario.budgets.wall_s_max:g} s"
            time.sleep(POLL_S)

    def _fire(self, status: dict[str, Any]) -> None:
        """Let happen what is due, and end what has lasted."""
        now_s = time.monotonic()
        for fault in list(self._waiting):
            if status["done"] >= fault.after_tiles and now_s - self._began_s >= fault.after_s:
                self._waiting.remove(fault)
                self._sides[fault.on].ask(**fault.what)
                if fault.then is not None:
                    self._under_way.append((now_s + fault.lasts_s, fault))
        for entry in list(self._under_way):
            if now_s >= entry[0]:
                self._under_way.remove(entry)
                self._sides[entry[1].on].ask(**(entry[1].then or {}))


def _equal(what: str, measured: Any, wanted: Any) -> Row:
    return Row(what, measured, str(wanted), measured == wanted)


def _most(what: str, measured: float | None, most: float) -> Row:
    return Row(what, measured, f"<= {most:g}", measured is not None and measured <= most)

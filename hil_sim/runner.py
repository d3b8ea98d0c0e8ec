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
from edge_scanner.config import Config
from edge_scanner.control.client import Client, RemoteError
from hil_sim import bench, measure
from hil_sim.daemon import LIGHTS, Daemon, settings
from hil_sim.hardship import small_disk
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
        folder, root = Path(name), out.resolve()
        sides: dict[str, Any] = {}
        if scenario.disk_mb:
            root /= "disk"
            sides["disk"] = stack.enter_context(small_disk(root, scenario.disk_mb))
        config = configs.load(None, settings(scenario, folder, root))
        sides["stage"] = stack.enter_context(bench.emulator(scenario.stage, folder))
        open_camera = bench.mjpeg_camera if scenario.camera == "mjpeg" else bench.camera
        sides["camera"] = stack.enter_context(open_camera(config, folder))
        stream = sides["camera"].ask("url")["url"] if scenario.camera == "mjpeg" else ""
        sides["daemon"] = Daemon(settings(scenario, folder, root, stream), folder)
        measured = _perform(scenario, sides)
        frames = sides["camera"].ask("log")["frames"]
        _measure(measured, scenario, root, config, frames)
        if (scan_id := measured["status"].get("scan_id")) and frames:
            (out / "path.svg").write_text(measure.path_svg(root / scan_id, frames))
    result = Result(scenario.name, judge(scenario.budgets, measured), measured)
    (out / "hil.json").write_text(json.dumps({"ok": result.ok, **asdict(result)}, indent=1))
    return result


def _perform(scenario: Scenario, sides: dict[str, Any]) -> dict[str, Any]:
    """Play the script to its end and return what was seen meanwhile."""
    performance = _Performance(scenario, sides)
    try:
        performance.play()
    finally:
        performance.measured["ended"] = performance.end()
    performance.look_at_light()
    performance.measured["refused_targets"] = sides["stage"].ask("heard")["refused"]
    return performance.measured


def _measure(measured: dict[str, Any], scenario: Scenario, root: Path, config: Config, frames: measure.Frames) -> None:
    """Add what a completed scan is measured by."""
    status = measured["status"]
    if not status.get("scan_id") or status["outcome"] != "completed":
        return
    measured["truth_px_p95"] = measure.truth_px_p95(root / status["scan_id"], config, frames)
    if scenario.budgets.specimen_psnr_db_min is not None:
        measured["specimen_psnr_db"] = measure.specimen_psnr_db(root / status["scan_id"], config)


def judge(budgets: Budgets, measured: dict[str, Any]) -> list[Row]:
    """Return the table of budgets."""
    status, report = measured["status"], measured["status"].get("report") or {}
    rows = [
        Row("script", measured["trouble"] or "done", "done", not measured["trouble"]),
        Row("daemon", measured["ended"] or "ended well", "ended well", not measured["ended"]),
        _equal("state", status["state"], budgets.state),
        _equal("outcome", status["outcome"], budgets.outcome or None),
        _equal("fault_code", (status["fault"] or {}).get("code"), budgets.fault_code),
        _most("wall_s", measured["wall_s"], budgets.wall_s_max),
        _most("refused_targets", measured["refused_targets"], budgets.refused_targets_max),
        _most("light_left", measured["light_left"], budgets.light_left_max),
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

    def __init__(self, scenario: Scenario, sides: dict[str, Any]) -> None:
        self._scenario = scenario
        self._sides = sides
        self._daemon: Daemon = sides["daemon"]
        self._waiting = list(scenario.faults)
        self._under_way: list[tuple[float, Fault]] = []
        self._client: Client | None = None
        self._hanging: list[tuple[Client, Any]] = []
        self._began_s = time.monotonic()
        self.measured: dict[str, Any] = {"trouble": "", "status": {}, "wall_s": 0.0, "light_left": 0.0}

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
        status = self.measured["status"] = self._client.status()
        if status["state"] not in BUSY:
            self.look_at_light()

    def look_at_light(self) -> None:
        """Note how bright the lamp is where it should be off."""
        if self._scenario.stage.protocol in LIGHTS:
            left = self._sides["stage"].ask("truth")["light"]
            self.measured["light_left"] = max(left, self.measured["light_left"])

    def end(self) -> str:
        """End the daemon; return what is wrong with how it ended."""
        for _, events in self._hanging:
            events.close()
        for client in (self._client, *(client for client, _ in self._hanging)):
            if client is not None:
                client.close()
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
        if step.do == "leave":
            self._leave(step.hold_s)
            return ""
        try:
            self._command(step, self._client)
        except RemoteError as error:
            return "" if error.code == step.refused else f"{error.code}: {error}"
        return f"it was not refused with {step.refused}" if step.refused else ""

    def _leave(self, for_s: float) -> None:
        """Hang, subscribed and with the lease, as a user interface whose machine sleeps; another one comes later."""
        assert self._client is not None
        events = self._client.events()
        next(events)
        self._hanging.append((self._client, events))
        time.sleep(for_s)
        self._client = self._daemon.client()

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
            self._wait(Step(do="wait", state=step.state if step.do == "home" else "IDLE"))

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
        self.look_at_light()
        time.sleep(COAST_S)
        first = stage.ask("truth")
        time.sleep(COAST_S)
        last = stage.ask("truth")
        moved = max(abs(first[axis] - last[axis]) for axis in ("x_um", "y_um", "z_um"))
        self.measured["moved_after_stop_um"] = round(moved, 3)

    def _wait(self, step: Step) -> str:
        assert self._client is not None
        deadline_s = self._began_s + self._scenario.budgets.wall_s_max
        until_s = time.monotonic() + step.hold_s
        while True:
            status = self._client.status()
            self._fire(status)
            state = status["state"]
            if time.monotonic() < until_s:
                time.sleep(POLL_S)
                continue
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

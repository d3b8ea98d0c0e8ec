"""The scanner: one job at a time in one thread, seen by the control thread through methods that return at once."""

from __future__ import annotations

import contextlib
import logging
import secrets
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edge_scanner import __version__
from edge_scanner.abort import Abort
from edge_scanner.calibrate import Prepared, prepare
from edge_scanner.config import Config
from edge_scanner.devices.rig import Rig
from edge_scanner.errors import (
    AbortedError,
    EmergencyStopError,
    NotFoundError,
    PositionUnknownError,
    ScannerError,
    StateError,
    StoreError,
)
from edge_scanner.journal import Journal
from edge_scanner.plan import ScanPlan, ScanRequest
from edge_scanner.report import ScanReport, write_report
from edge_scanner.report.picture import eight_bit, jpeg, shrunk
from edge_scanner.report.report import Run, save
from edge_scanner.scanner.archive import Archive
from edge_scanner.scanner.machine import Machine, Publish
from edge_scanner.scanner.pipeline import Pipeline
from edge_scanner.scanner.pulse import Pulse
from edge_scanner.scanner.scan import Scan, make_plan
from edge_scanner.state import BUSY, Outcome, State
from edge_scanner.tile import Pixels, Tile, Verdict

_log = logging.getLogger(__name__)
PREVIEW_PX = 640
SPARE_S = 10.0
"""What a step may take beyond the time-outs of stage and camera before its thread counts as hung."""
WHOLE_SLIDE_S = 120.0
WHOLE_SLIDE_PX_S = 2e6
"""A pass over the whole mosaic may take so long: a constant, and so many pixels a second."""
ROOM_S = 1.0
"""How often a scan that waits for room looks whether there is some."""


class _Run:
    """What can be asked of the scan under way from another thread."""

    def __init__(self, scan_id: str, plan: ScanPlan) -> None:
        self.scan_id, self.plan = scan_id, plan
        self.abort = Abort()
        self.done = 0
        self.began_s = time.monotonic()
        self.pipeline: Pipeline | None = None
        self.scan: Scan | None = None


class Scanner:
    """Homes, scans and exports, one job at a time; implements the control server's `ScannerPort`.

    Parameters
    ----------
    config : Config
    rig : Rig
    publish : callable
        `publish(topic, fields)` of events; thread-safe, never blocks.

    Attributes
    ----------
    pulse : Pulse
        Which busy threads are overdue.
    """

    def __init__(self, config: Config, rig: Rig, publish: Publish) -> None:
        self.pulse = Pulse(config.stage.timeout_s + config.camera.timeout_s + SPARE_S)
        self._config, self._rig, self._publish = config, rig, publish
        self._machine = Machine(publish)
        self._archive = Archive(config)
        self._changed = threading.Condition()
        self._job: Callable[[], None] | None = None
        self._busy = self._ending = self._reset_wanted = False
        self._paused = self._cancelled = False
        self._homed = False
        self._run: _Run | None = None
        self._latest: Pixels | None = None
        self._report: dict[str, Any] | None = None
        self._export: subprocess.Popen[str] | None = None
        self._identities: dict[str, str] = {}
        self._thread = threading.Thread(target=self._work, name="scan")

    # -- life ---------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Connect the devices, moving nothing, and become IDLE.

        Raises
        ------
        ScannerError
            When the storage root or a device cannot be used.
        """
        self._archive.prepare()
        try:
            self._identities = {"stage": self._rig.stage.open(), "camera": self._rig.camera.open()}
        except BaseException:
            self._rig.stage.close()
            self._rig.camera.close()
            raise
        self._rig.illumination.off()
        self._thread.start()
        self._machine.advance(State.IDLE)

    def close(self) -> None:
        """End the work under way, stage first, and close the devices."""
        self.shutdown()
        if self._thread.is_alive():
            self._thread.join()
        self._rig.illumination.off()
        self._rig.camera.close()
        self._rig.stage.close()

    # -- reads --------------------------------------------------------------------------------------------------

    def state(self) -> State:
        """Return the present state."""
        return self._machine.state

    def hello(self) -> dict[str, Any]:
        """Return versions, capabilities and execution providers."""
        camera = self._config.camera
        return {
            "name": "edge-scanner",
            "version": __version__,
            "state": self.state().value,
            "capabilities": {
                "scan": ["region", "plan", "resume"],
                "focus": self._config.focus.mode,
                "codec": self._config.codec,
                "camera": {k: getattr(camera, k) for k in ("width_px", "height_px", "channels", "bits")},
                "pixel_size_um": self._config.optics.pixel_size_um,
                "limits_um": asdict(self._config.stage.limits),
            },
            "devices": self._identities,
            "providers": _providers(),
        }

    def status(self) -> dict[str, Any]:
        """Return the snapshot; see README for its keys."""
        run = self._run
        tiles, done = (len(run.plan), run.done) if run else (0, 0)
        pipeline, scan = (run.pipeline, run.scan) if run else (None, None)
        share = done / tiles if tiles else 0.0
        elapsed_s = time.monotonic() - run.began_s if run else 0.0
        scanning = self.state() in (State.SCANNING, State.PAUSED)
        usage = shutil.disk_usage(self._archive.root)
        return {
            **self._machine.snapshot(),
            "progress": round(share, 4),
            "tiles": tiles,
            "done": done,
            "durable": scan.durable_tiles if scan else 0,
            "eta_s": round(elapsed_s * (1 - share) / share, 1) if scanning and share else None,
            "homed": self._homed,
            "providers": _providers(),
            "buffer": {
                "bytes": pipeline.tiles.nbytes if pipeline else 0,
                "high_bytes": pipeline.tiles.high_water_bytes if pipeline else 0,
                "stall_s": round(pipeline.tiles.stall_s, 3) if pipeline else 0.0,
            },
            "disk": {"free_bytes": usage.free, "reserve_bytes": int(self._config.storage.reserve_mb * 1e6)},
            "thermal": _thermal(),
            "stages": scan.timings.summary() if scan else {},
            "report": self._report,
        }

    def scans(self) -> list[dict[str, Any]]:
        """Return every scan on the disk; the one under way has the daemon's state."""
        run, busy = self._run, self.state() in BUSY
        entries = self._archive.list()
        for n, entry in enumerate(entries):
            if run and entry["scan_id"] == run.scan_id and busy and not entry["outcome"]:
                entries[n] = {**entry, "state": self.state().value, "done": run.done}
        return entries

    def preview(self) -> bytes | None:
        """Return the latest frame as JPEG; None before the first."""
        latest = self._latest
        return None if latest is None else jpeg(eight_bit(shrunk(latest, PREVIEW_PX)))

    # -- commands -----------------------------------------------------------------------------------------------

    def home(self) -> None:
        """Start homing."""
        self._begin("home", State.HOMING, self._home)

    def scan(self, request: ScanRequest) -> str:
        """Check a request, start the scan and return its id."""
        if request.resume is not None:
            return self._resume_scan(request.resume)
        plan = request.plan or make_plan(self._config, request.region)  # type: ignore[arg-type]
        if not self._homed:
            raise PositionUnknownError("The stage's position is not known.", "Send home first.")
        self._check(plan)
        scan_id = _new_id()
        self._begin("scan", State.PREPARING, lambda: self._new_scan(scan_id, plan), scan_id)
        return scan_id

    def _resume_scan(self, scan_id: str) -> str:
        folder, plan, started = self._archive.unfinished(scan_id)
        self._check(plan)
        self._begin("scan", State.PREPARING, lambda: self._go_on(scan_id, plan, folder, started), scan_id)
        return scan_id

    def pause(self) -> None:
        """Pause after the tile in hand."""
        with self._changed:
            self._paused = True

    def resume(self) -> None:
        """Go on with a paused scan."""
        with self._changed:
            self._paused = False
            self._changed.notify_all()

    def cancel(self) -> None:
        """End the work under way; what was scanned is kept, and its mosaic completed."""
        with self._changed:
            self._cancelled, self._paused = True, False
            self._changed.notify_all()
        if self.state() is State.HOMING:
            self._homed = False
            self._rig.stage.stop()
        if (export := self._export) is not None:
            export.terminate()

    def stop(self) -> None:
        """Emergency stop: halt the stage now, in this thread, then latch."""
        self._rig.stage.stop()
        self._homed = False
        error = EmergencyStopError("The emergency stop was pressed.", "Clear the cause, then send reset and home.")
        self._machine.fail(error)
        if (run := self._run) is not None:
            run.abort.set(error)
        with self._changed:
            self._paused, self._reset_wanted = False, False
            self._changed.notify_all()
        if (export := self._export) is not None:
            export.terminate()
        self._rig.illumination.off()

    def reset(self) -> None:
        """Leave FAULT for IDLE with the position unknown, as soon as the failed work has ended."""
        with self._changed:
            self._homed = False
            if self._busy:
                self._reset_wanted = True
            else:
                self._machine.clear()

    def export(self, scan_id: str) -> None:
        """Start exporting the OME-TIFF of an ended scan."""
        folder = self._archive.folder(scan_id)
        if not (folder / "slide.ome.zarr").is_dir():
            raise NotFoundError(f"The scan {scan_id} has no mosaic to export.", "Scan again.")
        self._begin("export", State.EXPORTING, lambda: self._export_again(folder))

    def shutdown(self) -> None:
        """End the work under way, stage first, and stop the worker; the state becomes STOPPED when it has."""
        if self.state() in BUSY:
            self._rig.stage.stop()
        if (run := self._run) is not None:
            run.abort.set()
        with self._changed:
            self._ending, self._paused = True, False
            self._changed.notify_all()
        if (export := self._export) is not None:
            export.terminate()
        if not self._thread.is_alive():
            self._machine.stopped()

    # -- the worker ---------------------------------------------------------------------------------------------

    def _begin(self, command: str, state: State, job: Callable[[], None], scan_id: str | None = None) -> None:
        with self._changed:
            if self._busy or self._job:
                raise StateError(f"{command} is not possible while work is ending.", "Try again in a moment.")
            self._machine.begin(command, state, scan_id)
            self._paused = self._cancelled = False
            self._job = job
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._job is not None or self._ending)
                if self._ending:
                    break
                job, self._job, self._busy = self._job, None, True
            self._do(job)
            with self._changed:
                self._busy = False
                if self._reset_wanted:
                    self._reset_wanted = False
                    self._machine.clear()
        self._machine.stopped()

    def _do(self, job: Callable[[], None] | None) -> None:
        try:
            assert job is not None
            self.pulse.step()
            job()
            self._machine.advance(State.IDLE)
        except AbortedError:
            self._machine.advance(State.IDLE)
        except BaseException as error:  # noqa: BLE001  a failed job is a latched fault, the daemon lives on
            if not isinstance(error, ScannerError):
                _log.exception("The scan failed.")
            self._homed = False
            self._machine.fail(error)
        finally:
            self._rig.illumination.off()
            self.pulse.rest()
            self._run = self._run if self.state() is State.IDLE else None

    def _home(self) -> None:
        self._homed = False
        self.pulse.step(4 * self._config.stage.timeout_s + SPARE_S)  # three axes, one after the other
        try:
            self._rig.stage.home()
        except EmergencyStopError:
            if self._cancelled or self._ending:
                return
            raise
        self._homed = not self._cancelled

    def _check(self, plan: ScanPlan) -> None:
        camera, pixel_size_um = self._config.camera, self._config.optics.pixel_size_um
        given = (plan.tile_width_px, plan.tile_height_px, plan.pixel_size_um)
        if given != (camera.width_px, camera.height_px, pixel_size_um):
            raise ScannerError(
                f"The plan is for tiles of {given[0]} x {given[1]} px at {given[2]} um; the camera gives "
                f"{camera.width_px} x {camera.height_px} px at {pixel_size_um} um.",
                "Make the plan with this configuration.",
                code="plan.differs",
            )
        plan.check_limits(self._config.stage.limits, self._config.focus.z_start_um)
        self._archive.check_room(plan)

    def _new_scan(self, scan_id: str, plan: ScanPlan) -> None:
        started = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self._scan(scan_id, plan, self._archive.create(scan_id, plan, started), started)

    def _go_on(self, scan_id: str, plan: ScanPlan, folder: Path, started: str) -> None:
        self._home()
        if self._homed:
            self._scan(scan_id, plan, folder, started, resume=True)

    def _scan(self, scan_id: str, plan: ScanPlan, folder: Path, started: str, *, resume: bool = False) -> None:
        run = self._run = _Run(scan_id, plan)
        self._report = None
        prepared = self._prepare(run, folder)
        began_s = self._rig.clock.now_s()
        resume = resume and (folder / "slide.ome.zarr" / "zarr.json").is_file()
        scan = run.scan = Scan(
            self._config,
            self._rig,
            plan,
            folder,
            scan_id=scan_id,
            acquired=started,
            wait_if_paused=self._wait_if_paused,
            aborted=self._aborted,
            on_stored=lambda chunks: self._publish("chunk", {"scan_id": scan_id, "chunks": chunks}),
            prepared=prepared,
            resume=resume,
        )
        try:
            if resume:
                self.pulse.step(self._whole_slide_s(scan))
                scan.recover()
                scan.check_slide()
                run.done = scan.durable_tiles
            self._machine.advance(State.SCANNING)
            pipeline = run.pipeline = Pipeline(
                scan, run.abort, cancelled=lambda: self._cancelled, on_tile=self._on_tile, pulse=self.pulse
            )
            pipeline.run()
            outcome = Outcome.CANCELLED if self._cancelled else Outcome.COMPLETED
            self._machine.advance(State.FINISHING)
            report = self._finish(scan, pipeline, outcome, self._rig.clock.now_s() - began_s)
            if outcome is Outcome.COMPLETED and self._config.export.auto:
                self._machine.advance(State.EXPORTING)
                if not self._export_tiff(folder):
                    outcome = Outcome.CANCELLED
            self._publish_report(scan, report, outcome)
        except AbortedError:
            scan.commit()  # the daemon ends: the scan stays unfinished, and keeps what it has
            raise
        except BaseException:
            with contextlib.suppress(ScannerError):  # what failed first is the cause
                scan.commit()
                self._end(scan, Outcome.FAILED)
            raise
        finally:
            scan.close()

    def _prepare(self, run: _Run, folder: Path) -> Prepared:
        """Calibrate before the first tile; a scan cancelled meanwhile is completed, empty, without."""
        try:
            return prepare(self._config, self._rig, run.plan, folder, aborted=self._aborted)
        except AbortedError:
            if not self._cancelled:
                raise
            return Prepared(run.plan.frame())
        except BaseException:
            with closing(Journal(folder / "journal.sqlite")) as journal:
                journal.note("outcome", Outcome.FAILED.value)
            self._machine.end_scan(Outcome.FAILED)
            raise

    def _finish(self, scan: Scan, pipeline: Pipeline, outcome: Outcome, scan_s: float) -> ScanReport:
        self.pulse.step(self._whole_slide_s(scan))
        summary = scan.registrar.summary()
        run = Run(
            scan_id=scan.scan_id,
            outcome=outcome.value,
            wall_s=time.monotonic() - (self._run.began_s if self._run else 0.0),
            scan_s=scan_s,
            stall_s=pipeline.tiles.stall_s,
            buffer_high_bytes=pipeline.tiles.high_water_bytes,
            coverage=scan.mosaic.coverage,
            residual_px=(summary.residual_px_p50, summary.residual_px_p95),
        )
        records = scan.records.all()
        return write_report(scan.folder, run, self._config, scan.plan, scan.frame, scan.store, records, scan.timings)

    def _publish_report(self, scan: Scan, report: ScanReport, outcome: Outcome) -> None:
        tiff = "slide.ome.tif" if (scan.folder / "slide.ome.tif").exists() else None
        paths: dict[str, str | None] = {
            "store": "slide.ome.zarr",
            "tiff": tiff,
            "report": "report.json",
            "thumbnail": "thumbnail.png",
        }
        wall_s = round(time.monotonic() - (self._run.began_s if self._run else 0.0), 3)
        report = replace(report, outcome=outcome.value, paths=paths, wall_s=wall_s)
        save(scan.folder, report)
        root = scan.folder.resolve()
        absolute = {name: str(root / path) if path else None for name, path in paths.items()}
        self._report = {**asdict(report), "paths": absolute}
        self._end(scan, outcome)

    def _end(self, scan: Scan, outcome: Outcome) -> None:
        scan.journal.note("outcome", outcome.value)
        self._machine.end_scan(outcome)

    def _aborted(self) -> bool:
        """Tell whether to end; asked before every move and frame, and so the heartbeat of the scan thread."""
        self.pulse.step()
        run = self._run
        return self._cancelled or bool(run and run.abort)

    @staticmethod
    def _whole_slide_s(scan: Scan) -> float:
        return WHOLE_SLIDE_S + scan.frame.height_px * scan.frame.width_px / WHOLE_SLIDE_PX_S

    def _wait_if_paused(self) -> None:
        self._wait_for_room()
        if not self._paused:
            return
        run = self._run
        with self._changed:
            if self._machine.advance(State.PAUSED, only_from=State.SCANNING):
                self.pulse.rest()
                self._changed.wait_for(lambda: not self._paused or bool(run and run.abort))
                self._machine.advance(State.SCANNING, only_from=State.PAUSED)

    def _wait_for_room(self) -> None:
        """Pause before the reserve of the disk is touched; go on by itself when there is room again."""
        run = self._run
        if run is None or self._archive.room_bytes() > 0:
            return
        self._machine.advance(State.PAUSED, only_from=State.SCANNING)
        missing_mb = -self._archive.room_bytes() / 1e6
        message = f"The disk is down to the reserve; the scan waits until {missing_mb:.0f} MB more are free."
        _log.warning(message)
        self._publish("log", {"level": "warning", "code": "disk.low", "message": message})
        self.pulse.rest()
        with self._changed:
            while not (run.abort or self._cancelled) and self._archive.room_bytes() <= self._archive.hysteresis_bytes:
                self._changed.wait(timeout=ROOM_S)
        self._machine.advance(State.SCANNING, only_from=State.PAUSED)

    def _on_tile(self, tile: Tile) -> None:
        run = self._run
        if run is None:
            return
        run.done += 1
        if tile.pixels is not None:
            self._latest = tile.pixels
        told: dict[str, Any] = {"scan_id": run.scan_id, "index": tile.index, "row": tile.row, "col": tile.col}
        told |= {"verdict": tile.verdict.value, "attempts": tile.attempts}
        if tile.focus:
            told |= {"z_um": tile.focus.z_um, "in_focus": tile.focus.in_focus, "frames": tile.focus.frames}
        if tile.verdict is Verdict.REJECTED:
            told["reason"] = tile.reason
        self._publish("tile", told)
        share = round(run.done / len(run.plan), 4)
        self._publish("progress", {"scan_id": run.scan_id, "done": run.done, "tiles": len(run.plan), "share": share})

    # -- export -------------------------------------------------------------------------------------------------

    def _export_again(self, folder: Path) -> None:
        self._export_tiff(folder)

    def _export_tiff(self, folder: Path) -> bool:
        """Export in a process of its own, so that its memory and its crashes are its own; False: cancelled."""
        export = self._config.export
        command = [sys.executable, "-m", "edge_scanner", "export", str(folder / "slide.ome.zarr")]
        command += [str(folder / "slide.ome.tif"), "--compression", export.compression, "--overwrite", "--json"]
        if export.compression != "keep":
            command += ["--quality", str(export.quality)]
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as child:
            self._export = child
            self.pulse.rest()  # the child is a process of its own, which cancel can end
            if self._cancelled or self._ending:
                child.terminate()
            _, complaint = child.communicate()
            self._export = None
        if child.returncode == 0:
            return True
        if self._cancelled:
            return False
        if self._ending:
            raise AbortedError("The export was ended.")
        raise StoreError(f"The export failed: {complaint.strip().splitlines()[-1] if complaint.strip() else 'killed'}")


def _new_id() -> str:
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def _providers() -> dict[str, list[str]]:
    return {"requested": [], "actual": []}


def _thermal() -> dict[str, float | None]:
    """Return the hottest thermal zone in degrees Celsius, where the kernel tells."""
    hottest = None
    for zone in Path("/sys/class/thermal").glob("thermal_zone*/temp"):
        try:
            hottest = max(hottest or -273.0, int(zone.read_text()) / 1000)
        except (OSError, ValueError):
            continue
    return {"max_c": hottest}

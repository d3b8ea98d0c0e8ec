"""The scanner: one job at a time in one thread, seen by the control thread through methods that return at once."""

from __future__ import annotations

import logging
import secrets
import shutil
import threading
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edge_scanner import __version__
from edge_scanner.board import Board
from edge_scanner.calibrate import named_flat_field, named_stage_calibration
from edge_scanner.config import Config
from edge_scanner.devices.rig import Rig
from edge_scanner.errors import (
    AbortedError,
    EmergencyStopError,
    NotFoundError,
    PositionUnknownError,
    ScannerError,
    StateError,
)
from edge_scanner.focus import check_focus
from edge_scanner.plan import ScanPlan, ScanRequest
from edge_scanner.report.picture import eight_bit, jpeg, shrunk
from edge_scanner.scanner.archive import Archive
from edge_scanner.scanner.child import ExportChild
from edge_scanner.scanner.engine import FocusEngine
from edge_scanner.scanner.job import Context, ScanJob
from edge_scanner.scanner.machine import Machine, Publish
from edge_scanner.scanner.pulse import Pulse
from edge_scanner.scanner.scan import make_plan
from edge_scanner.scanner.wishes import Wishes
from edge_scanner.state import BUSY, State

_log = logging.getLogger(__name__)
PREVIEW_PX = 640
SPARE_S = 10.0
"""What a step may take beyond the time-outs of stage and camera before its thread counts as hung."""


class Scanner:
    """Homes, scans and exports, one job at a time; implements the control server's `ScannerPort`.

    Parameters
    ----------
    config : Config
    rig : Rig
    publish : callable
        `publish(topic, fields)` of events; thread-safe, never blocks.
    pulse : Pulse, optional
        Which busy threads are overdue; made from the devices' time-outs when omitted.
    """

    def __init__(self, config: Config, rig: Rig, publish: Publish, pulse: Pulse | None = None) -> None:
        self.pulse = pulse or Pulse(config.stage.timeout_s + config.camera.timeout_s + SPARE_S)
        self._config, self._rig = config, rig
        self._machine = Machine(publish)
        self._board = Board()
        self._engine = FocusEngine(config)
        self._archive = Archive(config)
        self._wishes = Wishes()
        self._export = ExportChild(config.export, self._wishes)
        self._context = Context(
            config, rig, publish, self._machine, self._archive, self.pulse, self._wishes, self._export, self._engine
        )
        self._work_todo: Callable[[], None] | None = None
        self._busy = self._reset_wanted = False
        self._homed = False
        self._scan_job: ScanJob | None = None
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
            self._rig.illumination.off()
        except BaseException:
            self._rig.stage.close()
            self._rig.camera.close()
            raise
        self._engine.start()
        self._thread.start()
        self._machine.advance(State.IDLE)

    def close(self) -> None:
        """End the work under way, stage first, and close the devices."""
        self.shutdown()
        if self._thread.is_alive():
            self._thread.join()
        self._darken()
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
            "providers": self._engine.as_json(),
        }

    def status(self) -> dict[str, Any]:
        """Return the snapshot; see README for its keys."""
        machine, job = self._machine.snapshot(), self._scan_job
        if job and job.scan_id != machine["scan_id"]:  # a new scan has begun, its job is still to come
            job = None
        tiles, done = (len(job.plan), job.done) if job else (0, 0)
        pipeline, scan = (job.pipeline, job.scan) if job else (None, None)
        share = done / tiles if tiles else 0.0
        elapsed_s = job.wall_s if job else 0.0
        scanning = self.state() in (State.SCANNING, State.PAUSED)
        usage = shutil.disk_usage(self._archive.root)
        return {
            **machine,
            "progress": round(share, 4),
            "tiles": tiles,
            "done": done,
            "durable": scan.durable_tiles if scan else 0,
            "eta_s": round(elapsed_s * (1 - share) / share, 1) if scanning and share else None,
            "pause": job.pause if job and scanning else None,
            "homed": self._homed,
            "providers": self._engine.as_json(),
            "buffer": {
                "bytes": pipeline.tiles.nbytes if pipeline else 0,
                "high_bytes": pipeline.tiles.high_water_bytes if pipeline else 0,
                "stall_s": round(pipeline.tiles.stall_s, 3) if pipeline else 0.0,
            },
            "disk": {"free_bytes": usage.free, "reserve_bytes": int(self._config.storage.reserve_mb * 1e6)},
            "thermal": self._board.thermal(),
            "stages": scan.timings.recent() if scan else {},
            "report": job.report if job else None,
        }

    def scans(self) -> list[dict[str, Any]]:
        """Return every scan on the disk; the one under way has the daemon's state."""
        job, busy = self._scan_job, self.state() in BUSY
        entries = self._archive.list()
        for n, entry in enumerate(entries):
            if job and entry["scan_id"] == job.scan_id and busy and not entry["outcome"]:
                entries[n] = {**entry, "state": self.state().value, "done": job.done}
        return entries

    def preview(self) -> bytes | None:
        """Return the latest frame as JPEG; None before the first."""
        latest = self._scan_job.latest if self._scan_job else None
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
        self._check(plan, folder)
        self._begin("scan", State.PREPARING, lambda: self._go_on(scan_id, plan, folder, started), scan_id)
        return scan_id

    def pause(self) -> None:
        """Pause after the tile in hand."""
        self._wishes.set(paused=True)

    def resume(self) -> None:
        """Go on with a paused scan."""
        self._wishes.set(paused=False)

    def cancel(self) -> None:
        """End the work under way; what was scanned is kept, and its mosaic completed."""
        self._wishes.set(cancelled=True, paused=False)
        if self.state() is State.HOMING:
            self._homed = False
            self._rig.stage.stop()
        self._export.end()

    def stop(self) -> None:
        """Emergency stop: halt the stage now, in this thread, then latch."""
        self._rig.stage.stop()
        self._homed = False
        error = EmergencyStopError("The emergency stop was pressed.", "Clear the cause, then send reset and home.")
        self._machine.fail(error)
        self._rig.stage.stop()  # a homing that lifted the latch in between has seen the fault, or is halted here
        self._darken()
        if (job := self._scan_job) is not None:
            job.abort.set(error)
        self._reset_wanted = False
        self._wishes.set(paused=False)
        self._export.end()

    def reset(self) -> None:
        """Leave FAULT for IDLE with the position unknown, as soon as the failed work has ended."""
        with self._wishes.changed:
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
        if (job := self._scan_job) is not None:
            job.abort.set()
        self._wishes.set(ending=True, paused=False)
        self._export.end()
        if not self._thread.is_alive():
            self._machine.stopped()

    # -- the worker ---------------------------------------------------------------------------------------------

    def _begin(self, command: str, state: State, work: Callable[[], None], scan_id: str | None = None) -> None:
        with self._wishes.changed:
            if self._busy or self._work_todo:
                raise StateError(f"{command} is not possible while work is ending.", "Try again in a moment.")
            self._machine.begin(command, state, scan_id)
            self._work_todo = work
            self._wishes.set(paused=False, cancelled=False)

    def _work(self) -> None:
        while True:
            self._wishes.wait_for(lambda: self._work_todo is not None or self._wishes.ending)
            with self._wishes.changed:
                if self._wishes.ending:
                    break
                work, self._work_todo, self._busy = self._work_todo, None, True
            self._do(work)
            with self._wishes.changed:
                self._busy = False
                if self._reset_wanted:
                    self._reset_wanted = False
                    self._machine.clear()
                self._machine.advance(State.IDLE)  # not earlier: who sees IDLE may begin something at once
        self._machine.stopped()

    def _do(self, work: Callable[[], None] | None) -> None:
        try:
            assert work is not None
            self.pulse.step()
            work()
        except AbortedError:
            pass
        except BaseException as error:  # noqa: BLE001  a failed job is a latched fault, the daemon lives on
            if not isinstance(error, ScannerError):
                _log.exception("The scan failed.")
            self._homed = False
            self._machine.fail(error)
        finally:
            self._darken()
            self.pulse.rest()

    def _darken(self) -> None:
        """Put the light off; one that cannot be is a fault, and keeps nothing else from ending."""
        try:
            self._rig.illumination.off()
        except Exception as error:  # noqa: BLE001  drivers of strangers; the daemon lives on
            _log.exception("The light could not be switched off.")
            self._machine.fail(error)

    def _home(self) -> None:
        self._homed = False
        self.pulse.step(4 * self._config.stage.timeout_s + 2 * self._config.stage.home_timeout_s + SPARE_S)
        try:
            self._rig.stage.home(self._called_off)
        except EmergencyStopError:
            if self._wishes.cancelled or self._wishes.ending:
                return
            raise
        self._homed = not self._wishes.cancelled

    def _called_off(self) -> bool:
        return self.state() is State.FAULT or self._wishes.cancelled or self._wishes.ending

    def _check(self, plan: ScanPlan, folder: Path | None = None) -> None:
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
        named_flat_field(self._config)
        named_stage_calibration(self._config)
        check_focus(self._config)
        self._archive.check_room(plan, folder)

    def _new_scan(self, scan_id: str, plan: ScanPlan) -> None:
        started = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self._run(ScanJob(self._context, scan_id, plan, self._archive.create(scan_id, plan, started), started))

    def _go_on(self, scan_id: str, plan: ScanPlan, folder: Path, started: str) -> None:
        self._home()
        if self._homed:
            self._run(ScanJob(self._context, scan_id, plan, folder, started, resume=True))

    def _run(self, job: ScanJob) -> None:
        self._scan_job = job
        job.run()

    def _export_again(self, folder: Path) -> None:
        self.pulse.rest()  # the child is a process of its own, which cancel can end
        self._export.run(folder)


def _new_id() -> str:
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"

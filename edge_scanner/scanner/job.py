"""One scan from its first move to its exported file: prepare, acquire and build, report, export."""

from __future__ import annotations

import contextlib
import logging
import time
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edge_scanner.abort import Abort
from edge_scanner.calibrate import Prepared, bright_place, prepare
from edge_scanner.config import Config
from edge_scanner.devices.rig import Rig
from edge_scanner.errors import AbortedError, ScannerError
from edge_scanner.journal import Journal
from edge_scanner.plan import ScanPlan, Target
from edge_scanner.report import ScanReport
from edge_scanner.scanner.archive import Archive
from edge_scanner.scanner.child import ExportChild
from edge_scanner.scanner.ending import conclude, measure
from edge_scanner.scanner.engine import LONGEST_S, FocusEngine
from edge_scanner.scanner.machine import Machine, Publish
from edge_scanner.scanner.pipeline import Pipeline
from edge_scanner.scanner.pulse import Pulse
from edge_scanner.scanner.scan import Scan
from edge_scanner.scanner.settling import settle
from edge_scanner.scanner.wishes import Wishes
from edge_scanner.state import Outcome, State
from edge_scanner.tile import Pixels, Tile, Verdict

_log = logging.getLogger(__name__)
WHOLE_SLIDE_S = 120.0
WHOLE_SLIDE_PX_S = 2e6
"""A pass over the whole mosaic may take so long: a constant, and so many pixels a second."""
SPARE = 0.1
"""How much more than the reserve there must be before a scan that waited for room goes on."""
ROOM_S = 1.0
"""How often a scan that waits for room looks whether there is some."""


@dataclass(frozen=True, slots=True)
class Context:
    """What every scan of a daemon shares."""

    config: Config
    rig: Rig
    publish: Publish
    machine: Machine
    archive: Archive
    pulse: Pulse
    wishes: Wishes
    export: ExportChild
    engine: FocusEngine


class ScanJob:
    """One scan; `run` belongs to the scan thread, the attributes may be read from any.

    Parameters
    ----------
    context : Context
    scan_id : str
    plan : ScanPlan
    folder : Path
        Exists, with its `scan.json`.
    started : str
        ISO 8601 UTC.
    resume : bool
        Go on with what the folder holds.

    Attributes
    ----------
    abort : Abort
        Ends the scan at once.
    done : int
        Targets that are behind it; those that a cancelled scan skips are not.
    pause : dict or None
        `message` and `advice` of a pause that nobody asked for.
    latest : ndarray or None
        Last frame (y, x, c).
    report : dict or None
        The report, with absolute paths, once there is one.
    """

    def __init__(
        self, context: Context, scan_id: str, plan: ScanPlan, folder: Path, started: str, *, resume: bool = False
    ) -> None:
        self._context, self._started = context, started
        self.scan_id, self.plan, self.folder = scan_id, plan, folder
        self._resume = resume and (folder / "slide.ome.zarr" / "zarr.json").is_file()
        self.abort = Abort()
        self.done = 0
        self.pause: dict[str, str] | None = None
        self._bright: tuple[Target, float] | None = None
        self.latest: Pixels | None = None
        self.report: dict[str, Any] | None = None
        self.pipeline: Pipeline | None = None
        self.scan: Scan | None = None
        self._began_s = time.monotonic()

    @property
    def wall_s(self) -> float:
        """Real seconds since the job was made."""
        return time.monotonic() - self._began_s

    def run(self) -> None:
        """Do all of it; the outcome is in the journal and the machine before this returns or raises.

        Raises
        ------
        AbortedError
            The daemon ends; the scan stays unfinished.
        ScannerError
            It failed; what was scanned is kept, and can be gone on with.
        """
        clock = self._context.rig.clock
        prepared = self._prepare()
        began_s = clock.now_s()
        scan = self.scan = self._scan(prepared)
        try:
            self._recover(scan)
            outcome, pipeline = self._acquire(scan)
            self._context.machine.advance(State.FINISHING)
            scan_s = clock.now_s() - began_s
            self._settle(scan, outcome)
            report = self._measure(scan, pipeline, outcome, scan_s)
            if outcome is Outcome.COMPLETED and self._context.config.export.auto:
                outcome = self._export(outcome)
            self._conclude(scan, report, outcome)
        except AbortedError:
            scan.commit()  # the scan stays unfinished, and keeps what it has
            raise
        except BaseException:
            with contextlib.suppress(ScannerError):  # what failed first is the cause
                scan.commit()
                self._end(scan, Outcome.FAILED)
            raise
        finally:
            scan.close()

    def _prepare(self) -> Prepared:
        """Calibrate before the first tile; a scan cancelled meanwhile is completed, empty, without."""
        context = self._context
        try:
            self._bright = bright_place(context.config, context.rig, self.plan, aborted=self._aborted)
            return prepare(context.config, context.rig, self.plan, self.folder, aborted=self._aborted)
        except AbortedError:
            if not context.wishes.cancelled:
                raise
            return Prepared(self.plan.frame())
        except BaseException:
            with closing(Journal(self.folder / "journal.sqlite")) as journal:
                journal.note("outcome", Outcome.FAILED.value)
            context.machine.end_scan(Outcome.FAILED)
            raise

    def _scan(self, prepared: Prepared) -> Scan:
        publish, scan_id = self._context.publish, self.scan_id
        self._context.engine.wait(self._aborted)
        self._context.pulse.step(LONGEST_S)  # loads the network
        return Scan(
            self._context.config,
            self._context.rig,
            self.plan,
            self.folder,
            scan_id=scan_id,
            acquired=self._started,
            wait_if_paused=self._wait_if_paused,
            aborted=self._aborted,
            focus_lost=self._focus_lost,
            light_lost=self._light_lost,
            bright=self._bright,
            on_stored=lambda chunks: publish("chunk", {"scan_id": scan_id, "chunks": chunks}),
            prepared=prepared,
            resume=self._resume,
        )

    def _recover(self, scan: Scan) -> None:
        if not self._resume:
            return
        self._context.pulse.step(self._whole_slide_s(scan))
        scan.recover()
        scan.check_slide()
        scan.journal.note("outcome", None)
        self.done = scan.durable_tiles

    def _acquire(self, scan: Scan) -> tuple[Outcome, Pipeline]:
        wishes = self._context.wishes
        self._context.machine.advance(State.SCANNING)
        pipeline = self.pipeline = Pipeline(
            scan, self.abort, cancelled=lambda: wishes.cancelled, on_tile=self._on_tile, pulse=self._context.pulse
        )
        pipeline.run()
        return Outcome.CANCELLED if wishes.cancelled else Outcome.COMPLETED, pipeline

    def _settle(self, scan: Scan, outcome: Outcome) -> None:
        if outcome is Outcome.COMPLETED and self._context.config.scan.settle_pass:
            self._context.pulse.step(self._whole_slide_s(scan))
            scan.settled_tiles = settle(scan, lambda: self._context.wishes.cancelled or bool(self.abort))
            self.abort.check()

    def _measure(self, scan: Scan, pipeline: Pipeline, outcome: Outcome, scan_s: float) -> ScanReport:
        self._context.pulse.step(self._whole_slide_s(scan))
        return measure(scan, pipeline.tiles, outcome, wall_s=self.wall_s, scan_s=scan_s)

    def _export(self, outcome: Outcome) -> Outcome:
        self._context.machine.advance(State.EXPORTING)
        self._context.pulse.rest()  # the child is a process of its own, which cancel can end
        return outcome if self._context.export.run(self.folder) else Outcome.CANCELLED

    def _conclude(self, scan: Scan, report: ScanReport, outcome: Outcome) -> None:
        self.report = asdict(conclude(scan, report, outcome, self.wall_s))
        self._context.machine.end_scan(outcome)

    def _end(self, scan: Scan, outcome: Outcome) -> None:
        scan.journal.note("outcome", outcome.value)
        self._context.machine.end_scan(outcome)

    # -- asked by the pipeline ----------------------------------------------------------------------------------

    def _aborted(self) -> bool:
        """Tell whether to end; asked before every move and frame, and so the heartbeat of the scan thread."""
        self._context.pulse.step()
        return self._context.wishes.cancelled or bool(self.abort)

    def _wait_if_paused(self) -> None:
        self._wait_for_room()
        wishes, machine = self._context.wishes, self._context.machine
        if wishes.paused and not wishes.cancelled and machine.advance(State.PAUSED, only_from=State.SCANNING):
            self._context.pulse.rest()
            wishes.wait_for(lambda: not wishes.paused or wishes.cancelled or bool(self.abort))
            machine.advance(State.SCANNING, only_from=State.PAUSED)
        self.pause = None

    def _focus_lost(self, tiles: int) -> None:
        """Pause before the next tile: hunting for a focus that is not there helps nobody."""
        self._pause_for(
            f"{tiles} tiles in a row could not be focused.",
            "Check the slide's side, the objective and focus.z_start_um; then send resume to go on, or cancel.",
        )
        self._context.wishes.set(paused=True)

    def _light_lost(self) -> None:
        """Pause at this tile: without light there is nothing to take."""
        self._pause_for(
            "The light went out: a place that was bright is dark now.",
            "Check the lamp, its power and cable; then send resume to go on, or cancel.",
        )
        self._context.wishes.set(paused=True)

    def _pause_for(self, message: str, advice: str) -> None:
        self.pause = {"message": message, "advice": advice}
        _log.warning("%s %s", message, advice)

    def _wait_for_room(self) -> None:
        """Pause before the reserve of the disk is touched; go on by itself when there is room again."""
        archive, wishes, machine = self._context.archive, self._context.wishes, self._context.machine
        if not archive.missing() or not (missing := archive.missing(SPARE)):
            return
        before = self.pause
        self._pause_for(missing, "Free some space, by removing files: it goes on by itself.")
        machine.advance(State.PAUSED, only_from=State.SCANNING)
        self._context.pulse.rest()
        wishes.wait_for(lambda: bool(self.abort) or wishes.cancelled or not archive.missing(SPARE), ROOM_S)
        self.pause = before
        machine.advance(State.SCANNING, only_from=State.PAUSED)

    def _on_tile(self, tile: Tile) -> None:
        self.done += not tile.skipped
        if tile.pixels is not None:
            self.latest = tile.pixels
        told: dict[str, Any] = {"scan_id": self.scan_id, "index": tile.index, "row": tile.row, "col": tile.col}
        told |= {"verdict": tile.verdict.value, "attempts": tile.attempts}
        if tile.focus:
            told |= {"z_um": tile.focus.z_um, "in_focus": tile.focus.in_focus, "frames": tile.focus.frames}
        if tile.verdict is Verdict.REJECTED:
            told["reason"] = tile.reason
        publish, tiles = self._context.publish, len(self.plan)
        publish("tile", told)
        share = round(self.done / tiles, 4)
        publish("progress", {"scan_id": self.scan_id, "done": self.done, "tiles": tiles, "share": share})

    @staticmethod
    def _whole_slide_s(scan: Scan) -> float:
        return WHOLE_SLIDE_S + scan.frame.height_px * scan.frame.width_px / WHOLE_SLIDE_PX_S

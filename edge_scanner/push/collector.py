"""The collector: a scan's pipeline, fed by other processes in place of a stage and a camera."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import numpy as np

from edge_scanner.abort import Abort
from edge_scanner.config import Config, dump, parse
from edge_scanner.errors import AbortedError, PlanError, ScannerError
from edge_scanner.export import to_ome_tiff
from edge_scanner.geometry import MosaicFrame
from edge_scanner.plan import ScanPlan, Target
from edge_scanner.push.feed import Feed
from edge_scanner.push.inbox import Inbox
from edge_scanner.push.offers import Offers
from edge_scanner.report import ScanReport
from edge_scanner.scanner.archive import Archive
from edge_scanner.scanner.build import SlideBuild
from edge_scanner.scanner.ending import PATHS, conclude, measure
from edge_scanner.scanner.pipeline import Pipeline
from edge_scanner.state import Outcome
from edge_scanner.tile import Tile


def collect(
    folder: Path | str,
    plan: ScanPlan,
    *,
    config: Config | None = None,
    frame: MosaicFrame | None = None,
    export: bool = False,
    resume: bool = False,
) -> Collector:
    """Open a scan folder that other processes push tiles to; use it in a `with` statement.

    The end of the statement ends the collection: what nobody pushed becomes a hole, the pyramid is completed, the
    report written and, if asked, the OME-TIFF exported. An exception within it leaves the scan unfinished instead.

    Parameters
    ----------
    folder : path
        The new scan's folder, of the same form as the daemon's.
    plan : ScanPlan
        Where the tiles lie; sets tile size and pixel size.
    config : Config, optional
        All else: `camera.channels` and `bits`, `stage.error_um`, `mosaic`, `scan.buffer_mb` (the queue's bound),
        `scan.cache_mb`. 8-bit RGB when omitted.
    frame : MosaicFrame, optional
        How the stage's axes lie in the picture; along the camera's when omitted.
    export : bool
        Write `slide.ome.tif` at the end, as `[export]` says.
    resume : bool
        Go on with an unfinished folder; what it has is not asked for again.

    Returns
    -------
    Collector

    Raises
    ------
    ScannerError
        When the folder exists (or, to resume, is another scan's), or the disk has no room. On leaving the statement:
        what failed, which every producer has then been told too.
    """
    folder = Path(folder).absolute()
    config = _config(folder, plan, config)
    archive, scan_id = Archive(config), folder.name
    archive.prepare()
    if resume:
        _, known, started = archive.unfinished(scan_id)
        if known != plan:
            raise PlanError(f"The scan {scan_id} was begun with another plan.", "Push anew.", code="plan.differs")
    else:
        archive.check_room(plan)
        started = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
        archive.create(scan_id, plan, started)
    abort = Abort()
    build = PushedBuild(
        config, plan, frame or plan.frame(), folder, abort, scan_id=scan_id, acquired=started, resume=resume
    )
    return Collector(build, abort, export=export)


class PushedBuild(SlideBuild):
    """A slide's build that is fed through an inbox."""

    def __init__(
        self,
        config: Config,
        plan: ScanPlan,
        frame: MosaicFrame,
        folder: Path,
        abort: Abort,
        *,
        scan_id: str,
        acquired: str,
        resume: bool,
    ) -> None:
        super().__init__(config, plan, frame, folder, scan_id=scan_id, acquired=acquired, resume=resume)
        if resume:
            self.recover()
            self.journal.note("outcome", None)
        offers = Offers(
            plan,
            channels=config.camera.channels,
            dtype=np.dtype(np.uint8 if config.camera.bits == 8 else np.uint16),
            tolerance_um=3 * config.stage_error_um,
            taken=self._seen,
        )
        self.inbox = Inbox(offers, abort)

    def acquire(self) -> Iterator[Tile]:
        """Yield what is pushed and, once that has ended, a rejected tile for each target that nobody pushed."""
        yield from self.inbox.tiles()
        self.inbox.close(None)
        yield from self.skip("never pushed")

    def close(self) -> None:
        """Close the files and what is left of the inbox; its threads have ended."""
        super().close()
        self.inbox.dispose()

    def missing(self) -> list[Target]:
        """Return the targets that nobody has pushed yet; any thread."""
        return [target for target in self.plan if target.index not in self._seen]


class Collector:
    """Takes tiles from feeds until its `with` statement ends; see `collect`.

    Memory bound: `scan.buffer_mb` of tiles wait in the queue; beyond it one tile a producer, and what a scan needs.

    Attributes
    ----------
    report : ScanReport or None
        Coverage, holes, registration and absolute paths, once the statement has ended.
    """

    def __init__(self, build: PushedBuild, abort: Abort, *, export: bool) -> None:
        self._build, self._abort, self._export = build, abort, export
        self._pipeline = Pipeline(build, abort, cancelled=lambda: False, on_tile=lambda _: None)
        self._thread = threading.Thread(target=self._collect, name="push")
        self._failure: BaseException | None = None
        self._began_s = time.monotonic()
        self.report: ScanReport | None = None

    def feed(self) -> Feed:
        """Return a producer's end; hand it to another process, or ask for one more for each thread."""
        return Feed(self._build.inbox.address)

    def missing(self) -> list[Target]:
        """Return the targets that nobody has pushed yet."""
        return self._build.missing()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._build.inbox.finish()
        else:
            self._abort.set()
        self._thread.join()
        try:
            if self._failure is None:
                self._conclude()
            else:
                self._break_off(self._failure)
        finally:
            self._build.close()

    def _collect(self) -> None:
        try:
            self._pipeline.run()
        except BaseException as error:  # noqa: BLE001  raised where the statement ends
            self._failure = error
            self._build.inbox.close(error)

    def _conclude(self) -> None:
        wall_s = time.monotonic() - self._began_s
        report = measure(self._build, self._pipeline.tiles, Outcome.COMPLETED, wall_s=wall_s, scan_s=wall_s)
        if self._export:
            settings = self._build.config.export
            to_ome_tiff(
                self._build.folder / PATHS["store"],
                self._build.folder / PATHS["tiff"],
                compression=settings.compression,
                quality=settings.quality if settings.compression == "jpeg" else None,
                overwrite=True,
            )
        self.report = conclude(self._build, report, Outcome.COMPLETED, time.monotonic() - self._began_s)

    def _break_off(self, failure: BaseException) -> None:
        """Keep what there is, to be gone on with."""
        with contextlib.suppress(ScannerError):  # what failed first is the cause
            self._build.commit()
        if not isinstance(failure, AbortedError):
            with contextlib.suppress(ScannerError):
                self._build.journal.note("outcome", Outcome.FAILED.value)
            raise failure


def _config(folder: Path, plan: ScanPlan, config: Config | None) -> Config:
    """Return the configuration with the plan's sizes, the folder's root, and no devices."""
    raw = dump(config or Config())
    raw["storage"]["root"] = str(folder.parent)
    raw["optics"]["pixel_size_um"] = plan.pixel_size_um
    raw["camera"] |= {"driver": "push", "width_px": plan.tile_width_px, "height_px": plan.tile_height_px}
    raw["stage"]["driver"] = "push"
    return parse(raw)

"""One scan: the rig's acquisition in front of the slide's build. `run_nested` is the whole scan in one thread."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from edge_scanner.acquire import Acquirer
from edge_scanner.calibrate import Prepared
from edge_scanner.config import Config
from edge_scanner.devices.rig import Rig
from edge_scanner.errors import ScannerError
from edge_scanner.geometry import Box
from edge_scanner.plan import ScanPlan, ScanRegion, Target, auto_overlap_px
from edge_scanner.pyramid import Key
from edge_scanner.register import match
from edge_scanner.register.strips import grey
from edge_scanner.scanner.build import SlideBuild
from edge_scanner.tile import Tile, Verdict

SLIDE_SEARCH_PX = 64.0
"""How far a slide that has moved is looked for on resume."""


def make_plan(config: Config, region: ScanRegion) -> ScanPlan:
    """Return the plan that the configuration makes of a region."""
    camera, optics = config.camera, config.optics
    side = min(camera.height_px, camera.width_px)
    if config.scan.overlap == "auto":
        overlap_px = auto_overlap_px(
            camera.height_px,
            camera.width_px,
            optics.pixel_size_um,
            field_curvature_um=optics.field_curvature_um,
            depth_of_field_um=optics.depth_of_field_um,
            stage_error_um=config.stage_error_um,
        )
    else:
        overlap_px = round(config.scan.overlap * side)
    return ScanPlan(region, camera.height_px, camera.width_px, optics.pixel_size_um, overlap_px)


class Scan(SlideBuild):
    """A slide's build with the acquisition that feeds it; `acquire` belongs to one thread.

    Parameters
    ----------
    config : Config
    rig : Rig
    plan : ScanPlan
    folder : Path
        The scan's folder; exists.
    scan_id : str
    acquired : str
        ISO 8601 UTC.
    wait_if_paused : callable
    aborted : callable
    focus_lost : callable
    light_lost : callable, optional
    bright : (Target, float), optional
        See `Acquirer`, as the four before.
    on_stored : callable
        See `SlideBuild`.
    prepared : Prepared, optional
        Frame and shading from calibration; without: the configured pixel size and frames as they come.
    resume : bool
        The folder holds an unfinished scan; call `recover` before anything else.
    """

    def __init__(
        self,
        config: Config,
        rig: Rig,
        plan: ScanPlan,
        folder: Path,
        *,
        scan_id: str,
        acquired: str = "",
        wait_if_paused: Callable[[], None] = lambda: None,
        aborted: Callable[[], bool] = lambda: False,
        focus_lost: Callable[[int], None] = lambda _: None,
        light_lost: Callable[[], None] | None = None,
        bright: tuple[Target, float] | None = None,
        on_stored: Callable[[list[Key]], object] = lambda _: None,
        prepared: Prepared | None = None,
        resume: bool = False,
    ) -> None:
        prepared = prepared or Prepared(plan.frame())
        super().__init__(
            config, plan, prepared.frame, folder,
            scan_id=scan_id, acquired=acquired, on_stored=on_stored, resume=resume,
        )  # fmt: skip
        self.acquirer = Acquirer(
            rig, config, wait_if_paused=wait_if_paused, aborted=aborted, focus_lost=focus_lost, light_lost=light_lost,
            shading=prepared.shading, drift=prepared.drift, bright=bright, backlash_um=prepared.backlash_um,
        )  # fmt: skip

    def acquire(self) -> Iterator[Tile]:
        """Yield a tile for each target of the plan, in order."""
        targets = (target for target in self.plan if target.index not in self._seen)
        with closing(self.acquirer.run(targets)) as tiles:
            for tile in tiles:
                self._seen.add(tile.index)
                yield tile

    def recover(self) -> list[Tile]:
        """Go back to where an earlier run left off; see `SlideBuild.recover`. Focus surface and light too."""
        taken = super().recover()
        self.acquirer.restore((self.plan.target(tile.index), tile.focus) for tile in taken if tile.focus is not None)
        for tile in taken:
            self.acquirer.learn(tile)
        return taken

    def check_slide(self) -> None:
        """Look at a tile of the earlier run again; the slide must lie where it lay.

        Raises
        ------
        ScannerError
            With code `plan.differs` when it has moved by more than the stage's error explains.
        """
        again = [r.tile for r in self.records.all() if r.tile.verdict is Verdict.ACCEPTED and r.tile.focus]
        tile = next((t for t in reversed(again) if t.index in self.spool), None)
        if tile is None or tile.focus is None:
            return  # nothing with texture is left to compare with
        whole = Box(0, 0, self.plan.tile_height_px, self.plan.tile_width_px)
        before = self.spool.crop(tile.index, whole)
        after = self.acquirer.look(self.plan.target(tile.index), tile.focus.z_um)
        allowed_px = 3 * math.sqrt(2) * self.config.stage_error_um / self.plan.pixel_size_um + 2
        found = match(grey(before), grey(after), max(SLIDE_SEARCH_PX, 2 * allowed_px))
        moved_px = math.hypot(found.dy_px, found.dx_px)
        if not found.trusted or moved_px > allowed_px:
            told = f"has moved by {moved_px * self.plan.pixel_size_um:.1f} um" if found.trusted else "is not recognised"
            raise ScannerError(
                f"The slide {told} since the scan {self.scan_id} was broken off.",
                "Put the same slide back as it lay, or scan anew.",
                code="plan.differs",
            )


def run_nested(scan: SlideBuild) -> None:
    """Run a whole scan as nested loops in the calling thread; the pixels are those of the daemon, bit for bit."""
    for tile in scan.acquire():
        for numbered in scan.place(tile):
            scan.write(numbered)
    for numbered in scan.end():
        scan.write(numbered)
    scan.finish()

"""Scenes cut from a picture, built into a slide as a scan is."""

from __future__ import annotations

from register_scenes import Scene

from edge_scanner import config as configs
from edge_scanner.scanner.archive import Archive
from edge_scanner.scanner.build import SlideBuild


class Replay(SlideBuild):
    """A slide's build that is fed a scene; the first `stop` tiles of it."""

    case: Scene
    stop = 10**6

    def acquire(self):
        for tile in self.case.tiles[: self.stop]:
            if tile.index not in self._seen:
                self._seen.add(tile.index)
                yield tile


def build(case: Scene, root, name, *more, resume=False):
    plan = case.plan
    config = configs.load(
        None,
        [
            f'storage.root="{root}"',
            f"camera.width_px={plan.tile_width_px}", f"camera.height_px={plan.tile_height_px}",
            "mosaic.chunk_px=256", "mosaic.codec=gzip", "scan.keep_tiles=true", "camera.driver=replay",
            f"stage.error_um={case.stage_error_px * plan.pixel_size_um}", "stage.driver=replay",
            f"optics.pixel_size_um={plan.pixel_size_um}", "storage.reserve_mb=0", *more,
        ],
    )  # fmt: skip
    archive = Archive(config)
    folder = archive.folder(name) if resume else archive.create(name, plan, "2026-01-01T00:00:00Z")
    made = Replay(config, plan, plan.frame(), folder, scan_id=name, resume=resume)
    made.case = case
    return made

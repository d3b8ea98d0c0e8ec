"""From tiles to a slide: register, mosaic, pyramid, store and journal, wired. Plain steps without threads.

The scan, the resumed scan and the push API all build their slide here.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import astuple, fields, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from edge_scanner import __version__
from edge_scanner import store as stores
from edge_scanner.calibrate.axes import DOUBT
from edge_scanner.config import Config
from edge_scanner.errors import AbortedError, ScannerError
from edge_scanner.geometry import MosaicFrame, Position
from edge_scanner.journal import Journal, tile_of
from edge_scanner.mosaic import Mosaic
from edge_scanner.mosaic.mosaic import margin_px
from edge_scanner.plan import ScanPlan
from edge_scanner.pyramid import Key, Pyramid
from edge_scanner.record import MemoryTrace, Records, Timings
from edge_scanner.register import Match, Registrar
from edge_scanner.register.registrar import LAG_ROWS
from edge_scanner.scanner import settling
from edge_scanner.scanner.emission import HeldFrames, Numbered, Watermark
from edge_scanner.spool import FOLDER as SPOOL
from edge_scanner.spool import HalvesOnDisk, Spool, checksum, sync_filesystem
from edge_scanner.store import SlideStore, StoredPart
from edge_scanner.store.codec import make_codec
from edge_scanner.store.metadata import Channel, SlideMetadata
from edge_scanner.tile import Chunk, PlacedTile, Tile, Verdict

COMMIT_CHUNKS = 128
"""Chunks appended between two commits of the store."""
CHECKPOINT_TILES = 16
CHECKPOINT_S = 5.0
"""Tiles accepted, or seconds passed, between two groups that are made durable."""

MATCH = tuple(field.name for field in fields(Match))


class SlideBuild(ABC):
    """The parts that turn tiles into a slide, and the steps that move a tile through them.

    `acquire` and `skip` belong to one thread, `place` and `end` to one, `write` to any number. Where the tiles come
    from is the subclass's own.
    Memory bound: `scan.cache_mb` of frames, the registration strips of one scan line, the unfinished chunks of the
    pyramid.

    Parameters
    ----------
    config : Config
    plan : ScanPlan
    frame : MosaicFrame
    folder : Path
        The scan's folder; exists.
    scan_id : str
    acquired : str
        ISO 8601 UTC.
    on_stored : callable
        Told the (level, row, col) of chunks that a reader of the store can see from now on.
    resume : bool
        The folder holds an unfinished slide; call `recover` before anything else.
    """

    def __init__(
        self,
        config: Config,
        plan: ScanPlan,
        frame: MosaicFrame,
        folder: Path,
        *,
        scan_id: str,
        acquired: str = "",
        on_stored: Callable[[list[Key]], object] = lambda _: None,
        resume: bool = False,
    ) -> None:
        self.config, self.plan, self.frame, self.folder, self.scan_id = config, plan, frame, folder, scan_id
        self.records, self.timings = Records(), Timings()
        self._on_stored = on_stored
        self.registrar = self._registrar(LAG_ROWS)
        self.settled_tiles: int | None = None
        keep = config.scan.keep_tiles
        self.spool = Spool(folder / ("tiles" if keep else SPOOL), int(config.scan.cache_mb * 1e6), keep=keep)
        self.journal = Journal(folder / "journal.sqlite")
        self.store = self._open_store() if resume else self._create_store(scan_id, acquired)
        stored = self._recover_store() if resume else frozenset[Key]()
        self.memory = MemoryTrace(self.journal.noted("memory") or ())
        self.halves = HalvesOnDisk(folder / SPOOL, self.store.dtype)
        self._frames = HeldFrames(self.spool)
        self.mosaic = self._mosaic(stored)
        self.pyramid = self._pyramid(stored)
        self._unsaved: list[Callable[[], None]] = []
        self._unsaved_tiles = 0
        self._unsaved_lock = threading.Lock()
        self._checkpoint_s = time.monotonic()
        self.durable_tiles = 0
        self._watermark = Watermark()
        self._commit_lock = threading.Lock()
        self._durable = 0
        self._seen: set[int] = set()

    def _registrar(self, lag_rows: int, cancelled: Callable[[], bool] = lambda: False) -> Registrar:
        return Registrar(
            self.plan,
            self.frame,
            stage_error_um=self.config.stage_error_um,
            enabled=self.config.mosaic.registration,
            level=self.config.levels_tiles,
            lag_rows=lag_rows,
            cancelled=cancelled,
        )

    @abstractmethod
    def acquire(self) -> Iterator[Tile]:
        """Yield a tile for each target that is not among `_seen`, in any order, and note it there."""

    def skip(self, reason: str) -> Iterator[Tile]:
        """Yield a rejected tile for each target that has not been heard of: a cancelled scan is completed so."""
        for target in self.plan:
            if target.index not in self._seen:
                position = Position(target.x_um, target.y_um, self.config.focus.z_start_um)
                yield Tile(
                    target.index, target.row, target.col, position, None, None, None, Verdict.REJECTED, 0, reason
                )

    def _mosaic(self, stored: Set[Key]) -> Mosaic:
        mosaic = self.config.mosaic
        reach = margin_px(self.config.stage_error_um, self.plan.pixel_size_um, registration=mosaic.registration)
        if mosaic.registration:
            reach += math.ceil(DOUBT * max(self.frame.height_px, self.frame.width_px))
        return Mosaic(
            self.plan,
            self.frame,
            self._frames,
            margin_px=reach,
            channels=self.store.channels,
            dtype=self.store.dtype,
            fill=self.store.fill_value,
            feather_px=mosaic.feather_px,
            cubic=mosaic.placement == "cubic",
            blend=mosaic.blend,
            chunk_px=self.store.chunk_px,
            stored=stored,
        )

    def _pyramid(self, stored: Set[Key]) -> Pyramid:
        return Pyramid(
            [(level.height_px, level.width_px) for level in self.store.levels],
            channels=self.store.channels,
            dtype=self.store.dtype,
            fill=self.store.fill_value,
            chunk_px=self.store.chunk_px,
            halves=self.halves,
            stored=stored,
        )

    def place(self, tile: Tile) -> Iterator[Numbered]:
        """Take a tile in and yield the chunks that it finished."""
        self._frames.release(self._durable)
        self.timings.add_all(tile.timings_ms)
        self.records.tile(tile)
        crc = None
        if tile.pixels is not None:
            with self._timed("spool"):
                self.spool.put(tile.index, tile.pixels)
                crc = checksum(tile.pixels)
        with self._timed("register"):
            placed = self.registrar.add(tile)
        self.memory.step()
        fresh = self.registrar.fresh
        with self._unsaved_lock:
            bare = replace(tile, pixels=None)
            self._unsaved.append(lambda: self._journal_tile(bare, crc, fresh))
            self._unsaved_tiles += 1
        yield from self._chunks(placed)
        if self._unsaved_tiles >= CHECKPOINT_TILES or time.monotonic() - self._checkpoint_s >= CHECKPOINT_S:
            with self._timed("checkpoint"):
                self.checkpoint()

    def end(self) -> Iterator[Numbered]:
        """Yield the chunks that were waiting for the last tiles."""
        yield from self._chunks(self.registrar.finish())

    def write(self, numbered: Numbered) -> None:
        """Encode a chunk and append it to the store; commits every now and then."""
        if numbered.chunk.stored:
            self._watermark.done(numbered.number)
            return
        with self._timed("encode"):
            encoded = self.store.encode(numbered.chunk)
        with self._timed("write"):
            self.store.append(encoded)
            if self._watermark.done(numbered.number) - self._durable >= COMMIT_CHUNKS:
                self.commit()

    def checkpoint(self) -> None:
        """Make the tiles placed so far durable: their pixels first, then, in one commit, what the journal says."""
        with self._commit_lock:
            self._checkpoint()

    def commit(self) -> None:
        """Make what was appended durable and visible: tiles, then bytes, journal, index; then free the spool."""
        with self._commit_lock:
            below = self._watermark.below
            self.halves.rotate()
            self._checkpoint()
            parts = self.store.commit(self.journal.parts)
            for level, row, col in {(p.level, p.row, p.col) for p in parts if p.level > 0}:
                self.halves.release((level, row, col))
            self._durable = below
        if parts:
            self._on_stored(sorted({(p.level, p.row, p.col) for p in parts}))

    def finish(self) -> None:
        """Commit the rest and check that nothing waits for ever."""
        self.commit()
        if not (self.mosaic.complete and self.pyramid.complete):
            raise AssertionError("the scan ended while chunks were waiting")

    def close(self) -> None:
        """Close the files; the scan may be complete or not."""
        self.journal.close()
        self.store.close()
        with contextlib.suppress(ScannerError):  # what is lost here was not durable
            self.halves.close()
        if self.mosaic.complete and self._durable == self._frames.emitted:
            self.halves.clear()
            self._frames.release(self._durable)
            self.spool.close()
            with contextlib.suppress(OSError):
                (self.folder / SPOOL).rmdir()

    def recover(self) -> list[Tile]:
        """Go back to where an earlier run left off: everything durable is taken over, nothing else.

        Tiles are replayed in index order with the pair shifts that were measured then, so that every later result is
        that of a run without the break.

        Returns
        -------
        list of Tile
            What was taken over, without pixels, in index order.
        """
        pairs = self._recorded_pairs()
        taken: list[Tile] = []
        for row in self.journal.tiles():
            tile = self._journalled(row)
            if tile is None:
                continue
            taken.append(replace(tile, pixels=None))
            self.durable_tiles += 1
            self.timings.add_all(tile.timings_ms)
            self.records.tile(tile)
            for numbered in self._chunks(self.registrar.add(tile, pairs.get(tile.index, {}))):
                self.write(numbered)
        self._seen.update(tile.index for tile in taken)
        return taken

    def solve_whole(self, cancelled: Callable[[], bool] = lambda: False) -> tuple[Registrar, list[PlacedTile]]:
        """Return the places, and who found them, that a solve over all pairs of a complete scan gives.

        Raises
        ------
        AbortedError
            `cancelled`, asked at every tile and solve, returned True.
        """
        registrar, pairs = self._registrar(self.plan.rows, cancelled), self._recorded_pairs()
        placed: list[PlacedTile] = []
        for record in self.records.all():
            if cancelled():
                raise AbortedError("The solve for the tiles' places was cancelled.")
            placed += registrar.add(record.tile, pairs.get(record.tile.index, {}))
        return registrar, placed + registrar.finish()

    def _recorded_pairs(self) -> dict[int, dict[tuple[int, int], Match]]:
        """Return the pairs of the journal by the tile that they were measured with."""
        pairs: dict[int, dict[tuple[int, int], Match]] = {}
        for p in self.journal.pairs():
            pairs.setdefault(p["at"], {})[p["first"], p["second"]] = Match(*(p[field] for field in MATCH))
        return pairs

    def _checkpoint(self) -> None:
        with self._unsaved_lock:
            unsaved, self._unsaved = self._unsaved, []
            count, self._unsaved_tiles = self._unsaved_tiles, 0
        self._checkpoint_s = time.monotonic()
        sync_filesystem(self.folder)
        for save in unsaved:
            save()
        self.journal.note("memory", self.memory.samples)
        self.durable_tiles += count

    def _chunks(self, placed: Iterable[PlacedTile]) -> Iterator[Numbered]:
        for _, line in groupby(placed, lambda place: self.plan.target(place.index).row):
            places = list(line)
            for place in places:
                self.records.place(place)
            with self._unsaved_lock:
                self._unsaved += [partial(self.journal.place, place) for place in places]
            for chunk in self._timed_each("mosaic", self.pyramid.cascade(self.mosaic.add(*places))):
                number = self._frames.emitted
                self._frames.emitted += 1
                yield Numbered(number, chunk)

    def _timed_each(self, stage: str, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        while True:
            with self._timed(stage):
                chunk = next(chunks, None)
            if chunk is None:
                return
            yield chunk

    def _journalled(self, row: dict[str, Any]) -> Tile | None:
        """Return a recorded tile with its pixels, where they are still needed; None when those are damaged."""
        camera = self.config.camera
        shape = (camera.height_px, camera.width_px, camera.channels)
        verdict = Verdict(row["verdict"])
        pixels = None
        if verdict is not Verdict.REJECTED:
            pixels = self.spool.recover(row["idx"], shape, self.store.dtype, row["crc32"])
            if pixels is None and not self.mosaic.is_stored(row["idx"]):
                return None
        return tile_of(row, pixels)

    def _create_store(self, scan_id: str, acquired: str) -> SlideStore:
        config = self.config
        return stores.create(
            self.folder / "slide.ome.zarr",
            height_px=self.frame.height_px,
            width_px=self.frame.width_px,
            channels=config.camera.channels,
            dtype=np.dtype(np.uint8 if config.camera.bits == 8 else np.uint16),
            codec=make_codec(config),
            fill_value=config.fill_value,
            metadata=slide_metadata(config, self.plan, self.frame, scan_id, acquired),
            chunk_px=config.mosaic.chunk_px,
        )

    def _open_store(self) -> SlideStore:
        settling.undo(self.folder)
        return stores.open(self.folder / "slide.ome.zarr")

    def _recover_store(self) -> frozenset[Key]:
        """Make the store hold exactly what the journal says, less what is damaged; return its chunks."""
        parts = [StoredPart(**row) for row in self.journal.chunks()]
        damaged = {(p.level, p.row, p.col) for p in self.store.rebuild_index(parts)}
        self.journal.forget_chunks(damaged)
        return frozenset((p.level, p.row, p.col) for p in parts) - damaged

    def _journal_tile(self, tile: Tile, crc: int | None, pairs: Mapping[tuple[int, int], Match]) -> None:
        self.journal.tile(tile, crc)
        for (first, second), m in pairs.items():
            self.journal.pair(tile.index, first, second, astuple(m))

    def _timed(self, stage: str) -> _Timed:
        return _Timed(self.timings, stage)


class _Timed:
    def __init__(self, timings: Timings, stage: str) -> None:
        self._timings, self._stage = timings, stage

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._timings.add(self._stage, (time.perf_counter() - self._began) * 1000)


def slide_metadata(config: Config, plan: ScanPlan, frame: MosaicFrame, scan_id: str, acquired: str) -> SlideMetadata:
    """Return what the slide's files say about this scan."""
    camera, optics = config.camera, config.optics
    brightfield = config.illumination.brightfield
    channel = Channel(
        "Brightfield" if brightfield else "Fluorescence",
        exposure_ms=camera.exposure_ms,
        emission_nm=None if brightfield else config.illumination.wavelength_um * 1000,
    )
    return SlideMetadata(
        name=scan_id,
        pixel_size_um=plan.pixel_size_um,
        channels=(channel,),
        acquired=acquired,
        origin_x_um=frame.origin_x_um,
        origin_y_um=frame.origin_y_um,
        magnification=optics.magnification,
        numerical_aperture=optics.numerical_aperture,
        immersion=optics.immersion,
        software=f"edge-scanner {__version__}",
        settings={
            "overlap_px": str(plan.overlap_px),
            "tile_px": f"{plan.tile_width_px}x{plan.tile_height_px}",
            "focus_mode": config.focus.mode,
            "placement": config.mosaic.placement,
            "codec": config.codec,
        },
    )

"""The scans on the disk: one folder each under the storage root."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import Any

from edge_scanner import __version__
from edge_scanner.config import Config, dump
from edge_scanner.errors import DiskLowError, NotFoundError, ScannerError, StateError, StoreError
from edge_scanner.focus.calibration import named_focus_calibration
from edge_scanner.focus.model import ModelFile
from edge_scanner.journal import read_only
from edge_scanner.plan import ScanPlan
from edge_scanner.scanner import settling
from edge_scanner.spool import FOLDER as SPOOL
from edge_scanner.spool import sync_filesystem
from edge_scanner.state import Outcome
from edge_scanner.store.shard import disk_errors

ENDED = (Outcome.COMPLETED, Outcome.CANCELLED)
"""Outcomes of scans that are not gone on with."""
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Archive:
    """The storage root.

    Parameters
    ----------
    config : Config
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self.root = Path(config.storage.root)
        self._ended: dict[str, dict[str, Any]] = {}

    def prepare(self) -> None:
        """Make the root, and remove what a kill between a scan's outcome and its tidying up left in it.

        Raises
        ------
        StoreError
            When it cannot be made or written.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"The storage root {self.root} cannot be made ({error.strerror}).", "Set storage.root to a folder."
            ) from error
        if not os.access(self.root, os.W_OK | os.X_OK):
            raise StoreError(f"The storage root {self.root} is not writable.", "Change its owner or storage.root.")
        for name in (settling.FOLDER, SPOOL):
            for left in self.root.glob(f"*/{name}"):
                with suppress(StoreError):
                    if _journalled(left.parent / "journal.sqlite")[0] in ENDED:
                        shutil.rmtree(left, ignore_errors=True)

    def check_room(self, plan: ScanPlan, folder: Path | None = None) -> None:
        """Refuse a plan that the disk has no room for; of an unfinished scan, beside what its folder takes already.

        Raises
        ------
        DiskLowError
        """
        room, files = self._room()
        taken = [path.stat().st_size for path in folder.rglob("*")] if folder else []
        needed = bytes_needed(self._config, plan) - sum(taken)
        files_needed = files_needed_by(self._config, plan) - len(taken)
        if needed > room:
            raise DiskLowError(
                f"The scan may need {needed / 1e9:.1f} GB; {max(0, room) / 1e9:.1f} GB are free beside the reserve.",
                "Delete old scans or scan less.",
            )
        if files_needed > files:
            raise DiskLowError(
                f"The scan may need {files_needed} files; the disk can take {max(0, files):.0f} beside the reserve.",
                "Delete old scans, or make the file system with more inodes.",
            )

    def missing(self, spare: float = 0.0) -> str:
        """Return what has run out and how much is short of the reserve and such a share of it more, as a sentence.

        "" where there is room. Without a reserve nothing can be said about how much is short.
        """
        room, files = self._room()
        storage = self._config.storage
        if room <= (more := spare * storage.reserve_mb * 1e6):
            return _waits(storage.reserve_mb, f"{math.ceil((more - room) / 1e6)} MB of room")
        if files <= (more := spare * storage.reserve_files):
            return _waits(storage.reserve_files, f"room for {math.ceil(more - files)} files", "has no file left")
        return ""

    def _room(self) -> tuple[float, float]:
        """Return the bytes and the files that are free beside the reserve; negative where it is touched."""
        disk, storage = os.statvfs(self.root), self._config.storage
        files = disk.f_favail - storage.reserve_files if disk.f_files else math.inf  # made as it goes: btrfs and others
        return disk.f_bavail * disk.f_frsize - storage.reserve_mb * 1e6, files

    def create(self, scan_id: str, plan: ScanPlan, started: str) -> Path:
        """Make a scan's folder with its `scan.json` and return it."""
        folder = self.root / scan_id
        with disk_errors(folder):
            folder.mkdir()
            text = json.dumps(
                {
                    "scan_id": scan_id,
                    "started": started,
                    "plan": json.loads(plan.to_json()),
                    "config": self._portable_config(),
                    "versions": {"edge_scanner": __version__},
                    **_focus(self._config),
                },
                indent=2,
            )
            partial = folder / "scan.json.partial"
            partial.write_text(text + "\n", encoding="utf-8")
            partial.rename(folder / "scan.json")
            sync_filesystem(folder)
        return folder

    def unfinished(self, scan_id: str) -> tuple[Path, ScanPlan, str]:
        """Return folder, plan and start of a scan that can go on with the present configuration.

        Raises
        ------
        NotFoundError
            There is no such scan.
        StateError
            It has ended.
        ScannerError
            With code `plan.differs`: it was made with another configuration; the message names the keys.
        """
        folder = self.folder(scan_id)
        outcome = _journalled(folder / "journal.sqlite")[0]
        if outcome not in (None, Outcome.FAILED):
            raise StateError(f"The scan {scan_id} is {outcome}.", "Only unfinished or failed scans can go on.")
        told = json.loads((folder / "scan.json").read_text(encoding="utf-8"))
        changed = _differences(told["config"], self._portable_config())
        names = {"model": "the focus model", "focus_calibration": "the focus calibration"}
        changed += [
            f"{names[key]} is another file" for key, sha in _focus(self._config).items() if told.get(key) != sha
        ]
        if changed:
            raise ScannerError(
                f"The scan {scan_id} was made with another configuration: {'; '.join(changed)}.",
                "Start the daemon with that configuration, or scan anew.",
                code="plan.differs",
            )
        return folder, ScanPlan.from_dict(told["plan"]), str(told["started"])

    def folder(self, scan_id: str) -> Path:
        """Return the folder of a scan.

        Raises
        ------
        NotFoundError
        """
        folder = self.root / scan_id
        if not _ID.fullmatch(scan_id) or not (folder / "scan.json").is_file():
            raise NotFoundError(f"There is no scan {scan_id!r}.", "`scans` lists them.")
        return folder

    def list(self) -> list[dict[str, Any]]:
        """Return `scan_id state outcome tiles done started` of every scan, oldest first."""
        found = (path.parent for path in self.root.glob("*/scan.json"))
        entries = [self._entry(folder) for folder in found]
        return sorted((e for e in entries if e), key=lambda e: (e["started"], e["scan_id"]))

    def _entry(self, folder: Path) -> dict[str, Any] | None:
        if (known := self._ended.get(folder.name)) is not None:
            return known
        outcome, done = None, 0
        try:
            told = json.loads((folder / "scan.json").read_text(encoding="utf-8"))
            plan = ScanPlan.from_dict(told["plan"])
            with suppress(StoreError):  # a full disk has no room to read it in: the scan is there all the same
                outcome, done = _journalled(folder / "journal.sqlite")
        except (OSError, ValueError, KeyError, TypeError):
            return None
        entry = {
            "scan_id": folder.name,
            "state": "ended" if outcome else "unfinished",
            "outcome": outcome,
            "tiles": len(plan),
            "done": done,
            "started": told.get("started", ""),
        }
        if outcome in ENDED:
            self._ended[folder.name] = entry
        return entry

    def _portable_config(self) -> dict[str, Any]:
        """Return the configuration that shapes a scan: paths relative to the root, sockets and logging left out."""
        config = dump(self._config)
        del config["control"], config["log"]
        config["storage"]["root"] = "."
        config["focus"]["engine_cache"] = ""
        for section, name in PATHS:
            if config[section][name]:
                config[section][name] = os.path.relpath(config[section][name], self.root)
        return config


HARMLESS = frozenset({
    "storage", "export", "stage.timeout_s", "stage.home_timeout_s", "camera.timeout_s", "scan.buffer_mb",
    "scan.cache_mb", "scan.max_rejected", "focus.max_failed", "focus.engine_cache",
})  # fmt: skip
"""Sections and keys that may differ between a scan and its continuation: they do not shape the pixels."""


PATHS = (
    ("sim", "slide"), ("camera", "flat_field"), ("stage", "calibration"), ("focus", "model"), ("focus", "calibration"),
)  # fmt: skip
"""Keys that name files."""


def _focus(config: Config) -> dict[str, str | None]:
    """Return the SHA-256 of the focus network and of its calibration, where they are in use."""
    if config.focus.mode != "model":
        return {"model": None, "focus_calibration": None}
    file = ModelFile.open(config.focus.model)
    found = named_focus_calibration(config, file)
    told = None if found is None else hashlib.sha256(repr(found).encode()).hexdigest()
    return {"model": file.sha256, "focus_calibration": told}


def _differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return `section.key: then -> now` of every key that differs; one that there was not yet had its default."""
    usual = dump(Config())
    keys = sorted({(s, k) for config in (then, now) for s in config for k in config[s]})
    keys = [(s, k) for s, k in keys if not {s, f"{s}.{k}"} & HARMLESS]
    pairs = [(s, k, then.get(s, {}).get(k, usual.get(s, {}).get(k)), now.get(s, {}).get(k)) for s, k in keys]
    return [f"{s}.{k}: {a!r} -> {b!r}" for s, k, a, b in pairs if a != b]


def _waits(reserve: float, what: str, full: str = "is full") -> str:
    if reserve:
        return f"The disk is down to its reserve; the scan waits for {what}."
    return f"The disk {full}; the scan waits for room."


def bytes_needed(config: Config, plan: ScanPlan) -> int:
    """Return a cautious estimate of what a scan takes on the disk: pyramid, TIFF and spool."""
    pixel = config.camera.channels * config.camera.bits // 8
    share = {"jpeg": 0.25, "gzip": 0.8, "zstd": 0.8, "none": 1.0}[config.codec]
    store = plan.height_px * plan.width_px * pixel * share * 4 / 3
    copies = 1 + config.export.auto + config.scan.settle_pass
    return int(copies * store + _frames(config, plan) * plan.tile_height_px * plan.tile_width_px * pixel)


def files_needed_by(config: Config, plan: ScanPlan) -> int:
    """Return a cautious estimate of the files of a scan: frames, shards of 8 x 8 chunks and their folders, the rest."""
    shard_px = 8 * config.mosaic.chunk_px
    rows, cols = (-(-side // shard_px) for side in (plan.height_px, plan.width_px))
    return int(_frames(config, plan) + 4 / 3 * rows * (cols + 1)) + 64


def _frames(config: Config, plan: ScanPlan) -> int:
    """Return how many frames wait on the disk at once, at most."""
    return len(plan) if config.scan.keep_tiles else min(len(plan), 6 * plan.cols)


def _journalled(path: Path) -> tuple[str | None, int]:
    if not path.exists():
        return None, 0
    try:
        db = read_only(path)
        try:
            tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if not {"scan", "tile"} <= tables:  # broken off, or the disk was full, before it was made
                return None, 0
            row = db.execute("SELECT value FROM scan WHERE key = 'outcome'").fetchone()
            tried = "attempts > 0 OR verdict <> 'rejected'"  # see Tile.skipped
            done = db.execute(f"SELECT COUNT(*) FROM tile WHERE {tried}").fetchone()[0]
        finally:
            db.close()
    except sqlite3.Error as error:
        raise StoreError(f"The journal {path.name} cannot be read ({error}).") from error
    return (None if row is None else json.loads(row[0])), int(done)

"""A small scan that dies where it is told to: in a process forked from this one, under strace or not."""

from __future__ import annotations

import hashlib
import json
import os
import re
import select
import shutil
import subprocess
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import tifffile
from scan_rig import homed_rig, levels_of, small_config

from edge_scanner.abort import Abort
from edge_scanner.devices.drivers import sim as _imported_before_the_fork  # noqa: F401
from edge_scanner.export import to_ome_tiff
from edge_scanner.journal import Journal
from edge_scanner.plan import ScanRegion
from edge_scanner.scanner import build
from edge_scanner.scanner import scan as scans
from edge_scanner.scanner.pipeline import Pipeline

CALLS = (
    "write", "writev", "pwrite64", "pwritev", "rename", "renameat", "renameat2", "link", "linkat", "symlink", "unlink",
    "unlinkat", "mkdir", "mkdirat", "rmdir", "openat", "ftruncate", "truncate", "fallocate", "copy_file_range",
    "sendfile", "fsync", "fdatasync", "sync_file_range", "syncfs", "msync",
)  # fmt: skip
SETTINGS = ("sim.stage_error_um=3", "sim.backlash_um=2", "mosaic.codec=jpeg", "mosaic.chunk_px=256")
REGION = (0.0, 0.0, 1.0, 0.9)
AS_CAPTURED = ("idx", "reached_x_um", "reached_y_um", "focus_score", "focus_z_um", "timings_ms", "crc32")


@dataclass(frozen=True)
class Told:
    """What a scan that ended by itself says: the targets that it captured, or why it failed."""

    captured: tuple[int, ...] = ()
    failed: str = ""


@dataclass(frozen=True)
class Durable:
    """What a scan's journal has: its tiles as they were captured, and where its chunks lie."""

    tiles: frozenset[tuple[object, ...]] = frozenset()
    chunks: frozenset[tuple[object, ...]] = frozenset()

    def __le__(self, later: Durable) -> bool:
        return self.tiles <= later.tiles and self.chunks <= later.chunks

    def without(self, earlier: Durable) -> str:
        """Return how much this lacks of an earlier one."""
        return f"{len(earlier.tiles - self.tiles)} tiles, {len(earlier.chunks - self.chunks)} chunks"

    @classmethod
    def of(cls, folder: Path) -> Durable:
        """Read a copy of the journal: the files stay as the kill left them."""
        with tempfile.TemporaryDirectory() as name:
            for path in folder.glob("journal.sqlite*"):
                shutil.copy(path, name)
            journal = Journal(Path(name) / "journal.sqlite")
            tiles = frozenset(tuple(row[key] for key in AS_CAPTURED) for row in journal.tiles())
            chunks = frozenset(tuple(row.values()) for row in journal.chunks())
            journal.close()
        return cls(tiles, chunks)


@dataclass(frozen=True)
class Site:
    """The `when`-th occurrence of a system call in its thread, and the kind of file that it changes."""

    call: str
    when: int
    file: str


def sites(log: Path, folder: Path) -> list[Site]:
    """Return every call in strace's log that changes the scan's folder."""
    seen: Counter[tuple[str, str]] = Counter()
    found = []
    for thread, call, told in re.findall(r"^(\d+) +(\w+)\((.*)", log.read_text(), re.MULTILINE):
        seen[thread, call] += 1
        paths = [path for path in re.findall(r'[<"](/[^>"]*)[>"]', told) if path.startswith(str(folder))]
        if paths and (call != "openat" or "O_CREAT" in told):
            found.append(Site(call, seen[thread, call], _kind(paths[-1].removeprefix(str(folder)))))
    return found


def _kind(path: str) -> str:
    if "journal.sqlite" in path:
        return "journal"
    if "slide.ome.tif" in path:
        return "OME-TIFF"
    if "spool" in path:
        return "halves" if path.endswith(".half") else "spool"
    return "shard" if re.search(r"/c/0/\d+/", path) else "store" if "slide.ome.zarr" in path else "folder"


def work(folder: Path) -> Told:
    """Begin a scan in `folder`, or go on with the one that is there, and export it."""
    build.COMMIT_CHUNKS, build.CHECKPOINT_TILES = 6, 3
    config = small_config(folder, *SETTINGS)
    resume = (folder / "slide.ome.zarr").exists()
    folder.mkdir(exist_ok=True)
    plan = scans.make_plan(config, ScanRegion(*REGION))
    scan = scans.Scan(config, homed_rig(config), plan, folder, scan_id="scan", resume=resume)
    if resume:
        scan.recover()
        scan.check_slide()
    captured: list[int] = []
    if not (scan.mosaic.complete and scan.pyramid.complete):
        Pipeline(scan, Abort(), cancelled=lambda: False, on_tile=lambda t: captured.append(t.index)).run()
    else:
        scan.finish()
    scan.close()
    to_ome_tiff(folder / "slide.ome.zarr", folder / "slide.ome.tif", overwrite=True)
    return Told(tuple(captured))


def digest(folder: Path) -> str:
    """Return a hash over the decoded pixels of every level and of every page of the TIFF."""
    total = hashlib.sha256()
    for level in levels_of(folder):
        total.update(np.ascontiguousarray(level).tobytes())
    with tifffile.TiffFile(folder / "slide.ome.tif") as tiff:
        for page in tiff.pages:
            total.update(np.ascontiguousarray(page.asarray()).tobytes())
    return total.hexdigest()


class Forked:
    """A scan in a process of its own; under strace, which logs some calls and may kill at one, where `log` is given."""

    def __init__(self, folder: Path, log: Path | None = None, calls: tuple[str, ...] = (), inject: str = "") -> None:
        self._told, tell = os.pipe()
        held, go = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            self._child(folder, held, tell)
        self._tracer = None if log is None else self._trace(log, calls, inject)
        os.write(go, b"!")
        for end in (tell, held, go):
            os.close(end)

    def ends_within(self, seconds: float) -> bool:
        """Tell whether it ended by itself in that time."""
        return bool(select.select([self._told], [], [], seconds)[0])

    def wait(self) -> Told | None:
        """Wait for its end and return what it told; None: it was killed."""
        with os.fdopen(self._told, "rb") as file:
            told = file.read()
        os.waitpid(self.pid, 0)
        if self._tracer is not None:
            self._tracer.communicate()
        return Told(**json.loads(told)) if told else None

    def _trace(self, log: Path, calls: tuple[str, ...], inject: str) -> subprocess.Popen[str]:
        command = [
            "strace",
            "-f",
            "-y",
            "-s",
            "0",
            "-o",
            str(log),
            "-p",
            str(self.pid),
            "-e",
            f"trace={','.join(calls)}",
        ]
        command += ["-e", f"inject={inject}"] if inject else []
        tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert tracer.stderr is not None
        attached = tracer.stderr.readline()
        assert "attached" in attached, attached
        return tracer

    @staticmethod
    def _child(folder: Path, held: int, tell: int) -> None:
        os.read(held, 1)
        try:
            told = work(folder)
        except BaseException as error:  # noqa: BLE001  told to the parent
            told = Told(failed=f"{type(error).__name__}: {error}")
        os.write(tell, json.dumps(asdict(told)).encode())
        os._exit(0)

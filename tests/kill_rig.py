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
from dataclasses import asdict, dataclass, field
from itertools import pairwise
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
ANY = "any instant"
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
    """The `when`-th call of one kind on a path in its thread, `at_s` in the run, and what kind of file it changes."""

    call: str
    when: int
    path: str
    file: str
    at_s: float


def sites(log: Path, folder: Path) -> list[Site]:
    """Return every call in strace's log that changes the scan's folder."""
    seen: Counter[tuple[str, str, str]] = Counter()
    found = []
    for thread, at_s, call, told in re.findall(r"^(\d+) +([\d.]+) (\w+)\((.*)", log.read_text(), re.MULTILINE):
        paths = [path for path in re.findall(r'[<"](/[^>"]*)[>"]', told) if path.startswith(str(folder))]
        if not paths:
            continue
        path = paths[0 if call.startswith("rename") else -1]  # strace asks for the old name only
        seen[thread, call, path] += 1
        if call != "openat" or "O_CREAT" in told:
            kind = _kind(paths[-1].removeprefix(str(folder)))
            found.append(Site(call, seen[thread, call, path], path, kind, float(at_s)))
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


@dataclass
class Tally:
    """What was killed where, and what was wrong with what became of it."""

    hits: Counter[tuple[str, str]] = field(default_factory=Counter)  # of (call, kind of file)
    died_at: list[int] = field(default_factory=list)  # durable tiles
    twice: int = 0
    bad: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Count another's kills too."""
        self.hits.update(other.hits)
        self.died_at += other.died_at
        self.twice += other.twice
        self.bad += other.bad

    def calls(self) -> Counter[str]:
        """Return the kills of each call."""
        calls: Counter[str] = Counter()
        for (call, _), n in self.hits.items():
            calls[call] += n
        return calls

    def judge(
        self, folder: Path, expected: str, where: list[tuple[str, str]], deaths: list[Durable], told: Told
    ) -> None:
        """Count the kills of one scan, and note what is wrong with it after its last resume."""
        self.hits.update(where)
        self.died_at += [len(death.tiles) for death in deaths]
        self.twice += len(where) > 1
        ends = [*deaths, Durable.of(folder)]
        again = sorted({idx for idx, *_ in ends[-2].tiles} & set(told.captured)) if deaths else []
        wrong = {
            told.failed: bool(told.failed),
            f"tiles {again} were captured again": bool(again),
            f"forgotten or made again: {[b.without(a) for a, b in pairwise(ends)]}": any(
                not a <= b for a, b in pairwise(ends)
            ),
            "half files are left": any(folder.rglob("*.partial")) or (folder / "spool").exists(),
            "the pixels differ": not told.failed and digest(folder) != expected,
        }
        self.bad += [f"{' then '.join(map(' of '.join, where))}: {why}" for why, is_so in wrong.items() if is_so]


class Forked:
    """A scan in a process of its own; under strace, which logs some calls and may kill at one, where `log` is given."""

    def __init__(
        self, folder: Path, log: Path | None = None, calls: tuple[str, ...] = (), die: Site | None = None
    ) -> None:
        self._told, tell = os.pipe()
        held, go = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            self._child(folder, held, tell)
        self._tracer = None if log is None else self._trace(log, calls, die)
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

    def _trace(self, log: Path, calls: tuple[str, ...], die: Site | None) -> subprocess.Popen[str]:
        command = [
            "strace",
            "-f",
            "-y",
            "-s",
            "0",
            "-ttt",
            "-o",
            str(log),
            "-p",
            str(self.pid),
            "-e",
            f"trace={','.join(calls)}",
        ]
        if die is not None:  # with a path, strace counts the calls on that path alone
            command += ["-P", die.path, "-e", f"inject={die.call}:signal=SIGKILL:when={die.when}"]
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

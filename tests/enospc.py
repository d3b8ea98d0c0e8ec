"""A disk that fills up under the daemon at many points of a scan: it lives on, and the scan ends as if with room.

    python tests/enospc.py [--points 7] [--record FILE]

The storage root lies on a small file system of its own (ext4 in a loop device, else tmpfs), which is filled in the
middle of a scan until so many bytes, or so many inodes, are left; the daemon is driven over ZeroMQ. Without a reserve
the scan meets the full disk wherever it needs the next byte (spool, journal, shard, report, export) and must be a FAULT
with the cause; with one it must pause before. All the while `status` is asked for. Then room is made, the scan goes on,
by itself or by `scan --resume`, and its mosaic and its OME-TIFF must equal, decoded, those of a scan that had room.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from kill_rig import REGION, SETTINGS, digest
from test_daemon import daemon

from edge_scanner.control.client import Client

AREA = dict(zip(("x_mm", "y_mm", "width_mm", "height_mm"), REGION, strict=True))
DISK_MB = 96
RESERVE_MB = 24
FILES = 600
RESERVE_FILES = 256
SLOWEST_S = 1.0


@contextlib.contextmanager
def small_disk(folder: Path, kind: str = "tmpfs") -> Iterator[Path]:
    """Mount a file system of 96 MB and 600 inodes on a folder.

    Raises
    ------
    PermissionError
        It cannot be mounted here.
    """
    disk, image = folder / "disk", folder / "image"
    disk.mkdir()
    commands = [["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m,nr_inodes={FILES}", "none", str(disk)]]
    if kind == "ext4":
        with image.open("wb") as file:
            file.truncate(DISK_MB << 20)
        make = ["mkfs.ext4", "-q", "-m", "0", "-N", str(FILES), str(image)]
        commands = [make, ["mount", "-o", "loop", str(image), str(disk)]]
    try:
        for command in commands:
            subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise PermissionError(f"A small file system cannot be mounted here ({error}).") from error
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@dataclass(frozen=True)
class Point:
    """How much is left when the disk has been filled."""

    what: str  # bytes or inodes
    left: int
    at_once: bool = False  # before the first tile


@dataclass(frozen=True)
class Seen:
    """What the daemon made of a full disk."""

    point: Point
    became: str  # PAUSED, FAULT, or completed where the room was enough
    done: str
    told: str
    slowest_s: float  # answer to `status`
    wrong: str


class Lane:
    """One daemon, one small disk, one scan after another.

    Parameters
    ----------
    disk : Path
    client : Client
        Of a daemon whose storage root is `disk`.
    reserve : bool
        The daemon keeps one, so it must pause; else it may fail.

    Attributes
    ----------
    takes : dict
        How many bytes and inodes a scan takes at its worst.
    """

    def __init__(self, disk: Path, client: Client, reserve: bool) -> None:
        self._disk, self._client = disk, client
        self._may_become = {"completed", "PAUSED"} if reserve else {"completed", "PAUSED", "FAULT"}
        self._slowest_s = 0.0
        before, scan_id = self._left(), self._begin()
        least = dict(before)

        def watch(status: dict[str, Any]) -> bool:
            for what, left in self._left().items():
                least[what] = min(least[what], left)
            return bool(status["state"] == "IDLE")

        assert self._until(watch)["outcome"] == "completed"
        self.takes = {what: before[what] - least[what] for what in before}
        self._expected = digest(disk / scan_id)
        shutil.rmtree(disk / scan_id)

    def run(self, point: Point) -> Seen:
        """Fill the disk in mid-scan, look what becomes of it, make room, and let the scan end."""
        self._slowest_s = 0.0
        scan_id = self._begin()
        if not point.at_once:
            self._until(lambda status: status["state"] == "SCANNING" and status["done"] > 0)
        self._fill(point)
        seen = self._until(lambda status: status["state"] in ("PAUSED", "FAULT", "IDLE"))
        became = "completed" if seen["state"] == "IDLE" else seen["state"]
        listed = scan_id in [entry["scan_id"] for entry in self._client.scans()]
        told = seen["fault"] or seen.get("pause") or {"message": ""}
        self._empty()
        end = self._ended(scan_id)
        completed = end["outcome"] == "completed"
        wrong = {
            f"it became {became}": became not in self._may_become,
            f"the cause is {told.get('code')}": became == "FAULT" and told["code"] != "disk.low",
            "the scan is not listed": not listed,
            f"it ended {end['outcome']}: {end['fault']}": not completed,
            "the pixels differ": completed and digest(self._disk / scan_id) != self._expected,
        }
        shutil.rmtree(self._disk / scan_id)
        done, wrongs = f"{seen['done']} of {seen['tiles']}", "; ".join(why for why, so in wrong.items() if so)
        return Seen(point, became, done, told["message"].replace(f"{self._disk}/", ""), self._slowest_s, wrongs)

    def _begin(self) -> str:
        self._client.home()
        self._client.wait_idle()
        return str(self._client.scan(**AREA)["scan_id"])

    def _ended(self, scan_id: str) -> dict[str, Any]:
        status = self._client.wait_idle(scan_id)
        if status["state"] == "FAULT":
            self._client.reset()
            self._until(lambda status: status["state"] == "IDLE")
            self._client.scan(resume=scan_id)
            status = self._client.wait_idle(scan_id)
        return status

    def _until(self, reached: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Ask for the status at every event until it is so."""
        with contextlib.closing(self._client.events(silence_s=0.05)) as events:
            for _ in events:
                began_s = time.monotonic()
                status: dict[str, Any] = self._client.status()
                self._slowest_s = max(self._slowest_s, time.monotonic() - began_s)
                if reached(status):
                    return status
        raise AssertionError("events never end")

    def _left(self) -> dict[str, int]:
        disk = os.statvfs(self._disk)
        return {"bytes": disk.f_bavail * disk.f_frsize, "inodes": disk.f_favail}

    def _fill(self, point: Point) -> None:
        (self._disk / "filler").mkdir()
        surplus = self._left()[point.what] - point.left
        if point.what == "bytes":
            with (self._disk / "filler" / "0").open("wb") as file:
                for size in range(surplus, 0, -(64 << 10)):  # the scan takes room meanwhile
                    with contextlib.suppress(OSError):
                        os.posix_fallocate(file.fileno(), 0, size)
                        return
        with contextlib.suppress(OSError):
            for n in range(surplus):
                (self._disk / "filler" / str(n)).touch()

    def _empty(self) -> None:
        shutil.rmtree(self._disk / "filler")


def lane(root: Path, kind: str, what: str, reserve: bool, shares: Sequence[float]) -> Iterator[Seen]:
    """Yield what became of disks with room for such shares of what a scan takes, beside the reserve if any."""
    kept = {"bytes": RESERVE_MB * 1_000_000, "inodes": RESERVE_FILES}[what] * reserve
    more = (f"storage.reserve_mb={RESERVE_MB * reserve}", f"storage.reserve_files={RESERVE_FILES * reserve}")
    with small_disk(root, kind) as disk, daemon(disk / "scans", *SETTINGS, *more) as (client, _, _child):
        scans = Lane(disk / "scans", client, reserve)
        for share in shares:
            yield scans.run(Point(what, kept + int(share * scans.takes[what]), at_once=share == 0))


def record(seen: list[Seen], kind: str, seconds: float) -> str:
    """Return what the lane showed."""
    met = [s for s in seen if s.became != "completed"]
    wrong = [s for s in seen if s.wrong]
    lines = [
        "# A disk that fills up",
        "",
        "Written by `make enospc`; tests/enospc.py says how.",
        "",
        f"Run of {time.strftime('%Y-%m-%d %H:%M')} on {platform.machine()}, {os.cpu_count()} cores, {kind}; "
        f"{seconds / 60:.0f} min. {len(seen)} scans, {len(met)} of them met the full disk, {len(wrong)} wrong; the "
        f"slowest of all answers to `status` took {1000 * max(s.slowest_s for s in seen):.0f} ms.",
        "",
        "| left | became | targets done | slowest status, ms | told | wrong |",
        "|---|---|---|---|---|---|",
    ]
    for s in seen:
        left = f"{s.point.left} {s.point.what}{', before the first tile' * s.point.at_once}"
        lines.append(
            f"| {left} | {s.became} | {s.done} | {1000 * s.slowest_s:.0f} | {s.told} | {s.wrong or 'nothing'} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run all, print the record, return 1 where something is wrong or answered late."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--points", type=int, default=7, help="Of each of four kinds.")
    parser.add_argument("--kind", choices=("ext4", "tmpfs"), default="ext4")
    parser.add_argument("--record", type=Path)
    args = parser.parse_args()
    began_s, seen = time.monotonic(), []
    for what, reserve, until in (
        ("bytes", False, 1),
        ("inodes", False, 0.6),
        ("bytes", True, 0.6),
        ("inodes", True, 0.5),
    ):
        with tempfile.TemporaryDirectory() as name:
            shares = [until * n / args.points for n in range(args.points)]
            for one in lane(Path(name), args.kind, what, reserve, shares):
                sys.stderr.write(f"{one}\n")
                seen.append(one)
    text = record(seen, args.kind, time.monotonic() - began_s)
    sys.stdout.write(text)
    if args.record:
        args.record.write_text(text)
    return int(any(s.wrong or s.slowest_s > SLOWEST_S for s in seen))


if __name__ == "__main__":
    sys.exit(main())

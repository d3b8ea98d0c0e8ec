"""Kill-point sweep: `kill -9` at many instants of a scan, each followed by a resume to the very same files.

    python tests/survive.py [--kills 200] [--record FILE]

Every kind of system call that changes the disk is hit at several of its occurrences, in every kind of file (`strace -e
inject=...:signal=SIGKILL`: the process dies just before the call), and random instants beside. Some resumed scans are
killed again, and some kills hit the daemon, driven over ZeroMQ. After the last resume every level of the mosaic and
every page of the OME-TIFF must equal, decoded, those of the run without a kill; no tile below the durable watermark is
captured again, and no chunk that the journal had is written again. A kill of the process cannot show a missing fsync
(the page cache survives): that needs a power cut.

Each scan but the daemon's runs in a process forked from this one, which has imported everything and scanned nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # a process that forks has one thread
sys.path.insert(0, str(Path(__file__).resolve().parent))

from kill_rig import CALLS, REGION, SETTINGS, Durable, Forked, Site, Told, digest, sites
from test_daemon import daemon

from edge_scanner.control.client import Client, Event

AREA = dict(zip(("x_mm", "y_mm", "width_mm", "height_mm"), REGION, strict=True))
ANY = "any instant"
TILES = 30
INSTANTS = random.SystemRandom()


@dataclass
class Tally:
    """What was killed where, and what was wrong with what became of it."""

    hits: Counter[tuple[str, str]] = field(default_factory=Counter)  # of (call, kind of file)
    died_at: list[int] = field(default_factory=list)  # durable tiles
    twice: int = 0
    bad: list[str] = field(default_factory=list)

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


class ScanSweep:
    """Kills of a scan at system calls and at random instants.

    Parameters
    ----------
    root : Path
        Scans are made there, and removed.
    tally : Tally
    rng : Random
        Draws the system calls.
    """

    def __init__(self, root: Path, tally: Tally, rng: random.Random) -> None:
        self._folder, self._log, self._tally, self._rng = root / "scan", root / "log", tally, rng
        self._tried: Counter[tuple[str, str]] = Counter()
        root.mkdir()
        began_s = time.monotonic()
        told = Forked(self._folder).wait()
        assert told and not told.failed, told
        self._whole_s = time.monotonic() - began_s
        self.expected = digest(self._folder)
        shutil.rmtree(self._folder)
        self.first: list[Site] = []
        self.again: list[Site] = []
        if shutil.which("strace"):
            self.first = self._count()
            syncs = [site for site in self.first if site.call == "syncfs"]
            self._at(syncs[len(syncs) // 2])
            self.again = self._count()

    def trial(self, *kinds: list[Site]) -> None:
        """Kill a scan at one of the first sites, what was resumed at one of the next; without sites at any instant."""
        where, deaths, told = [], [], None
        for among in kinds:
            hit, told = self._strike(among)
            if hit is None:
                break
            where.append(hit)
            deaths.append(Durable.of(self._folder))
        told = told or Forked(self._folder).wait() or Told(failed="it died by itself")
        self._tally.judge(self._folder, self.expected, where, deaths, told)
        shutil.rmtree(self._folder)

    def _strike(self, among: list[Site]) -> tuple[tuple[str, str] | None, Told | None]:
        """Run a scan that is killed; return where, or, where it came to its end before, what it told."""
        if among:
            return self._at(self._pick(among))
        running = Forked(self._folder)
        if not running.ends_within(INSTANTS.uniform(0, 1.2 * self._whole_s)):
            os.kill(running.pid, signal.SIGKILL)
        told = running.wait()
        return (None if told else (ANY, "a scan")), told

    def _at(self, site: Site) -> tuple[tuple[str, str] | None, Told | None]:
        told = Forked(self._folder, self._log, (site.call,), f"{site.call}:signal=SIGKILL:when={site.when}").wait()
        hit = next((s for s in sites(self._log, self._folder) if s.when == site.when), None)  # may be another thread's
        return (None if told else (site.call, hit.file if hit else "other")), told

    def _pick(self, among: list[Site]) -> Site:
        """Return a site of the call that was hit least, in the kind of file where it was tried least."""
        calls, tried, rng = self._tally.calls(), self._tried, self._rng
        call = min(sorted({s.call for s in among}), key=lambda call: (calls[call], rng.random()))
        files = sorted({s.file for s in among if s.call == call})
        file = min(files, key=lambda file: (tried[call, file], rng.random()))
        tried[call, file] += 1
        return rng.choice([s for s in among if (s.call, s.file) == (call, file)])

    def _count(self) -> list[Site]:
        """Return the calls of a scan, or of the resume of the one that is there."""
        told = Forked(self._folder, self._log, CALLS).wait()
        assert told and not told.failed, told
        shutil.rmtree(self._folder)
        return sites(self._log, self._folder)


class DaemonSweep:
    """Kills of the daemon at random instants between a command over ZeroMQ and the end of its work.

    Parameters
    ----------
    root : Path
        Its storage root; emptied after each trial.
    tally : Tally
    """

    def __init__(self, root: Path, tally: Tally) -> None:
        self._root, self._tally = root, tally
        self._whole_s = 0.0
        root.mkdir()
        folder, told = self._run(None)
        assert told and not told.failed, told
        self.expected = digest(folder)
        self._clear()

    def trial(self) -> None:
        """Kill the daemon in a scan, and often in the resumed one too; then let it end."""
        deaths: list[Durable] = []
        folder, told = self._run(self._instant_s())
        while told is None:
            deaths.append(Durable.of(folder))
            folder, told = self._run(self._instant_s() if INSTANTS.random() < 0.3 else None)
        self._tally.judge(folder, self.expected, [(ANY, "the daemon")] * len(deaths), deaths, told)
        self._clear()

    def _instant_s(self) -> float:
        return INSTANTS.uniform(0, self._whole_s)

    def _run(self, kill_after_s: float | None) -> tuple[Path, Told | None]:
        """Begin a scan, or resume the unfinished one; return its folder and, where nobody killed it, what it told."""
        captured: list[int] = []

        def note(event: Event) -> None:
            if event.topic == "tile":
                captured.append(event.fields["index"])

        with daemon(self._root, *SETTINGS, dies=True) as (client, _, child):
            if ended := [entry["scan_id"] for entry in client.scans() if entry["outcome"]]:
                return self._root / ended[0], Told()  # killed after its outcome was in the journal
            scan_id = self._command(client)
            began_s = time.monotonic()
            if kill_after_s is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(timeout=kill_after_s)
                if client.status()["state"] != "IDLE":
                    child.kill()
                    return self._root / scan_id, None
            seen = client.wait_idle(scan_id, on_event=note)
            if kill_after_s is None:  # the latest: how busy the machine is changes
                self._whole_s = time.monotonic() - began_s
        return self._root / scan_id, Told(tuple(captured), "" if seen["outcome"] == "completed" else str(seen["fault"]))

    @staticmethod
    def _command(client: Client) -> str:
        for entry in client.scans():
            if entry["outcome"] is None:
                return str(client.scan(resume=entry["scan_id"])["scan_id"])
        client.home()
        client.wait_idle()
        return str(client.scan(**AREA)["scan_id"])

    def _clear(self) -> None:
        for folder in self._root.iterdir():
            shutil.rmtree(folder)


def sweep(root: Path, kills: int, rng: random.Random) -> tuple[Tally, set[tuple[str, str]]]:
    """Kill so often: 6 of 10 at system calls, half of these resumed and killed again, the rest anywhere."""
    tally = Tally()
    scans = ScanSweep(root / "scans", tally, rng)
    if scans.first:
        while sum(tally.hits.values()) < 0.6 * kills:
            scans.trial(scans.first)
        while sum(tally.hits.values()) < 0.8 * kills:
            scans.trial(scans.first, scans.again)
    while sum(tally.hits.values()) < 0.9 * kills:
        scans.trial([], *[[]] * INSTANTS.randrange(2))
    daemons = DaemonSweep(root / "daemon", tally)
    while sum(tally.hits.values()) < kills:
        daemons.trial()
    return tally, {(site.call, site.file) for site in [*scans.first, *scans.again]}


def record(tally: Tally, calls: set[tuple[str, str]], seconds: float) -> str:
    """Return what the sweep showed."""
    by_call = tally.calls()
    lines = [
        f"Kill-point sweep of {time.strftime('%Y-%m-%d %H:%M')} by `make survive`; tests/survive.py says how.",
        f"{platform.machine()}, {os.cpu_count()} cores, {seconds / 60:.0f} min.",
        "",
        f"{sum(by_call.values())} kills, {tally.twice} resumed scans killed again; {len(tally.bad)} wrong.",
        f"Tiles durable at the kill, of {TILES}: {spread(tally.died_at)}.",
        "",
    ]
    for call in sorted(by_call, key=lambda call: (call == ANY, call)):
        files = ", ".join(f"{file} {n}" for (c, file), n in sorted(tally.hits.items()) if c == call)
        lines.append(f"{call:15s} {by_call[call]:3d}   {files}")
    missed = sorted(calls - set(tally.hits))
    lines += ["", f"Seen in the scan and never hit: {', '.join(map(' of '.join, missed)) or 'nothing'}."]
    return "\n".join([*lines, *[f"WRONG {why}" for why in tally.bad]]) + "\n"


def spread(died_at: list[int]) -> str:
    """Return how many kills fell in each part of a scan."""
    bins = ((0, 0), (1, 9), (10, 19), (20, TILES - 1), (TILES, TILES))
    counts = [(low, high, sum(low <= n <= high for n in died_at)) for low, high in bins]
    return ", ".join(f"{low} to {high}: {n}" if low < high else f"{low}: {n}" for low, high, n in counts)


def main() -> int:
    """Sweep, print a table, return 1 on any difference."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30))
    parser.add_argument("--record", type=Path)
    args = parser.parse_args()
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        tally, calls = sweep(Path(name), args.kills, random.Random(args.seed))
    text = record(tally, calls, time.monotonic() - began_s)
    sys.stdout.write(text)
    if args.record:
        args.record.write_text(text)
    return 1 if tally.bad else 0


if __name__ == "__main__":
    sys.exit(main())

"""Kill-point sweep: `kill -9` at many instants of a scan, each followed by a resume to the very same files.

    python tests/survive.py [--kills 200] [--side-by-side 2] [--minutes 30] [--record FILE]

Every kind of system call that changes the disk is hit at several of its occurrences, in every kind of file (`strace -e
inject=...:signal=SIGKILL`: the process dies just before the call), and random instants beside. Some resumed scans are
killed again, and some kills hit the daemon, driven over ZeroMQ. After the last resume every level of the mosaic and
every page of the OME-TIFF must equal, decoded, those of the run without a kill; no tile below the durable watermark is
captured again, and no chunk that the journal had is written again. A kill of the process cannot show a missing fsync
(the page cache survives): that needs a power cut.

Each scan but the daemon's runs in a process forked from this one, which has imported everything and scanned nothing;
a daemon imports the sources anew, so nobody may change them meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import multiprocessing
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
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle
from pathlib import Path

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # a process that forks has one thread
sys.path.insert(0, str(Path(__file__).resolve().parent))

from kill_rig import ANY, CALLS, REGION, SETTINGS, Durable, Forked, Site, Tally, Told, digest, sites
from test_daemon import daemon

from edge_scanner.control.client import Client, Event

AREA = dict(zip(("x_mm", "y_mm", "width_mm", "height_mm"), REGION, strict=True))
TILES = 30
ANY_CALL = 0.25
"""So many of the kills at system calls are drawn by their instant alone, not to hit each call as often."""
INSTANTS = random.SystemRandom()


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
        told = Forked(self._folder, self._log, (site.call,), site).wait()
        return (None if told else (site.call, site.file)), told

    def _pick(self, among: list[Site]) -> Site:
        """Return a site of the call hit least, in the kind of file where it was tried least; at times, any."""
        calls, tried, rng = self._tally.calls(), self._tried, self._rng
        durable_s = next((s.at_s for s in among if s.call == "syncfs"), among[0].at_s)
        if rng.random() < ANY_CALL:
            call, file = "", ""
        else:
            call = min(sorted({s.call for s in among}), key=lambda call: (calls[call], rng.random()))
            files = sorted({s.file for s in among if s.call == call})
            file = min(files, key=lambda file: (tried[call, file], rng.random()))
            tried[call, file] += 1
        instant_s = rng.uniform(rng.choice((among[0].at_s, durable_s)), among[-1].at_s)  # by count, most come early
        of_kind = [s for s in among if (s.call, s.file) == (call, file)] or among
        return min(of_kind, key=lambda s: abs(s.at_s - instant_s))

    def _count(self) -> list[Site]:
        """Return the calls of a scan, or of the resume of the one that is there."""
        told = Forked(self._folder, self._log, CALLS).wait()
        assert told and not told.failed, told
        shutil.rmtree(self._folder)
        return sites(self._log, self._folder)


class DaemonSweep:
    """Kills of the daemon at random instants after a random tile, or before the first; driven over ZeroMQ.

    Parameters
    ----------
    root : Path
        Its storage root; emptied after each trial.
    tally : Tally
    """

    def __init__(self, root: Path, tally: Tally) -> None:
        self._root, self._tally = root, tally
        root.mkdir()
        began_s = time.monotonic()
        folder, told = self._run(dies=False)
        assert told and not told.failed, told
        self._whole_s = time.monotonic() - began_s
        self.expected = digest(folder)
        self._clear()

    def trial(self) -> None:
        """Kill the daemon in a scan, and often in the resumed one too; then let it end."""
        deaths: list[Durable] = []
        folder, told = self._run(dies=True)
        while told is None:
            deaths.append(Durable.of(folder))
            folder, told = self._run(dies=INSTANTS.random() < 0.3)
        self._tally.judge(folder, self.expected, [(ANY, "the daemon")] * len(deaths), deaths, told)
        self._clear()

    def _run(self, dies: bool) -> tuple[Path, Told | None]:
        """Begin a scan, or resume the unfinished one; return its folder and, where nobody killed it, what it told."""
        captured: list[int] = []

        def note(event: Event) -> None:
            if event.topic == "tile":
                captured.append(event.fields["index"])

        with daemon(self._root, *SETTINGS, dies=True) as (client, _, child):
            if ended := [entry["scan_id"] for entry in client.scans() if entry["outcome"]]:
                return self._root / ended[0], Told()  # killed after its outcome was in the journal
            scan_id = self._command(client)
            if dies:
                self._wait(client, child)
                if client.status()["state"] != "IDLE":
                    child.kill()
                    return self._root / scan_id, None
            seen = client.wait_idle(scan_id, on_event=note)
        return self._root / scan_id, Told(tuple(captured), "" if seen["outcome"] == "completed" else str(seen["fault"]))

    def _wait(self, client: Client, child: subprocess.Popen[str]) -> None:
        """Wait for a random one of the tiles, and a little longer."""
        tiles = INSTANTS.randrange(TILES + 1)
        with contextlib.closing(client.events(silence_s=1)) as events:
            for event in events:
                if event.fields.get("done", 0) >= tiles or event.fields.get("state") in ("IDLE", "FAULT"):
                    break
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=INSTANTS.uniform(0, self._whole_s / 4))

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


def sweep(root: Path, kills: int, seed: int, until_s: float) -> tuple[Tally, set[tuple[str, str]]]:
    """Kill so often: 6 of 10 at system calls, 2 where a scan and its resume are killed, the rest anywhere."""
    root.mkdir()
    tally = Tally()
    scans = ScanSweep(root / "scans", tally, random.Random(seed))
    daemons = DaemonSweep(root / "daemon", tally)
    once = partial(scans.trial, scans.first)
    anywhere, twice = partial(scans.trial, []), partial(scans.trial, scans.first, scans.again)
    turns: Iterator[Callable[[], None]] = cycle((once, once, once, anywhere, once, once, once, twice, daemons.trial))
    while sum(tally.hits.values()) < kills and time.monotonic() < until_s:
        try:
            next(turns)()
        except Exception as error:  # noqa: BLE001  recorded with the kills that there are
            tally.bad.append(f"the sweep broke: {type(error).__name__}: {error}")
            break
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
    parser.add_argument("--side-by-side", type=int, default=1, metavar="N", help="sweeps that share the kills")
    parser.add_argument("--minutes", type=float, default=math.inf, help="then it ends with the kills that it has")
    args = parser.parse_args()
    began_s, n = time.monotonic(), args.side_by_side
    tally, calls = Tally(), set[tuple[str, str]]()
    with tempfile.TemporaryDirectory() as name, multiprocessing.get_context("fork").Pool(n) as pool:
        until_s = began_s + 60 * args.minutes
        shares = [(Path(name) / str(i), math.ceil(args.kills / n), args.seed + i, until_s) for i in range(n)]
        for part, seen in pool.starmap(sweep, shares, chunksize=1):
            tally.add(part)
            calls |= seen
    text = record(tally, calls, time.monotonic() - began_s)
    sys.stdout.write(text)
    if args.record:
        args.record.write_text(text)
    return 1 if tally.bad else 0


if __name__ == "__main__":
    sys.exit(main())

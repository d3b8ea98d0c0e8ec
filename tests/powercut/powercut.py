"""Power cuts: a virtual machine scans, is killed at random instants, boots again, is checked, and goes on.

    python tests/powercut/powercut.py [--cuts 24] [--mutated 6] [--minutes M] [--jobs 2] [--seed N] [--record FILE]

The guest (`guest.py`) tells the serial console what it claims to be durable. After each cut the next boot reads what
the disk really holds, before the scanner starts: every tile and chunk that was ever claimed must be there with its
checksum, and the journal must be sound. Then the scan goes on, is cut again, and in the end equals, decoded, at every
level and on every page of the OME-TIFF, the scan that was never cut; no tile claimed durable is captured again. The
same with fsync, fdatasync and syncfs made to do nothing must report losses, or the check could not fail.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from machine import Machine, Parts, missing

BOOT_LIMIT_S = 600
LINES = (2, 80)
"""A cut comes so many lines after the start; an uninterrupted scan writes about 250."""
LATE_LINES = (140, 240)
"""Likewise without fsync, where one cut ends a scan: it comes when chunks have been claimed too."""


@dataclass
class Claims:
    """What the guests of one scan claimed to be durable: name -> checksum."""

    tiles: dict[str, str] = field(default_factory=dict)
    chunks: dict[str, str] = field(default_factory=dict)

    def take(self, lines: list[list[str]]) -> None:
        self.tiles |= {words[1]: words[2] for words in lines if words[0] == "durable"}
        self.chunks |= {" ".join(words[1:5]): words[5] for words in lines if words[0] == "stored"}

    def lost(self, lines: list[list[str]]) -> list[str]:
        """Return what was claimed and is not there."""
        tiles = {words[1]: words[2] for words in lines if words[0] == "have-tile"}
        chunks = {" ".join(words[1:5]): words[5] for words in lines if words[0] == "have-chunk"}
        lost = [f"tile {n}" for n, crc in self.tiles.items() if tiles.get(n) not in (crc, "chunks")]
        lost += [f"chunk {key}" for key, crc in self.chunks.items() if chunks.get(key) != crc]
        if (self.tiles or self.chunks) and ["journal", "ok"] not in lines:
            lost.append("journal")
        return lost


@dataclass
class Tally:
    """What a series of cuts came to."""

    cuts: int = 0
    during_recovery: int = 0
    checks: int = 0
    tiles: int = 0
    chunks: int = 0
    cached_blocks: int = 0
    lost_blocks: int = 0
    completed: int = 0
    wrong: list[str] = field(default_factory=list)
    lossy: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


def words_of(machine: Machine) -> list[list[str]]:
    """Return the guest's whole lines that matter, as words; the cut may have torn the last one."""
    text = machine.console.read_text(errors="replace")
    whole = text[: text.rfind("\n") + 1].splitlines()
    return [line.split()[1:] for line in whole if line.startswith("@ ") and len(line.split()) > 1]


@dataclass(frozen=True)
class Instant:
    """When to cut: so many lines after the check, then perhaps when the drive is written to, then so much later."""

    lines: float
    at_write: bool = False
    linger_s: float = 0.0

    @classmethod
    def draw(cls, rng: random.Random, *, fsync: bool) -> Instant:
        lines = rng.randrange(*(LINES if fsync else LATE_LINES))
        lines = 1 if fsync and rng.random() < 0.2 else lines  # 1: the scanner begins to recover
        return cls(lines, True, rng.uniform(0, 0.02)) if rng.random() < 0.5 else cls(lines, False, rng.uniform(0, 2))

    def wait(self, machine: Machine) -> None:
        """Wait for the moment, once the lines are there."""
        written, end_s = machine.written, time.monotonic() + 10
        while self.at_write and machine.written == written and time.monotonic() < end_s:
            time.sleep(0.001)
        time.sleep(self.linger_s)


def run(machine: Machine, instant: Instant, *, fsync: bool) -> tuple[list[list[str]], bool]:
    """Boot and cut the power at that instant.

    Returns
    -------
    list of list of str
        The guest's lines.
    bool
        True when the power was cut, False when the guest was through, or silent for too long.
    """
    cut = False
    guest = machine.boot("scan", fsync=fsync)
    end_s = time.monotonic() + BOOT_LIMIT_S
    while guest.poll() is None and time.monotonic() < end_s:
        said = words_of(machine)
        if ["checked"] in said and len(said) - said.index(["checked"]) > instant.lines:
            instant.wait(machine)
            cut = guest.poll() is None
            break
        time.sleep(0.02)
    guest.kill()
    guest.wait()
    return words_of(machine), cut


def series(machine: Machine, cuts: int, expected: list[list[str]], *, fsync: bool, seed: int, until_s: float) -> Tally:
    """Cut so often, on new disks whenever a scan is complete or something was lost.

    The last boot is not cut: it completes its scan. Without fsync it only looks at the disk.
    """
    rng, tally, claims = random.Random(seed), Tally(), Claims()
    machine.new_disk()
    while True:
        last = tally.cuts >= cuts or time.monotonic() > until_s
        instant = Instant.draw(rng, fsync=fsync) if not last else Instant(float("inf") if fsync else 0)
        said, cut = run(machine, instant, fsync=fsync)
        wrong = []
        if ["checked"] in said:
            tally.checks, tally.tiles = tally.checks + 1, tally.tiles + len(claims.tiles)
            tally.chunks += len(claims.chunks)
            wrong += claims.lost(said)
        again = [words[1] for words in said if words[0] == "captured" and words[1] in claims.tiles]
        wrong += [f"tile {n} captured again" for n in again]
        wrong += [" ".join(words) for words in said if words[0] == "captured" and words not in expected]
        claims.take(said)
        done = any(words[0] == "digest" for words in said)
        if done:
            tally.completed += 1
            wrong += [] if expected[-2] in said else ["the finished scan differs"]
        elif not cut:
            wrong.append("the scan did not end: " + machine.console.read_text(errors="replace")[-300:].strip())
        if wrong:
            tally.wrong.append(f"after cut {tally.cuts} of seed {seed}: {len(wrong)} wrong: {'; '.join(wrong[:6])}")
            tally.lossy += 1
        if last:
            return tally
        if done or wrong:
            claims = Claims()
            machine.new_disk()
            continue
        tally.cuts += 1
        tally.during_recovery += not any(words[0] == "captured" for words in said)
        cached, lost = machine.settle(rng.choice((0.0, 0.5, 1.0)), rng)
        tally.cached_blocks, tally.lost_blocks = tally.cached_blocks + cached, tally.lost_blocks + lost
        sys.stderr.write(
            f"cut {tally.cuts} of seed {seed}: {len(claims.tiles)} tiles and {len(claims.chunks)} chunks claimed, "
            f"{lost} of {cached} unflushed blocks lost\n"
        )


def report(whole: Tally, mutated: Tally, minutes: float) -> str:
    """Return the record."""
    cpu = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("model name")), platform.machine())  # fmt: skip
    rows = [
        ("power cuts", "cuts"),
        ("of these before the first capture of their boot", "during_recovery"),
        ("boots that checked the disk", "checks"),
        ("tiles claimed durable, looked for (summed over the checks)", "tiles"),
        ("chunks claimed stored, looked for (likewise)", "chunks"),
        ("4 KiB blocks in the drive's cache at the cuts", "cached_blocks"),
        ("of these lost", "lost_blocks"),
        ("scans completed and compared", "completed"),
        ("boots that found something lost or wrong", "lossy"),
    ]
    lines = [
        "# Power cuts",
        "",
        "A virtual machine scans, its power is cut, the next boot looks for all that was claimed durable, and goes on.",
        "Written by `make powercut`; `tests/powercut/powercut.py` says how.",
        "",
        f"Run of {time.strftime('%Y-%m-%d %H:%M')} on {cpu}, {os.cpu_count()} cores; {minutes:.0f} min, no KVM.",
        "",
        "| | as it is | fsync does nothing |",
        "|---|---|---|",
        *(f"| {label} | {getattr(whole, name)} | {getattr(mutated, name)} |" for label, name in rows),
        "",
        *(f"- WRONG {text}" for text in whole.wrong),
        *(f"- without fsync, {text}" for text in mutated.wrong),
    ]
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    """Run both series; return 1 when anything is lost, or when nothing is without fsync."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cuts", type=int, default=24)
    parser.add_argument("--mutated", type=int, default=6)
    parser.add_argument("--minutes", type=float, default=120, help="no more cuts after that")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--record", type=Path)
    args = parser.parse_args()
    if why := missing():
        sys.stdout.write(f"skipped: {why}\n")
        return 0
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="powercut.") as name, ThreadPoolExecutor(args.jobs) as pool:
        root = Path(name)
        parts = Parts.make(root, Path(__file__).resolve().parents[2])
        machines = []
        for n in range(args.jobs):
            (root / str(n)).mkdir()
            machines.append(Machine(root / str(n), parts))
        machines[0].new_disk()
        expected, _ = run(machines[0], Instant(float("inf")), fsync=True)
        if expected[-1:] != [["end"]]:
            sys.stdout.write(machines[0].console.read_text(errors="replace"))
            return 1
        found = []
        for fsync, cuts in ((False, args.mutated), (True, args.cuts)):
            shares = [cuts // args.jobs + (n < cuts % args.jobs) for n in range(args.jobs)]
            running = [
                pool.submit(series, machines[n], share, expected, fsync=fsync, seed=args.seed + n,
                            until_s=began_s + 60 * args.minutes)
                for n, share in enumerate(shares) if share
            ]  # fmt: skip
            found.append(sum((each.result() for each in running), Tally()))
    mutated, whole = found
    text = report(whole, mutated, (time.monotonic() - began_s) / 60)
    sys.stdout.write(text)
    if args.record:
        args.record.write_text(text)
    return 0 if whole.cuts and not whole.wrong and (mutated.wrong or not args.mutated) else 1


if __name__ == "__main__":
    sys.exit(main())

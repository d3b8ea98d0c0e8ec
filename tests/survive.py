"""Kill-point sweep: `kill -9` at many instants of a scan, each followed by a resume to the very same files.

    python tests/survive.py [--kills 200] [--record FILE]

Every kind of system call that changes the disk is hit at several of its occurrences (`strace -e inject=...:signal=
SIGKILL`), and random instants beside. After each kill the scan is resumed in a fresh process, and every level of the
mosaic and every page of the OME-TIFF must equal, decoded, those of the run without a kill; no tile below the durable
watermark is captured again. A kill of the process cannot show a missing fsync (the page cache survives): that needs a
power cut.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

CALLS = ("write", "pwrite64", "rename", "fsync", "fdatasync", "syncfs", "unlink", "ftruncate")
SETTINGS = ("sim.stage_error_um=3", "sim.backlash_um=2", "mosaic.codec=jpeg", "mosaic.chunk_px=256")
REGION = (0.0, 0.0, 1.0, 0.9)


def work(folder: Path) -> None:
    """Begin a scan in `folder`, or go on with the one that is there, and export it. Run in a process of its own."""
    from scan_rig import homed_rig, small_config

    from edge_scanner.abort import Abort
    from edge_scanner.export import to_ome_tiff
    from edge_scanner.journal import Journal
    from edge_scanner.plan import ScanRegion
    from edge_scanner.scanner import build
    from edge_scanner.scanner import scan as scans
    from edge_scanner.scanner.pipeline import Pipeline

    build.COMMIT_CHUNKS, build.CHECKPOINT_TILES = 6, 3
    config = small_config(folder, *SETTINGS)
    resume = (folder / "slide.ome.zarr").exists()
    folder.mkdir(exist_ok=True)
    durable = set()
    if resume:
        journal = Journal(folder / "journal.sqlite")
        durable = {row["idx"] for row in journal.tiles()}
        journal.close()
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
    sys.stdout.write(json.dumps({"captured": captured, "again": sorted(durable & set(captured))}) + "\n")


def digest(folder: Path) -> str:
    """Return a hash over the decoded pixels of every level and of every page of the TIFF."""
    import tifffile
    from scan_rig import levels_of

    total = hashlib.sha256()
    for level in levels_of(folder):
        total.update(np.ascontiguousarray(level).tobytes())
    with tifffile.TiffFile(folder / "slide.ome.tif") as tiff:
        for page in tiff.pages:
            total.update(np.ascontiguousarray(page.asarray()).tobytes())
    return total.hexdigest()


def child(folder: Path, *wrapper: str) -> subprocess.Popen[str]:
    command = [*wrapper, sys.executable, __file__, "--work", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def counts(root: Path) -> Counter[str]:
    """Return how often each call occurs, the most in any one thread, which is what strace counts by."""
    log = root / "calls"
    child(root / "counted", "strace", "-f", "-qq", "-o", str(log), "-e", f"trace={','.join(CALLS)}").communicate()
    by_thread = Counter(re.findall(r"^(\d+) +(\w+)\(", log.read_text(), re.MULTILINE))
    most: Counter[str] = Counter()
    for (_, call), n in by_thread.items():
        most[call] = max(most[call], n)
    return most


def plan_kills(kills: int, seen: Counter[str], seconds: float, seed: int) -> list[tuple[str, float]]:
    """Return (call, occurrence) and ("random", seconds): at least ten of each kind where there are so many kills."""
    rng = random.Random(seed)
    kinds = [call for call in CALLS if seen[call]]
    each = max(1, kills * 3 // 4 // max(1, len(kinds)))
    planned: list[tuple[str, float]] = []
    for call in kinds:
        spots = rng.sample(range(1, seen[call] + 1), min(each, seen[call]))
        planned += [(call, spots[n % len(spots)]) for n in range(each)]  # a rare call is hit again, threads vary
    planned += [("random", rng.uniform(0.3, 1.0) * seconds) for _ in range(kills - len(planned))]
    return planned


def kill(folder: Path, kind: str, at: float) -> bool:
    """Run a scan and kill it there; tell whether it died of it."""
    if kind == "random":
        running = child(folder)
        time.sleep(at)
        running.send_signal(signal.SIGKILL)
    else:
        inject = f"inject={kind}:signal=SIGKILL:when={int(at)}"
        running = child(folder, "strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={kind}", "-e", inject)
    running.communicate()
    return running.returncode != 0


def main() -> int:
    """Sweep, print a table, return 1 on any difference."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--record", type=Path)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(args.work)
        return 0
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        began_s = time.monotonic()
        _, complaint = child(root / "whole").communicate()
        seconds = time.monotonic() - began_s
        expected = digest(root / "whole")
        seen = counts(root) if shutil.which("strace") else Counter()
        died, bad, captured = Counter(), [], []
        for kind, at in plan_kills(args.kills, seen, seconds, args.seed):
            folder = root / "scan"
            died[kind] += kill(folder, kind, at)
            out, complaint = child(folder).communicate()
            try:
                told = json.loads(out)
                captured.append(len(told["captured"]))
                if told["again"] or digest(folder) != expected:
                    bad.append((kind, at, f"captured again: {told['again']}" if told["again"] else "pixels differ"))
            except ValueError:
                bad.append((kind, at, complaint.strip().splitlines()[-1] if complaint.strip() else "no answer"))
            shutil.rmtree(folder, ignore_errors=True)
    total = sum(died.values())
    lines = [f"{total} kills of {args.kills} runs, each resumed; {len(bad)} wrong"]
    lines += [f"  {kind:10s} {n:4d} kills (of {seen[kind] or '-'} calls in one thread)" for kind, n in died.items()]
    lines += [f"  tiles captured after resume: min {min(captured, default=0)}, max {max(captured, default=0)}"]
    lines += [f"  WRONG {kind} at {at}: {why}" for kind, at, why in bad]
    text = "\n".join(lines) + "\n"
    sys.stdout.write(text)
    if args.record:
        args.record.write_text(text)
    return 1 if bad or not total else 0


if __name__ == "__main__":
    sys.exit(main())

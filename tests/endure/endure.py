"""Large slides in little memory, and on a slow disk: the daemon in a memory control group, driven over its socket.

    python tests/endure/endure.py [CASE...] [--record tests/records/memory.md] [--work DIR]

Runs the named cases (all without), each in a daemon of its own, and writes what they showed: the figures into
`memory.json` beside the record, so that cases may be run apart, and the report's plot of each. Needs root, some 15 GB
of disk and, for all cases, more than an hour.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from cgroup import RefusedError
from record import write_record
from watched import Case, run

LEAN = ("scan.buffer_mb=16", "scan.cache_mb=16")
CASES = {
    "square": Case(60_000, 60_000, 1024),
    "tall": Case(60_000, 120_000, 1024),
    "lean": Case(60_000, 15_000, 512, settings=LEAN),
    "quick-disk": Case(20_000, 10_000, 1024, disk_mb_s=1000),
    "slow-disk": Case(20_000, 10_000, 1024, disk_mb_s=10),
}
"""The last two differ only in what the disk is held to."""


def main() -> int:
    """Run; 1 when a scan did not complete."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--record", type=Path)
    parser.add_argument("--work", type=Path, help="Folder for slides and scans, which are removed at the end.")
    args = parser.parse_args()
    if unknown := set(args.cases) - set(CASES):
        parser.error(f"no such case: {', '.join(sorted(unknown))}")
    if args.work:
        args.work.mkdir(parents=True, exist_ok=True)
    failed = 0
    for name in args.cases or CASES:
        try:
            with tempfile.TemporaryDirectory(dir=args.work) as work:
                told, plot = run(CASES[name], Path(work))
        except RefusedError as error:
            sys.stderr.write(f"{error}\n")
            return 2
        sys.stdout.write(json.dumps({"case": name, **told}) + "\n")
        sys.stdout.flush()
        failed += told["outcome"] != "completed"
        if args.record:
            write_record(args.record, name, told, plot)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

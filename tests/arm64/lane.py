"""The wheel on aarch64, emulated: installed from package wheels only, tests run, a slide scanned; writes a record.

    python tests/arm64/lane.py --record tests/records/arm64.md [--steps install contract] [--only test_plan.py]

Needs root, qemu-user-static, mmdebstrap, a Debian mirror and a package index, as pip finds it on this machine: wheels
are fetched from here, and installed over there without an index. `--rig DIR` keeps the root and what the last run of
each step showed, so that steps can be run one by one. The kernel runs foreign programs only while this does.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from root import REPOSITORY, TOOLS, Root, emulation

CONTRACT = (
    "test_board.py", "test_config.py", "test_control_client.py", "test_control_events.py", "test_control_server.py",
    "test_curve.py", "test_device_contract.py", "test_drivers_bytes.py", "test_drivers_faults.py",
    "test_drivers_serial.py", "test_schema.py", "test_store_layout.py",
)  # fmt: skip
INTEGRATION = (
    "test_daemon.py", "test_scan.py", "test_resume.py", "test_service.py", "test_push.py", "test_export_ome_tiff.py",
    "test_fuse_scan.py", "test_report.py", "test_calibrate.py", "test_memory.py",
)  # fmt: skip
LEFT_OUT = {
    "test_cli_bad_input.py": "starts the program some forty times; each start takes seconds here",
    "test_control_fuzz.py": "long; generated messages do not depend on the processor",
    "test_export_readers.py": "needs the extra [readers]",
    "test_fuse_cluster.py": "Dask's own time-outs on the real clock",
    "test_hil_scenarios.py": "budgets on the real clock",
    "test_model_eval.py": "long: the network over many simulated frames",
    "test_store_faults.py": "long: a process a fault",
    "test_store_readers.py": "needs the extra [readers]",
    "test_survive.py": "strace cannot trace an emulated program",
}
"""Everything else in `tests/` is a unit test."""
SCAN = (
    "--width-mm", "0.8", "--height-mm", "0.6", "--set", "camera.width_px=612", "--set", "camera.height_px=512",
    "--set", "sim.tissue_width_mm=1.0", "--set", "sim.tissue_height_mm=0.8",
)  # fmt: skip
SEE = """
import collections, importlib.metadata as m, json, platform
tags = collections.Counter()
for one in m.distributions():
    wheel = one.read_text("WHEEL") or ""
    lines = [line[5:] for line in wheel.splitlines() if line.startswith("Tag: ")]
    tags["aarch64" if any("aarch64" in line for line in lines) else "pure" if lines else "no wheel"] += 1
import edge_scanner, numpy, zarr, onnxruntime
print(json.dumps({"machine": platform.machine(), "python": platform.python_version(), "tags": tags,
    "from": edge_scanner.__file__, "numpy": numpy.__version__, "zarr": zarr.__version__,
    "onnxruntime": onnxruntime.__version__}))
"""


@dataclass
class Row:
    """What one step showed; of tests, each file's outcomes."""

    seen: str = ""
    took_s: float = 0.0
    tree: str = ""
    files: dict[str, dict[str, int]] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def told(self) -> str:
        if not self.files:
            return self.seen
        total = sum((Counter(outcomes) for outcomes in self.files.values()), Counter[str]())
        return f"{len(self.files)} files: " + ", ".join(f"{count} {kind}" for kind, count in total.most_common())

    def after(self, old: Row) -> Row:
        """Return this with what an earlier run of other files showed."""
        kept = {name: outcomes for name, outcomes in old.files.items() if name not in self.files}
        of_kept = [[one for one in lines if one.split("::")[0] in kept] for lines in (old.failed, old.skipped)]
        trees = " ".join(dict.fromkeys([*old.tree.split(), *self.tree.split()])) if kept else self.tree
        return Row(
            self.seen, self.took_s + (old.took_s if kept else 0.0), trees, kept | self.files,
            of_kept[0] + self.failed, of_kept[1] + self.skipped,
        )  # fmt: skip


class Lane:
    """The steps, in order."""

    def __init__(self, root: Root, only: list[str], jobs: int) -> None:
        self._root, self._only, self._jobs = root, only, jobs

    def install(self) -> Row:
        wheel = self._root.fetch()
        self._root.sh("python3", "-m", "venv", "--clear", "/venv")
        only = ("--no-compile", "--only-binary=:all:", "--no-index", "--find-links=/mnt")
        self._root.sh("pip", "install", "-q", *only, f"/mnt/{wheel}[cpu,test]")
        seen = json.loads(self._root.sh("python", "-c", SEE).splitlines()[-1])
        check(seen["machine"] == "aarch64" and seen["from"].startswith("/venv/"), seen)
        check("no wheel" not in seen["tags"], seen)
        tags = ", ".join(f"{count} {kind}" for kind, count in sorted(seen["tags"].items()))
        versions = ", ".join(f"{name} {seen[name]}" for name in ("numpy", "zarr", "onnxruntime"))
        return Row(f"Python {seen['python']} on {seen['machine']}; wheels only ({tags}): {versions}")

    def unit(self) -> Row:
        others = {*CONTRACT, *INTEGRATION, *LEFT_OUT}
        return self._tests(sorted(f.name for f in (REPOSITORY / "tests").glob("test_*.py") if f.name not in others))

    def contract(self) -> Row:
        return self._tests(CONTRACT)

    def integration(self) -> Row:
        return self._tests(INTEGRATION)

    def _tests(self, names: Iterable[str]) -> Row:
        chosen = [name for name in names if not self._only or name in self._only]
        if not chosen:
            return Row()
        junit = self._root.root / "junit.xml"
        junit.unlink(missing_ok=True)
        how = ("-q", "-n", str(self._jobs), "--dist", "loadfile", "-p", "no:cacheprovider", "--durations=15")
        done = self._root.run(
            "python", "-m", "pytest", *how, "--junitxml=/junit.xml", *(f"tests/{name}" for name in chosen)
        )
        sys.stdout.write(done.stdout[-12000:] + "\n")
        row = Row()
        for case in ET.parse(junit).iter("testcase"):
            if (name := case.get("classname")) is None:  # begun, and broken off with the run
                continue
            file = name.removeprefix("tests.").partition(".")[0] + ".py"
            kind = next((child.tag for child in case if child.tag in ("failure", "error", "skipped")), "passed")
            outcomes = row.files.setdefault(file, {})
            outcomes[kind] = outcomes.get(kind, 0) + 1
            if kind == "skipped":
                row.skipped.append(f"{file}::{case.find('skipped').get('message', '')}")  # type: ignore[union-attr]
            elif kind != "passed":
                row.failed.append(f"{file}::{case.get('name')}")
        return row

    def demo(self) -> Row:
        said = self._root.sh("edge-scanner", "demo", "--out", "/tmp/out", "--json", *SCAN)
        report = json.loads(said[said.index("{") :])
        check(report["outcome"] == "completed" and not report["holes"], report)
        return Row(
            f"{report['outcome']}, {report['tiles']} tiles, coverage {report['coverage']}, "
            f"PSNR {report['psnr_db']:.1f} dB, peak {report['peak_rss_mib']:.0f} MiB"
        )


STEPS = {
    "install": "install from package wheels only",
    "demo": "`edge-scanner demo`",
    "contract": "contract tests",
    "integration": "integration tests",
    "unit": "unit tests",
}


def check(true: object, seen: object) -> None:
    if not true:
        raise AssertionError(seen)


def tree() -> str:
    told = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=REPOSITORY, capture_output=True, text=True)
    return told.stdout.strip()


def write(path: Path, rows: dict[str, Row]) -> None:
    emulator = subprocess.run([TOOLS[0], "--version"], capture_output=True, text=True).stdout.splitlines()[0]
    ran = {name for row in rows.values() for name in row.files}
    rest = sorted(file.name for file in (REPOSITORY / "tests").glob("test_*.py") if file.name not in ran)
    failed = [name for row in rows.values() for name in row.failed]
    skipped = Counter(line.partition("::")[2] for row in rows.values() for line in row.skipped)
    lines = [
        "# The wheel on aarch64, emulated",
        "",
        f"`make arm64-test`, {datetime.now(UTC):%Y-%m-%d}, Debian 12 root for arm64 on {platform.machine()}, "
        f"{os.cpu_count()} cores (shared), {emulator}. Steps may be run one by one; each names its tree.",
        "",
        "| step | seen | tree | s |",
        "|---|---|---|---|",
        *(f"| {STEPS[step]} | {row.told()} | {row.tree} | {row.took_s:.0f} |" for step, row in rows.items()),
        "",
        "Ran: " + ", ".join(f"`{name}`" for name in sorted(ran)) + ".",
        *(["", "Failed:", "", *(f"- `{name}`" for name in failed)] if failed else []),
        *(["", "Skipped:", "", *(f"- {count}: {why}" for why, count in skipped.most_common())] if skipped else []),
        *(["", "Not run:", "", *(f"- `{name}`: {LEFT_OUT.get(name, 'no time')}" for name in rest)] if rest else []),
    ]
    path.write_text("\n".join(lines) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", type=Path)
    parser.add_argument("--rig", type=Path, default=Path("/var/tmp/edge-scanner-arm64"))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--steps", nargs="*", default=[], help="some steps; without install, in what the last run left")
    parser.add_argument("--only", nargs="*", default=[], help="some files of tests/")
    given = parser.parse_args()
    missing = [name for name in TOOLS if shutil.which(name) is None]
    if missing or os.geteuid():
        sys.stderr.write(f"This lane needs root and {', '.join(missing) or 'nothing else'}.\n")
        return 2
    root = Root(given.rig)
    lane = Lane(root, given.only, given.jobs)
    memory = given.rig / "rows.json"
    rows = {step: Row(**row) for step, row in json.loads(memory.read_text()).items()} if memory.exists() else {}
    with emulation():
        root.prepare()
        for step, name in STEPS.items():
            if given.steps and step not in given.steps:
                continue
            began_s = time.monotonic()
            if not (row := getattr(lane, step)()).told():
                continue
            row.tree, row.took_s = tree(), time.monotonic() - began_s
            sys.stdout.write(f"{name}: {row.told()} ({row.took_s:.0f} s)\n{' '.join(row.failed)}\n")
            rows[step] = row.after(rows.get(step, Row())) if row.files else row
            sys.stdout.flush()
            memory.write_text(json.dumps({step: asdict(row) for step, row in rows.items()}))
    if given.record:
        write(given.record, {step: rows[step] for step in STEPS if step in rows})
    return 1 if any(row.failed for row in rows.values()) else 0


if __name__ == "__main__":
    sys.exit(main())

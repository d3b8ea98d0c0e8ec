"""One scan by a daemon in a memory control group, watched from outside."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from cgroup import MemoryGroup, measured_bytes_s, slow_disk
from specimen import PIXEL_UM, write_specimen

from edge_scanner.control.client import Client, NoAnswerError

START_S = 60.0
SETTINGS = (
    "camera.width_px=2448",
    "camera.height_px=2048",
    f"optics.pixel_size_um={PIXEL_UM}",
    "scan.overlap=0.12",
    "focus.mode=off",
    "sim.clock=virtual",
    "sim.stage_error_um=0",
    "sim.blur=false",
    "sim.noise=false",
    "sim.vignetting=false",
    "sim.surface=false",
    "stage.error_um=0.5",
    "stage.y_max_mm=40",
)
"""The simulator's optics are off: they take most of the time, and none of the memory that is asked for here."""
WATCHDOG_S = 30
"""As in the unit."""


@dataclass(frozen=True)
class Case:
    """A slide, and what the daemon is held to; the disk is the machine's own where no rate is given."""

    width_px: int
    height_px: int
    limit_mib: int
    disk_mb_s: int | None = None
    settings: tuple[str, ...] = ()


@dataclass
class Watch:
    """What is seen once a second: MiB resident, the daemon's own and its children's, and how long an answer takes."""

    group: MemoryGroup
    client: Client
    own_mib: list[float] = field(default_factory=list)
    children_mib: float = 0.0
    answer_s: float = 0.0

    def look(self, daemon: int) -> None:
        """Take one sample."""
        resident = {pid: rss_mib(pid) for pid in self.group.pids()}
        self.own_mib.append(resident.pop(daemon, 0.0))
        self.children_mib = max(self.children_mib, sum(resident.values()))
        asked_s = time.monotonic()
        self.client.status()
        self.answer_s = max(self.answer_s, time.monotonic() - asked_s)

    def quarters_mib(self) -> list[int]:
        """Return the median of each quarter of the time."""
        n = max(1, len(self.own_mib) // 4)
        return [round(median(self.own_mib[k * n : (k + 1) * n] or [0])) for k in range(4)]


def run(case: Case, work: Path) -> tuple[dict[str, Any], str]:
    """Run one scan; return its figures and the report's plot of the memory."""
    slide = work / "specimen.tif"
    write_specimen(slide, case.height_px, case.width_px)
    with contextlib.ExitStack() as stack:
        root, disk_mb_s = work / "scans", None
        if case.disk_mb_s:
            size = 4 * case.width_px * case.height_px + 4_000_000_000
            root = stack.enter_context(slow_disk(work, size, case.disk_mb_s * 1_000_000))
            disk_mb_s = round(measured_bytes_s(root) / 1e6, 1)
        group = MemoryGroup(f"edge-scanner-endure-{os.getpid()}", case.limit_mib << 20)
        stack.callback(group.remove)
        sockets = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="endure-")))
        settings = [*SETTINGS, f'storage.root="{root}"', f'sim.slide="{slide}"', *case.settings]
        child = stack.enter_context(daemon(group, settings, sockets))
        client = stack.enter_context(Client(f"ipc://{sockets}/control.ipc", timeout_s=30))
        watch = Watch(group, client)
        status = scan(client, watch, child, case)
        client.shutdown()
        child.wait(timeout=START_S)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        report = status.get("report") or {"paths": {}}
        page = Path(report["paths"]["report"]).with_suffix(".html").read_text() if report["paths"] else ""
        told = {
            "width_px": case.width_px, "height_px": case.height_px, "limit_mib": case.limit_mib,
            "disk_mb_s": disk_mb_s, "settings": case.settings, "outcome": status["outcome"],
            **{k: report.get(k) for k in ("tiles", "accepted", "coverage", "wall_s", "peak_rss_mib", "stall_s",
                                          "buffer_high_mib", "limit", "truth_px_p95", "psnr_db")},
            "quarters_mib": watch.quarters_mib(), "children_mib": round(watch.children_mib),
            "group_peak_mib": group.peak_bytes() >> 20, "kills": group.kills(),
            "answer_s": round(watch.answer_s, 2), "hungry": (sockets / "daemon.log").read_text().count("not fed"),
            "cpu_s": round(used.ru_utime + used.ru_stime),
        }  # fmt: skip
        plots = re.findall(r"Memory of the daemon</h2>(<svg.*?</svg>)", page, re.DOTALL)
        return told, plots[0] if plots else ""


@contextlib.contextmanager
def daemon(group: MemoryGroup, settings: list[str], sockets: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run the daemon in the group; it is ended on the way out, and what it said is told if that was by a failure."""
    given = [f'control.endpoint="ipc://{sockets}/control.ipc"', f'control.events="ipc://{sockets}/events.ipc"']
    command = [sys.executable, "-m", "edge_scanner", "run"]
    for text in [*settings, *given]:
        command += ["--set", text]
    environment = {**os.environ, "WATCHDOG_USEC": str(WATCHDOG_S * 1_000_000)}
    with (sockets / "daemon.log").open("wb") as log:
        child = subprocess.Popen(
            group.command(*command), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
        )
    try:
        yield child
    except BaseException:
        sys.stderr.write((sockets / "daemon.log").read_text(errors="replace")[-4000:])
        sys.stderr.write(f"processes that the kernel killed for memory: {group.kills()}\n")
        raise
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()


def scan(client: Client, watch: Watch, child: subprocess.Popen[bytes], case: Case) -> dict[str, Any]:
    """Home, scan, wait; return the final status."""
    deadline_s = time.monotonic() + START_S
    while True:
        try:
            client.hello()
            break
        except NoAnswerError:
            if child.poll() is not None or time.monotonic() > deadline_s:
                raise
    client.home()
    client.wait_idle()
    mm = PIXEL_UM / 1000
    scan_id = client.scan(x_mm=0, y_mm=0, width_mm=case.width_px * mm, height_mm=case.height_px * mm)["scan_id"]
    seen_s = [time.monotonic()]

    def on_event(_: object) -> None:
        if time.monotonic() - seen_s[0] >= 1:
            seen_s[0] = time.monotonic()
            watch.look(child.pid)

    return client.wait_idle(scan_id, on_event=on_event)


def rss_mib(pid: int) -> float:
    """Return what a process has resident, MiB; 0 when it is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
    return 0.0

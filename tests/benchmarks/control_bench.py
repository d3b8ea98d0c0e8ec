"""What polling costs a scan: 20 clients at 50 Hz and one stalled subscriber, beside a scan bound by its mechanics.

    python tests/benchmarks/control_bench.py

Prints the scan's time on the real clock with and without them in turns, the processor time that the daemon took, and
what the clients saw. A first scan, which also compiles and fills caches, does not count.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import zmq

from edge_scanner.control.client import AsyncClient, Client

CLIENTS, HZ, ROUNDS = 20, 50, 3
SETTINGS = (
    "camera.width_px=256", "camera.height_px=192", "optics.pixel_size_um=1.0", "scan.overlap=0.2",
    "sim.clock=real", "sim.blur=false", "sim.noise=false", "sim.vignetting=false", "sim.surface=false",
    "focus.mode=off", "stage.settle_ms=200", "stage.speed_mm_s=2", "export.auto=false", "storage.reserve_mb=0",
    "mosaic.codec=gzip",
)  # fmt: skip
REGION = {"x_mm": 0.0, "y_mm": 0.0, "width_mm": 1.4, "height_mm": 1.0}


class Crowd:
    """Clients that poll the status in a process of their own making: one thread, one event loop."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._ended = threading.Event()
        self._threads = ThreadPoolExecutor(1)
        self.took_ms: list[float] = []

    def __enter__(self) -> Crowd:
        self._done = self._threads.submit(lambda: asyncio.run(self._run()))
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._done.result()  # a poll without an answer fails here

    async def _run(self) -> None:
        await asyncio.gather(*(self._poll(n) for n in range(CLIENTS)))

    async def _poll(self, n: int) -> None:
        async with AsyncClient(self._endpoint, timeout_s=30) as client:
            due_s = time.perf_counter() + n / CLIENTS / HZ
            while not self._ended.is_set():
                began_s = time.perf_counter()
                await client.status()
                self.took_ms.append((time.perf_counter() - began_s) * 1000)
                due_s += 1 / HZ
                await asyncio.sleep(max(0.0, due_s - time.perf_counter()))


def scan(client: Client, daemon: int) -> tuple[float, float]:
    """Return the scan's time on its clock, and the processor time of the daemon meanwhile, in seconds."""
    client.home()
    client.wait_idle()
    before_s = cpu_s(daemon)
    scan_id = client.scan(**REGION)["scan_id"]
    status = client.wait_idle(scan_id)
    assert status["outcome"] == "completed", status
    return float(status["report"]["scan_s"]), cpu_s(daemon) - before_s


def cpu_s(process: int) -> float:
    """Return the processor time of all threads of a process, in seconds."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    context = zmq.Context()
    with tempfile.TemporaryDirectory(prefix="es-") as folder:
        endpoint, events = f"ipc://{folder}/c", f"ipc://{folder}/e"
        command = [sys.executable, "-m", "edge_scanner", "run"]
        own = (
            f'storage.root="{Path(folder) / "scans"}"',
            f'control.endpoint="{endpoint}"',
            f'control.events="{events}"',
        )
        for text in (*SETTINGS, *own):
            command += ["--set", text]
        daemon = subprocess.Popen(command)
        try:
            with Client(endpoint, timeout_s=60) as client:
                client.hello()
                scan(client, daemon.pid)
                alone: list[tuple[float, float]] = []
                watched: list[tuple[float, float]] = []
                took_ms: list[float] = []
                for _ in range(ROUNDS):
                    alone.append(scan(client, daemon.pid))
                    stalled = context.socket(zmq.SUB)
                    stalled.setsockopt(zmq.SUBSCRIBE, b"")
                    stalled.setsockopt(zmq.RCVHWM, 1)
                    stalled.connect(events)  # never read
                    with Crowd(endpoint) as crowd:
                        watched.append(scan(client, daemon.pid))
                    stalled.close(linger=0)
                    took_ms += crowd.took_ms
                client.shutdown()
            daemon.wait(30)
        finally:
            daemon.kill()
            context.destroy(linger=0)
    took_ms.sort()
    for what, column in (("scan", 0), ("daemon's processor", 1)):
        without, beside = sum(row[column] for row in alone), sum(row[column] for row in watched)
        each = [[round(row[column], 2) for row in rows] for rows in (alone, watched)]
        print(f"{what}: alone {each[0]} s, watched {each[1]} s: {beside / without - 1:+.2%}")
    p50_ms, p99_ms = (took_ms[len(took_ms) * percent // 100] for percent in (50, 99))
    print(f"{len(took_ms)} requests, all answered: p50 {p50_ms:.1f} ms, p99 {p99_ms:.1f} ms, most {took_ms[-1]:.1f} ms")


if __name__ == "__main__":
    main()

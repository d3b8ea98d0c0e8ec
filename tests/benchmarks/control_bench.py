"""What polling costs a scan: 20 clients at 50 Hz and one stalled subscriber, beside a scan bound by its mechanics.

    python tests/benchmarks/control_bench.py

Prints the scan's time on the real clock with and without them in turns, and what the clients saw.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import zmq

from edge_scanner.control.client import AsyncClient, Client

CLIENTS, HZ, ROUNDS = 20, 50, 2
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
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self.took_ms: list[float] = []

    def __enter__(self) -> Crowd:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

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


def scan(client: Client) -> float:
    client.home()
    client.wait_idle()
    scan_id = client.scan(**REGION)["scan_id"]
    status = client.wait_idle(scan_id)
    assert status["outcome"] == "completed", status
    return float(status["report"]["scan_s"])


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
                alone: list[float] = []
                watched: list[float] = []
                took_ms: list[float] = []
                for _ in range(ROUNDS):
                    alone.append(scan(client))
                    stalled = context.socket(zmq.SUB)
                    stalled.setsockopt(zmq.SUBSCRIBE, b"")
                    stalled.setsockopt(zmq.RCVHWM, 1)
                    stalled.connect(events)  # never read
                    with Crowd(endpoint) as crowd:
                        watched.append(scan(client))
                    stalled.close(linger=0)
                    took_ms += crowd.took_ms
                client.shutdown()
            daemon.wait(30)
        finally:
            daemon.kill()
            context.destroy(linger=0)
    took_ms.sort()
    share = sum(watched) / sum(alone) - 1
    print(f"alone {alone} s, watched {watched} s: {share:+.2%}")
    p50_ms, p99_ms = (took_ms[len(took_ms) * percent // 100] for percent in (50, 99))
    print(f"{len(took_ms)} replies: p50 {p50_ms:.1f} ms, p99 {p99_ms:.1f} ms, most {took_ms[-1]:.1f} ms")


if __name__ == "__main__":
    main()

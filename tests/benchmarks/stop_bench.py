"""Emergency stop: from the client's request to the halt bytes at the port, at random instants of a scan.

Prints median, p99 and the largest, for each protocol, with what the load moved once at rest; exit 1 if p99 is more
than 50 ms or anything moves afterwards. Give a number to change the 200 instants, and protocols to choose them.
"""

import random
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from edge_scanner import config as configs
from hil_sim import bench
from hil_sim.__main__ import SHIPPED
from hil_sim.daemon import Daemon, settings
from hil_sim.scenario import load

BAR_MS = 50.0
REGION = {"x_mm": 0.0, "y_mm": 0.0, "width_mm": 3.0, "height_mm": 3.0}


def until(client, *states):
    while (status := client.status())["state"] not in states:
        if status["fault"] and status["fault"]["code"] != "emergency_stop":
            raise RuntimeError(f"the daemon failed: {status['fault']}")
        time.sleep(0.005)


def measure(protocol: str, instants: int, folder: Path) -> tuple[list[float], float]:
    """Return the latencies in ms, and how far the load went after it had come to rest, um."""
    scenario = load(SHIPPED / f"{protocol}.toml")
    overrides = settings(scenario, folder, folder / "out")
    dice, latencies, moved = random.Random(protocol), [], 0.0
    with bench.emulator(scenario.stage, folder) as stage, bench.camera(configs.load(None, overrides), folder):
        daemon = Daemon(overrides, folder)
        client = daemon.start()
        for _ in range(instants):
            client.home()
            during = dice.choices(("HOMING", "PREPARING", "SCANNING"), (1, 2, 7))[0]
            if during != "HOMING":
                until(client, "IDLE")
                client.scan(**REGION)
            if during == "SCANNING":
                until(client, "SCANNING")
            time.sleep(dice.uniform(0.0, 0.3 if during == "HOMING" else 0.8))
            stage.ask("heard")  # from here on
            asked_s = time.monotonic()
            client.stop()
            heard = stage.ask("heard")["halt_t"]
            latencies.append(1000 * (heard - asked_s) if heard and heard >= asked_s else float("inf"))
            time.sleep(0.1)
            first = stage.ask("truth")
            time.sleep(0.05)
            last = stage.ask("truth")
            moved = max(moved, *(abs(first[axis] - last[axis]) for axis in ("x_um", "y_um", "z_um")))
            client.reset()
            until(client, "IDLE")
        client.close()
        daemon.end()
    return latencies, moved


def main(words: list[str]) -> int:
    instants = next((int(word) for word in words if word.isdigit()), 200)
    failed = False
    for protocol in [word for word in words if not word.isdigit()] or ["grbl", "squid", "asi", "sangaboard", "prior"]:
        with tempfile.TemporaryDirectory(prefix="stop-") as folder:
            latencies, moved = measure(protocol, instants, Path(folder))
        p50, p99, worst = np.percentile(latencies, [50, 99, 100])
        print(f"{protocol:8} p50 {p50:6.2f} ms  p99 {p99:6.2f} ms  max {worst:6.2f} ms  moved after {moved:.3f} um")
        failed |= bool(p99 > BAR_MS or moved > 0)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

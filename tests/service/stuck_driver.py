"""A driver for the service lane: the simulated stage, whose moves do not end while a file exists."""

import time
from pathlib import Path

from edge_scanner.devices.drivers import sim

STICK = Path("/run/edge-scanner/stick")


def make_stage(config, clock):
    stage = sim.make_stage(config, clock)
    whole_wait = stage.wait

    def wait():
        while STICK.exists():
            time.sleep(0.05)
        return whole_wait()

    stage.wait = wait
    return stage

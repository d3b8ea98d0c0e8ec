"""The daemon as a process: signals, readiness, the watchdog, the control loop."""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

from edge_scanner import metrics
from edge_scanner.config import Config
from edge_scanner.control.events import EventBus
from edge_scanner.control.server import ControlServer
from edge_scanner.devices.rig import build_rig
from edge_scanner.logs import EventHandler
from edge_scanner.scanner import Scanner
from edge_scanner.scanner.budget import Budget
from edge_scanner.state import State

_log = logging.getLogger(__name__)


START_S = 60.0
"""What starting may take beyond the devices' own time-outs."""


def run(config: Config) -> None:
    """Run the daemon until `shutdown`, SIGTERM or SIGINT; the control loop lives in this thread.

    Raises
    ------
    ScannerError
        When a device, an endpoint or the storage root cannot be used, or the memory cannot hold the buffers.
    """
    _check_memory(config)
    limit_native_threads()
    faulthandler.enable()  # the watchdog's SIGABRT then shows where every thread hangs
    slow_s = START_S + config.stage.timeout_s + config.camera.timeout_s
    notify(f"EXTEND_TIMEOUT_USEC={slow_s * 1e6:.0f}")
    bus = EventBus()
    scanner = Scanner(config, build_rig(config), bus.publish)
    watchdog = Watchdog(scanner.pulse.late)

    def tick() -> None:
        watchdog.tick()
        if asked and scanner.state() is not State.STOPPED:
            asked.clear()
            notify(f"STOPPING=1\nEXTEND_TIMEOUT_USEC={slow_s * 1e6:.0f}")
            scanner.shutdown()

    with (
        _signals() as asked,
        _log_events(bus),
        ControlServer(config.control, scanner, bus) as server,
        metrics.serving(config.control.metrics, scanner.status, server.trail.counts) as url,
    ):
        scanner.open()
        try:
            notify(f"READY=1\nSTATUS=Ready at {server.endpoint}")
            _log.info("Ready at %s, events at %s.", server.endpoint, server.events_endpoint)
            if url:
                _log.info("Metrics at %s.", url)
            server.serve_forever(tick)
        finally:
            scanner.close()


def _check_memory(config: Config) -> None:
    budget = Budget.of(config)
    budget.check()
    if (doubt := budget.doubt()) is not None:
        _log.warning("%s", doubt)


class Watchdog:
    """Feeds systemd's watchdog, but only while no busy thread is overdue.

    Parameters
    ----------
    late : callable
        Returns the names of the threads that are.
    environment : mapping
        `WATCHDOG_USEC` says how often systemd wants to be fed; not at all without it.
    now_s : callable
        Monotonic real seconds.
    """

    def __init__(
        self,
        late: Callable[[], list[str]],
        environment: Mapping[str, str] = os.environ,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._late, self._now_s = late, now_s
        usec = environment.get("WATCHDOG_USEC", "")
        self._every_s = int(usec) / 4e6 if usec.isdigit() else None
        self._next_s = now_s()
        self._starving: list[str] = []

    def tick(self) -> None:
        """Feed if it is time and all is well; call often."""
        if self._every_s is None or self._now_s() < self._next_s:
            return
        self._next_s = self._now_s() + self._every_s
        late = self._late()
        if not late:
            notify("WATCHDOG=1")
        elif late != self._starving:
            _log.error("No progress in the thread %s: the watchdog is not fed any more.", ", ".join(late))
        self._starving = late


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect SIGTERM and SIGINT instead of dying of them."""
    asked: list[int] = []

    def on_signal(number: int, _frame: FrameType | None) -> None:
        asked.append(number)

    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def _log_events(bus: EventBus) -> Iterator[None]:
    """Let clients hear warnings and errors."""
    handler = EventHandler(bus.publish)
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)


def notify(message: str) -> None:
    """Tell systemd, where it asked to be told (`sd_notify(3)`)."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.connect("\0" + address[1:] if address.startswith("@") else address)
        sender.sendall(message.encode())


def limit_native_threads() -> None:
    """Give native libraries one thread each: the pipeline's own threads are what fills the cores."""
    import cv2

    set_threads: Callable[[int], None] = cv2.setNumThreads
    set_threads(1)

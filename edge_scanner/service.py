"""The daemon as a process: signals, readiness, the control loop."""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Callable
from types import FrameType

from edge_scanner.config import Config
from edge_scanner.control.events import EventBus
from edge_scanner.control.server import ControlServer
from edge_scanner.devices.rig import build_rig
from edge_scanner.scanner import Scanner
from edge_scanner.state import State

_log = logging.getLogger(__name__)


def run(config: Config) -> None:
    """Run the daemon until `shutdown`, SIGTERM or SIGINT; the control loop lives in this thread.

    Raises
    ------
    ScannerError
        When a device, an endpoint or the storage root cannot be used.
    """
    limit_native_threads()
    bus = EventBus()
    scanner = Scanner(config, build_rig(config), bus.publish)
    asked: list[int] = []

    def on_signal(number: int, _frame: FrameType | None) -> None:
        asked.append(number)

    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}

    def tick() -> None:
        if asked and scanner.state() is not State.STOPPED:
            asked.clear()
            notify("STOPPING=1")
            scanner.shutdown()

    try:
        with ControlServer(config.control, scanner, bus) as server:
            scanner.open()
            try:
                notify("READY=1")
                _log.info("Ready at %s, events at %s.", server.endpoint, server.events_endpoint)
                server.serve_forever(tick)
            finally:
                scanner.close()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


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

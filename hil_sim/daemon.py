"""The real daemon as a process of its own, for one scenario."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

from edge_scanner import config as configs
from edge_scanner.config import Config
from edge_scanner.control.client import Client, NoAnswerError
from hil_sim.hardship import SlowDisk, Throttle
from hil_sim.scenario import Scenario

START_S = 30.0
LIGHTS = ("grbl", "squid")
"""Protocols whose controllers have an output for the lamp."""


def settings(scenario: Scenario, folder: Path, out: Path, stream: str = "") -> list[str]:
    """Return the daemon's `section.key=value` for a rig whose sockets lie in `folder`.

    Parameters
    ----------
    scenario : Scenario
    folder : Path
    out : Path
        `storage.root`.
    stream : str
        URL of a camera that streams; the one that is asked for each frame without it.
    """
    rig = scenario.stage
    given = {
        "stage.driver": rig.protocol,
        "stage.port": f"{folder}/port",
        "stage.speed_mm_s": rig.speed_um_s * rig.clock / 1000,
        "stage.acceleration_mm_s2": rig.acceleration_um_s2 * rig.clock**2 / 1000,
        "camera.driver": "opencv" if stream else "remote",
        "camera.device": stream or f"ipc://{folder}/frames",
        "illumination.driver": rig.protocol if rig.protocol in LIGHTS else "none",
        "storage.root": str(out),
        "storage.reserve_mb": 0.0,
        "control.endpoint": f"ipc://{folder}/control",
        "control.events": f"ipc://{folder}/events",
        **scenario.config,
    }
    return [f"{key}={json.dumps(value)}" for key, value in given.items()]


class Daemon:
    """Starts, kills and ends the daemon; its log is `folder/daemon.log`."""

    def __init__(self, overrides: list[str], folder: Path) -> None:
        self._command = [sys.executable, "-m", "edge_scanner", "run"]
        for text in overrides:
            self._command += ["--set", text]
        self.config: Config = configs.load(None, overrides)
        self._log = folder / "daemon.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._hardship: Throttle | SlowDisk | None = None

    def ask(self, cmd: str, share: float = 1.0, delay_ms: float = 0.0) -> None:
        """Befall it: `throttle` (`share` of the processor's time), `slow_disk` (`delay_ms` a write), `free` again."""
        assert self._process is not None
        if self._hardship is not None:
            self._hardship.end()
            self._hardship = None
        if cmd == "throttle":
            self._hardship = Throttle(self._process.pid, share)
        elif cmd == "slow_disk":
            self._hardship = SlowDisk(self._process.pid, delay_ms)

    def client(self) -> Client:
        """Return another client."""
        return Client(self.config.control.endpoint, timeout_s=4.0)

    def start(self) -> Client:
        """Start it and return a client once it answers.

        Raises
        ------
        RuntimeError
            It ended, or did not answer in time.
        """
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        client = self.client()
        deadline_s = time.monotonic() + START_S
        while time.monotonic() < deadline_s and self._process.poll() is None:
            try:
                client.hello()
                return client
            except NoAnswerError:
                continue
        raise RuntimeError(f"The daemon did not start: {self._log.read_text()[-400:]}")

    def kill(self) -> None:
        """End it at once, as a power cut of the process would."""
        assert self._process is not None
        self.ask("free")
        self._process.kill()
        self._process.wait()

    def end(self) -> str:
        """End it by SIGTERM and return what is wrong with how it ended."""
        if self._process is not None:
            self.ask("free")
        if self._process is None or self._process.poll() is not None:
            return "" if self._process and self._process.returncode == 0 else "the daemon died by itself"
        self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(timeout=START_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return "the daemon did not end on SIGTERM"
        traced = "Traceback" in self._log.read_text(errors="replace")
        return "" if code == 0 and not traced else f"the daemon ended with code {code}" + ", tracebacks" * traced

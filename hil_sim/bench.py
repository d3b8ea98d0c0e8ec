"""The bench: emulators and camera servers as processes, and their side sockets."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zmq

from edge_scanner import config as configs
from edge_scanner.config import Config
from hil_sim.rig import StageRig

ANSWER_MS = 120_000


class Side:
    """The side socket of a program of the bench; one thread."""

    def __init__(self, endpoint: str, process: subprocess.Popen[bytes]) -> None:
        self._context: zmq.Context[Any] = zmq.Context()
        self._socket = self._context.socket(zmq.REQ)
        self._socket.setsockopt(zmq.RCVTIMEO, ANSWER_MS)
        self._socket.connect(endpoint)
        self.process = process

    def ask(self, cmd: str, **fields: Any) -> dict[str, Any]:
        """Send a command and return the answer."""
        self._socket.send_json({"cmd": cmd, **fields})
        answer: dict[str, Any] = self._socket.recv_json()  # type: ignore[assignment]
        if answer.get("ok") is False:
            raise ValueError(answer["error"])
        return answer

    def close(self) -> None:
        """End the program."""
        with contextlib.suppress(zmq.ZMQError):
            self.ask("end")
        self._context.destroy(linger=0)
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextlib.contextmanager
def program(module: str, *arguments: str, endpoint: str) -> Iterator[Side]:
    """Run a module of the bench beside its side socket; it is ended on the way out."""
    process = subprocess.Popen([sys.executable, "-m", module, *arguments], stdin=subprocess.DEVNULL)
    side = Side(endpoint, process)
    try:
        yield side
    finally:
        side.close()


@contextlib.contextmanager
def emulator(rig: StageRig, folder: Path) -> Iterator[Side]:
    """Run an emulated stage whose port is `folder/port`, and wait until that is there."""
    endpoint = f"ipc://{folder}/stage"
    with program("hil_sim.emulator", rig.model_dump_json(), f"{folder}/port", endpoint, endpoint=endpoint) as side:
        side.ask("truth")
        yield side


@contextlib.contextmanager
def camera(config: Config, folder: Path) -> Iterator[Side]:
    """Run a camera over the emulated stage of the same folder; its frames are at `ipc://folder/frames`."""
    endpoint = f"ipc://{folder}/camera"
    settings = json.dumps(configs.dump(config))
    arguments = (settings, f"ipc://{folder}/stage", endpoint, f"ipc://{folder}/frames")
    with program("hil_sim.camera", *arguments, endpoint=endpoint) as side:
        side.ask("log")
        yield side


@contextlib.contextmanager
def mjpeg_camera(config: Config, folder: Path) -> Iterator[Side]:
    """Run a free-running camera over the emulated stage of the same folder; its `url` tells where the stream is."""
    endpoint = f"ipc://{folder}/camera"
    settings = json.dumps(configs.dump(config))
    with program("hil_sim.mjpeg", settings, f"ipc://{folder}/stage", endpoint, endpoint=endpoint) as side:
        side.ask("log")
        yield side

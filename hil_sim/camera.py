"""The camera server: `python -m hil_sim.camera CONFIG_JSON STAGE CONTROL FRAMES`; it renders the true position.

CONFIG_JSON is an effective configuration (`edge_scanner.config.dump`); STAGE is the side socket of an emulator. FRAMES
is what the driver `remote` reads, see there for the protocol. CONTROL is the side socket, JSON both ways:

=====================================  ==============================================================
`{"cmd": "log"}`                       `frames`: `[frame_id, x_um, y_um, z_um]` of every exposure
`{"cmd": "fail", "how": …, "n": 1}`    the next n frames are `silent`, `stale`, `corrupt`, or `short`
`{"cmd": "end"}`                       the program ends
=====================================  ==============================================================
"""

from __future__ import annotations

import json
import sys
import time
import zlib
from typing import Any

import zmq

from edge_scanner import config as configs
from edge_scanner.config import Config
from hil_sim.eye import Eye


class CameraServer:
    """Renders what an emulated stage's true position shows.

    Memory bound: one frame, the one before it, and 32 bytes an exposure.
    """

    def __init__(self, config: Config, stage: str) -> None:
        self._config = config
        self._context: zmq.Context[Any] = zmq.Context()
        self._eye = Eye(config, self._context, stage)
        self._last: tuple[dict[str, Any], bytes] | None = None
        self._failures: list[str] = []
        self._ending = False

    def run(self, control: str, frames: str) -> None:
        """Serve until told to end."""
        side, out = self._context.socket(zmq.REP), self._context.socket(zmq.ROUTER)
        side.bind(control)
        out.bind(frames)
        poller = zmq.Poller()
        poller.register(side, zmq.POLLIN)
        poller.register(out, zmq.POLLIN)
        try:
            while not self._ending:
                ready = dict(poller.poll())
                if side in ready:
                    side.send_json(self._answer(side.recv_json()))
                if out in ready:
                    *route, body = out.recv_multipart()
                    out.send_multipart([*route, *self._serve(json.loads(body))])
        finally:
            self._context.destroy(linger=100)

    def _answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        match asked["cmd"]:
            case "log":
                return {"frames": self._eye.log}
            case "fail":
                self._failures += [asked["how"]] * asked.get("n", 1)
            case "end":
                self._ending = True
        return {"ok": True}

    def _serve(self, asked: dict[str, Any]) -> list[bytes]:
        camera = self._config.camera
        if asked["cmd"] == "hello":
            kind = {"height_px": camera.height_px, "width_px": camera.width_px}
            kind |= {"channels": camera.channels, "bits": camera.bits}
            return [json.dumps({"v": 1, "id": asked["id"], "identity": "hil_sim camera", **kind}).encode()]
        how = self._failures.pop(0) if self._failures else ""
        if how == "silent":
            return [json.dumps({"v": 1, "id": None}).encode()]
        header, pixels = self._last if how == "stale" and self._last else self._expose(asked["exposure_ms"])
        self._last = header, pixels
        if how == "corrupt":
            pixels = bytes([pixels[0] ^ 0xFF]) + pixels[1:]
        return [
            json.dumps({**header, "id": asked["id"]}).encode(),
            pixels[: len(pixels) // 2] if how == "short" else pixels,
        ]

    def _expose(self, exposure_ms: float) -> tuple[dict[str, Any], bytes]:
        taken = self._eye.expose(exposure_ms)
        pixels = taken.pixels.tobytes()
        header = {"v": 1, "frame_id": taken.number, "exposure_ms": exposure_ms, "crc32": zlib.crc32(pixels)}
        return {**header, "age_s": time.monotonic() - taken.began_s}, pixels


def main(arguments: list[str]) -> None:
    """Run a camera server until it is told to end."""
    config, stage, control, frames = arguments
    CameraServer(configs.parse(json.loads(config)), stage).run(control, frames)


if __name__ == "__main__":
    main(sys.argv[1:])

"""A free-running camera: `python -m hil_sim.mjpeg CONFIG_JSON STAGE CONTROL`; an MJPEG stream over HTTP (multipart).

What `hil_sim.camera` is, with JPEG's losses and without a trigger. CONTROL is the side socket, JSON both ways:

=====================================  ==============================================================
`{"cmd": "log"}`                       `frames`: `[frame_id, x_um, y_um, z_um]` of every exposure
`{"cmd": "url"}`                       `url`: where the stream is
`{"cmd": "end"}`                       the program ends
=====================================  ==============================================================
"""

from __future__ import annotations

import json
import socket
import sys
import time
from typing import Any

import cv2
import zmq

from edge_scanner import config as configs
from edge_scanner.config import Config
from hil_sim.eye import Eye

PERIOD_S = 0.04
QUALITY = 95
PATIENCE_S = 1.0
_HEAD = b"HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=frame\r\n\r\n"


class MjpegServer:
    """Exposes all the time while somebody looks; one thread.

    Memory bound: one frame and its JPEG.
    """

    def __init__(self, config: Config, stage: str) -> None:
        self._exposure_ms = config.camera.exposure_ms
        self._context: zmq.Context[Any] = zmq.Context()
        self._eye = Eye(config, self._context, stage)
        self._door = socket.create_server(("127.0.0.1", 0))
        self._viewers: list[socket.socket] = []
        self._ending = False

    def run(self, control: str) -> None:
        """Serve until told to end."""
        side = self._context.socket(zmq.REP)
        side.bind(control)
        poller = zmq.Poller()
        poller.register(side, zmq.POLLIN)
        poller.register(self._door.fileno(), zmq.POLLIN)
        next_s = time.monotonic()
        try:
            while not self._ending:
                wait_s = max(0.0, next_s - time.monotonic()) if self._viewers else 1.0
                ready = dict(poller.poll(int(1000 * wait_s)))
                if side in ready:
                    side.send_json(self._answer(side.recv_json()))  # type: ignore[arg-type]
                if self._door.fileno() in ready:
                    self._admit()
                if self._viewers and time.monotonic() >= next_s:
                    next_s = max(next_s + PERIOD_S, time.monotonic())
                    self._show()
        finally:
            self._context.destroy(linger=100)

    def _answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        match asked["cmd"]:
            case "log":
                return {"frames": self._eye.log}
            case "url":
                return {"url": f"http://127.0.0.1:{self._door.getsockname()[1]}/stream.mjpg"}
            case "end":
                self._ending = True
        return {"ok": True}

    def _admit(self) -> None:
        viewer, _ = self._door.accept()
        viewer.settimeout(PATIENCE_S)
        try:
            viewer.recv(4096)  # whatever is asked for, there is only one thing
            viewer.sendall(_HEAD)
            self._viewers.append(viewer)
        except OSError:
            viewer.close()

    def _show(self) -> None:
        pixels = self._eye.expose(self._exposure_ms).pixels
        shown = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR) if pixels.shape[2] == 3 else pixels
        full = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444
        options = [cv2.IMWRITE_JPEG_QUALITY, QUALITY, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, full]
        jpeg = cv2.imencode(".jpg", shown, options)[1].tobytes()
        part = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n".encode() + jpeg + b"\r\n"
        for viewer in list(self._viewers):
            try:
                viewer.sendall(part)
            except OSError:
                self._viewers.remove(viewer)
                viewer.close()


def main(arguments: list[str]) -> None:
    """Run a camera until it is told to end."""
    config, stage, control = arguments
    MjpegServer(configs.parse(json.loads(config)), stage).run(control)


if __name__ == "__main__":
    main(sys.argv[1:])

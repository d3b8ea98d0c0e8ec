"""Which onnxruntime and OpenCV are installed, and whether they are the right ones."""

from __future__ import annotations

import importlib
import platform
from collections.abc import Collection
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from edge_scanner.board import is_jetson
from edge_scanner.errors import ScannerError
from edge_scanner.focus.model import NAMES

CPU_WHEEL, GPU_WHEEL = "onnxruntime", "onnxruntime-gpu"
JETSON_ADVICE = (
    "Remove it (pip uninstall onnxruntime onnxruntime-gpu) and install the wheel made for your JetPack: "
    "deploy/install.sh --onnxruntime FILE.whl."
)


@dataclass(frozen=True, slots=True)
class Runtime:
    """What is installed here.

    Parameters
    ----------
    wheels : collection of str
        Those of `onnxruntime` and `onnxruntime-gpu` that are installed.
    offered : collection of str
        Execution providers that it brings, by their short names.
    jetson : bool
    machine : str
        As `uname -m`.
    trouble : str
        Why it cannot be imported.
    """

    wheels: Collection[str]
    offered: Collection[str]
    jetson: bool = False
    machine: str = "x86_64"
    trouble: str = ""

    @classmethod
    def here(cls) -> Runtime:
        """Look at this machine."""
        wheels = [name for name in (CPU_WHEEL, GPU_WHEEL) if _installed(name)]
        offered: list[str] = []
        trouble = ""
        try:
            names = importlib.import_module("onnxruntime").get_available_providers()
            offered = [short for short, name in NAMES.items() if name in names]
        except (ImportError, AttributeError, OSError) as error:  # a half overwritten package lacks its functions
            trouble = str(error)
        return cls(wheels, offered, is_jetson(), platform.machine(), trouble)

    def check(self) -> str:
        """Say what is there.

        Raises
        ------
        ScannerError
            It is the wrong one, or broken.
        """
        if len(self.wheels) > 1:
            raise ScannerError(
                "onnxruntime and onnxruntime-gpu are both installed and have overwritten each other.",
                JETSON_ADVICE if self.jetson else "Uninstall both, then install one: the extra [cpu] or [gpu].",
            )
        if self.jetson and GPU_WHEEL in self.wheels and "tensorrt" not in self.offered:
            raise ScannerError(
                "This onnxruntime-gpu is the one of PyPI, built for Arm servers: it has no code for a Jetson's GPU.",
                JETSON_ADVICE,
            )
        if self.trouble and self.wheels:
            raise ScannerError(f"onnxruntime cannot be imported ({self.trouble}).", "Install it again.")
        if not self.offered:
            return "onnxruntime is not installed; learned focus is off"
        if self.jetson and self.offered == ["cpu"]:
            return "onnxruntime runs on the processor only; " + JETSON_ADVICE.partition(" and ")[2]
        return f"onnxruntime offers {', '.join(self.offered)}"


def check_video(build: str, driver: str, device: str) -> str:
    """Say which kinds of camera OpenCV can open; the wheel of PyPI has no GStreamer.

    Parameters
    ----------
    build : str
        OpenCV's `getBuildInformation`.
    driver, device : str
        Of `[camera]`.

    Raises
    ------
    ScannerError
        The driver `opencv` is given a pipeline that it has no GStreamer for.
    """
    kinds = {"FFMPEG": "MJPEG and RTSP", "GStreamer": "pipelines", "v4l/v4l2": "V4L2"}
    lines = (line.strip().partition(":") for line in build.splitlines())
    able = [kinds[name] for name, _, value in lines if name in kinds and value.strip().startswith("YES")]
    if kinds["GStreamer"] in able:
        return f"OpenCV opens {', '.join(able)}"
    if driver == "opencv" and " ! " in device:
        raise ScannerError(
            "camera.device is a pipeline, and this OpenCV has no GStreamer.", 'Use camera.driver = "gstreamer".'
        )
    return f"OpenCV opens {', '.join(able)}; it has no GStreamer: camera.driver gstreamer is for pipelines"


def _installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True

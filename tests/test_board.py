"""What the board says of itself, and which onnxruntime does not fit it."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest

from edge_scanner.board import Board, is_jetson, thermal
from edge_scanner.cli.wheels import Runtime, check_video
from edge_scanner.errors import ScannerError


def put(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


ORIN = {
    "sys__class__thermal__thermal_zone0__temp": "48250\n",
    "sys__class__thermal__thermal_zone0__type": "cpu-thermal\n",
    "sys__class__thermal__thermal_zone1__temp": "51500\n",
    "sys__class__thermal__thermal_zone1__type": "tj-thermal\n",
    "sys__class__thermal__thermal_zone2__temp": "-256000\n",
    "sys__class__thermal__thermal_zone3__temp": "rubbish\n",
    "sys__class__thermal__cooling_device0__type": "pwm-fan\n",
    "sys__class__thermal__cooling_device0__cur_state": "3\n",
    "sys__class__thermal__cooling_device1__type": "cpufreq-cpu0\n",
    "sys__class__thermal__cooling_device1__cur_state": "0\n",
    "sys__devices__system__cpu__cpufreq__policy0__scaling_max_freq": "1190400\n",
    "sys__devices__system__cpu__cpufreq__policy0__cpuinfo_max_freq": "1984000\n",
    "var__lib__nvpmodel__status": "pmode:0002\n",
}


def test_heat_and_power_of_an_orin(tmp_path: Path) -> None:
    assert thermal(put(tmp_path, **ORIN)) == {
        "max_c": 51.5, "zone": "tj-thermal", "throttled": False, "power_mode": "2", "cpu_share": 0.6,
    }  # fmt: skip
    put(tmp_path, sys__class__thermal__cooling_device1__cur_state="2")
    assert thermal(tmp_path)["throttled"] is True


def test_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    assert set(thermal(tmp_path).values()) == {None}


def test_the_board_is_read_once_a_second(tmp_path: Path) -> None:
    now = [0.0]
    board = Board(put(tmp_path, **ORIN), lambda: now[0])
    assert board.thermal()["max_c"] == 51.5
    put(tmp_path, sys__class__thermal__thermal_zone1__temp="90000")
    now[0] = 0.9
    assert board.thermal()["max_c"] == 51.5
    now[0] = 1.0
    assert board.thermal()["max_c"] == 90.0


def test_a_jetson_is_known_by_its_release_or_its_device_tree(tmp_path: Path) -> None:
    assert not is_jetson(tmp_path)
    assert is_jetson(put(tmp_path / "a", etc__nv_tegra_release="# R36"))
    assert is_jetson(put(tmp_path / "b", **{"proc__device-tree__compatible": "nvidia,p3768\0nvidia,tegra234\0"}))
    assert not is_jetson(put(tmp_path / "c", **{"proc__device-tree__compatible": "raspberrypi,4\0"}))


@pytest.mark.parametrize(
    ("runtime", "says"),
    [
        (Runtime(["onnxruntime", "onnxruntime-gpu"], ["cpu"]), "overwritten each other"),
        (Runtime(["onnxruntime-gpu"], ["cuda", "cpu"], jetson=True, machine="aarch64"), "built for Arm servers"),
        (Runtime(["onnxruntime"], [], trouble="no such file"), "cannot be imported"),
    ],
)
def test_wrong_wheels_are_recognised(runtime: Runtime, says: str) -> None:
    with pytest.raises(ScannerError, match=says) as wrong:
        runtime.check()
    assert wrong.value.advice
    assert ("JetPack" in wrong.value.advice) is runtime.jetson


@pytest.mark.parametrize(
    ("runtime", "says"),
    [
        (Runtime(["onnxruntime-gpu"], ["tensorrt", "cuda", "cpu"], jetson=True), "offers tensorrt, cuda, cpu"),
        (Runtime(["onnxruntime-gpu"], ["cuda", "cpu"]), "offers cuda, cpu"),
        (Runtime(["onnxruntime"], ["cpu"]), "offers cpu"),
        (Runtime(["onnxruntime"], ["cpu"], jetson=True), "processor only; install the wheel made for your JetPack"),
        (Runtime([], [], trouble="no module"), "not installed"),
    ],
)
def test_right_wheels_are_left_alone(runtime: Runtime, says: str) -> None:
    assert says in runtime.check()


def test_here_there_is_some_runtime() -> None:
    here = Runtime.here()
    assert bool(here.offered) == bool(here.wheels), here
    assert here.check()


def test_opencv_without_gstreamer_is_told_and_refused_a_pipeline() -> None:
    assert "no GStreamer" in check_video(cv2.getBuildInformation(), "sim", ""), "the wheel of PyPI"
    without = "  Video I/O:\n    FFMPEG:   YES\n      avcodec:  YES\n    GStreamer:  NO\n    v4l/v4l2:  YES (a.h)"
    assert check_video(without, "opencv", "/dev/video0").startswith("OpenCV opens MJPEG and RTSP, V4L2; it has no")
    with pytest.raises(ScannerError, match="a pipeline"):
        check_video(without, "opencv", "nvarguscamerasrc ! nvvidconv")
    with_it = without.replace("GStreamer:  NO", "GStreamer:  YES (1.22.0)")
    assert check_video(with_it, "opencv", "a ! b") == "OpenCV opens MJPEG and RTSP, pipelines, V4L2"

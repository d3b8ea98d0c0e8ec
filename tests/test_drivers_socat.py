"""The serial line and drivers behind socat, a cable that others wrote: killing it is pulling it out."""

import shutil
import subprocess
import threading

import pytest
from driver_rig import DRIVERS, RIG, stage_config

from edge_scanner.devices.clock import RealClock
from edge_scanner.devices.rig import build_rig
from edge_scanner.devices.serial_line import SerialLine
from edge_scanner.errors import DeviceError, PositionUnknownError
from edge_scanner.geometry import Position
from hil_sim import bench
from hil_sim.rig import StageRig

SPEED = {"speed_um_s": 60e3, "acceleration_um_s2": 1e6}
FAST = ("stage.speed_mm_s=60", "stage.acceleration_mm_s2=1000", "illumination.driver=none")
FAR = Position(5000.0, 4000.0, 10.0)
NEAR = Position(2000.0, 1500.0, 0.0)


class Cable:
    """socat between two ends; `near` is the port that the host opens."""

    def __init__(self, near, far):
        self.near, self._far = near, far
        self._process = None

    def plug(self, far=None):
        ends = (f"pty,raw,echo=0,link={self.near}", far or self._far)
        self._process = subprocess.Popen(["socat", "-d", "-d", *ends], stderr=subprocess.PIPE, text=True)
        for line in self._process.stderr:
            if "starting data transfer loop" in line:
                return
        raise AssertionError("socat did not start")

    def pull(self):
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process.stderr.close()


@pytest.fixture
def cable():
    """Make cables that are pulled out at the end."""
    if shutil.which("socat") is None:
        pytest.skip("socat is not here; on Debian: apt install socat")
    made = []

    def lay(near, far):
        made.append(Cable(near, far))
        made[-1].plug()
        return made[-1]

    yield lay
    for each in made:
        each.pull()


def to(port):
    return f"FILE:{port},raw,echo=0"


@pytest.mark.parametrize("use", ["send", "receive", "clear", "urgent", "drain", "read_line"])
def test_a_line_that_is_pulled_out_is_one_kind_of_error(cable, tmp_path, use):
    laid = cable(tmp_path / "near", f"pty,raw,echo=0,link={tmp_path / 'far'}")
    line = SerialLine(str(laid.near), 115_200, RealClock())
    line.open()
    with pytest.raises(DeviceError, match="cannot be opened"):
        SerialLine(str(laid.near), 115_200, RealClock()).open()
    calls = {
        "send": lambda: [line.send(b"x") for _ in range(2)],
        "receive": lambda: line.receive(0.5),
        "clear": lambda: [line.clear(), line.receive(0.1)],
        "urgent": lambda: line.urgent(b"x"),
        "drain": lambda: line.drain(0.05),
        "read_line": lambda: line.read_line(0.5),
    }
    laid.pull()
    with pytest.raises(DeviceError):
        calls[use]()
    assert not line.is_open
    laid.plug()
    line.open()
    line.send(b"again")
    line.close()


def test_a_read_that_waits_ends_when_the_line_is_pulled_out(cable, tmp_path):
    laid = cable(tmp_path / "near", f"pty,raw,echo=0,link={tmp_path / 'far'}")
    line = SerialLine(str(laid.near), 115_200, RealClock())
    line.open()
    ended = []

    def wait():
        try:
            line.read_line(60.0)
        except DeviceError as error:
            ended.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    laid.pull()
    waiting.join(timeout=60)
    assert ended


@pytest.mark.parametrize("protocol", sorted(DRIVERS))
def test_pulled_out_idle_and_moving_and_put_back(cable, tmp_path, protocol):
    with bench.emulator(StageRig(protocol=protocol, **SPEED, **RIG), tmp_path) as side:
        laid = cable(tmp_path / "near", to(tmp_path / "port"))
        stage = build_rig(stage_config(protocol, *FAST, "stage.timeout_s=10", f"stage.port={laid.near}")).stage
        stage.open()
        for moving in (False, True):
            stage.home()
            stage.start_move(NEAR)
            stage.wait()
            if moving:
                rest_um = side.ask("truth")["x_um"]
                stage.start_move(FAR)
                while side.ask("truth")["x_um"] == rest_um:
                    pass
            laid.pull()
            assert stage.busy()
            with pytest.raises(DeviceError):
                stage.wait() if moving else stage.start_move(FAR)
            assert stage.position() is None
            with pytest.raises(PositionUnknownError):
                stage.start_move(NEAR)
            laid.plug()
        stage.home()
        home, began = stage.position(), side.ask("truth")
        stage.start_move(FAR)
        stage.wait()
        truth = side.ask("truth")
        assert not truth["moving"]
        assert abs(truth["x_um"] - began["x_um"] - (FAR.x_um - home.x_um)) < 1
        assert side.ask("heard")["refused"] == 0
        stage.close()


def test_another_controller_at_the_other_end_is_not_taken_for_the_one_that_was_there(cable, tmp_path):
    (tmp_path / "other").mkdir()
    with (
        bench.emulator(StageRig(protocol="asi", **SPEED, **RIG), tmp_path),
        bench.emulator(StageRig(protocol="prior", **RIG), tmp_path / "other") as other,
    ):
        laid = cable(tmp_path / "near", to(tmp_path / "port"))
        stage = build_rig(stage_config("asi", *FAST, f"stage.port={laid.near}")).stage
        stage.open()
        stage.home()
        laid.pull()
        laid.plug(to(tmp_path / "other" / "port"))
        with pytest.raises(DeviceError):
            stage.home()
        assert stage.position() is None
        with pytest.raises(PositionUnknownError):
            stage.start_move(NEAR)
        assert not other.ask("truth")["moving"]
        stage.close()

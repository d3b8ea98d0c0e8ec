"""The serial line and the drivers on real pseudo-terminals, with emulators as processes of their own."""

import select
import threading
from types import SimpleNamespace

import pytest
from driver_rig import DRIVERS, RIG, stage_config

from edge_scanner.devices import serial_line
from edge_scanner.devices.clock import RealClock
from edge_scanner.devices.contract import check_camera, check_stage
from edge_scanner.devices.rig import build_rig
from edge_scanner.devices.serial_line import SerialLine, resolve
from edge_scanner.errors import DeviceError, EmergencyStopError
from edge_scanner.geometry import Position
from hil_sim import bench
from hil_sim.rig import StageRig
from hil_sim.terminal import Terminal

FAST = ("stage.speed_mm_s=200", "stage.acceleration_mm_s2=5000")
FAR = Position(4000.0, 3000.0, 10.0)


@pytest.fixture
def cable(tmp_path):
    """A terminal and an open line to it."""
    terminal = Terminal(tmp_path / "port")
    terminal.plug()
    line = SerialLine(str(tmp_path / "port"), 115_200, RealClock())
    line.open()
    yield SimpleNamespace(terminal=terminal, line=line, port=str(tmp_path / "port"))
    line.close()
    terminal.unplug()


def came(cable, size):
    """Return what came at the far end; the kernel passes it on when it gets to it."""
    got = b""
    while len(got) < size:
        assert select.select([cable.terminal.fileno], [], [], 60)[0]
        got += cable.terminal.read()
    return got


def test_bytes_go_both_ways_and_lines_are_whole(cable):
    cable.line.send(b"?\n")
    assert came(cable, 2) == b"?\n"
    cable.terminal.write(b"one\r\ntw")
    assert cable.line.read_line(60.0) == "one"
    assert cable.line.read_line(0.0) is None
    cable.terminal.write(b"o\r\n")
    assert cable.line.read_line(60.0) == "two"


def test_a_port_has_one_owner(cable):
    with pytest.raises(DeviceError, match="cannot be opened"):
        SerialLine(cable.port, 115_200, RealClock()).open()


@pytest.mark.parametrize("use", ["send", "receive", "clear", "urgent", "drain"])
def test_an_unplugged_line_is_one_kind_of_error(cable, use):
    calls = {
        "send": lambda: [cable.line.send(b"x") for _ in range(2)],
        "receive": lambda: cable.line.receive(0.5),
        "clear": lambda: [cable.line.clear(), cable.line.receive(0.1)],
        "urgent": lambda: cable.line.urgent(b"x"),
        "drain": lambda: cable.line.drain(0.05),
    }
    cable.terminal.unplug()
    with pytest.raises(DeviceError):
        calls[use]()
    assert not cable.line.is_open
    cable.terminal.plug()
    cable.line.open()
    cable.line.send(b"again")
    assert came(cable, 5) == b"again"


def test_a_peer_that_does_not_read_is_an_error_and_not_a_hang(cable):
    with pytest.raises(DeviceError):
        for _ in range(100):
            cable.line.send(b"x" * 4096)


def test_halt_ends_waiting_and_bars_all_but_urgent_packets(cable):
    ended = []

    def wait():
        try:
            cable.line.read_line(30.0)
        except EmergencyStopError as error:
            ended.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    cable.line.halt()
    waiting.join(timeout=60)
    assert ended
    with pytest.raises(EmergencyStopError):
        cable.line.send(b"move")
    cable.line.urgent(b"halt")
    assert came(cable, 4) == b"halt"
    cable.line.release()
    cable.line.send(b"home")
    assert came(cable, 4) == b"home"


def test_packets_of_two_threads_are_never_mixed(cable):
    packets = [bytes([65 + n]) * 500 for n in range(2)]
    got = bytearray()

    def write(send, packet):
        for _ in range(40):
            send(packet)

    writers = [
        threading.Thread(target=write, args=(send, packet))
        for send, packet in zip((cable.line.send, cable.line.urgent), packets, strict=True)
    ]
    for writer in writers:
        writer.start()
    while len(got) < 80 * 500:
        got += cable.terminal.read()
    for writer in writers:
        writer.join()
    assert all(len(set(got[at : at + 500])) == 1 for at in range(0, len(got), 500))


def test_ports_are_found_by_a_part_of_their_name(tmp_path, monkeypatch):
    for name in ("usb-Arduino_Uno_1234-if00", "usb-Teensyduino_USB_5678-if00"):
        (tmp_path / name).symlink_to("/dev/null")
    monkeypatch.setattr(serial_line, "BY_ID", tmp_path)
    assert resolve("Teensy") == str(tmp_path / "usb-Teensyduino_USB_5678-if00")
    assert resolve("/dev/ttyACM0") == "/dev/ttyACM0"
    for wrong in ("usb", "nothing", ""):
        with pytest.raises(DeviceError, match="There are: usb-Arduino"):
            resolve(wrong)


def test_a_missing_port_names_it(tmp_path):
    with pytest.raises(DeviceError, match="nowhere"):
        SerialLine(str(tmp_path / "nowhere"), 9600, RealClock()).open()


@pytest.mark.parametrize("protocol", sorted(DRIVERS))
def test_each_driver_keeps_the_contract_on_its_emulator(protocol, tmp_path):
    rig = StageRig(protocol=protocol, speed_um_s=200e3, acceleration_um_s2=5e6, **RIG)
    with bench.emulator(rig, tmp_path) as side:
        config = stage_config(
            protocol, *FAST, "stage.timeout_s=10", f"stage.port={tmp_path}/port", "illumination.driver=none"
        )
        built = build_rig(config)
        assert [c for c in check_stage(built.stage, built.clock, 1.0) if not c.ok] == []
        heard = side.ask("heard")
        assert heard["refused"] == 0
        assert heard["halts"] > 0
        with pytest.raises(DeviceError, match="not open"):
            built.stage.home()


def test_unplugged_and_plugged_in_again(tmp_path):
    """Three accidents on one rig: idle, in motion, and a different controller at the same port."""
    rig = StageRig(protocol="asi", speed_um_s=200e3, acceleration_um_s2=5e6, **RIG)
    with bench.emulator(rig, tmp_path) as side:
        config = stage_config("asi", *FAST, f"stage.port={tmp_path}/port", "illumination.driver=none")
        stage = build_rig(config).stage
        stage.open()
        for when in ("now", "moving"):
            stage.home()
            stage.start_move(FAR)
            stage.wait()
            side.ask("do", what="unplug", when=when)
            with pytest.raises(DeviceError):
                stage.start_move(Position(0.0, 0.0, 0.0))
                stage.wait()
            assert stage.position() is None
            side.ask("do", what="replug")
        stage.home()
        stage.start_move(FAR)
        stage.wait()
        truth = side.ask("truth")
        assert abs(truth["x_um"] - FAR.x_um) < 0.5
        assert not truth["moving"]
        stage._identity = "ASI of another make"
        side.ask("do", what="unplug")
        side.ask("do", what="replug")
        with pytest.raises(DeviceError):
            stage.start_move(Position(0.0, 0.0, 0.0))
        with pytest.raises(DeviceError, match="leads to"):
            stage.home()
        stage.close()


def test_the_wrong_protocol_is_not_taken_for_the_right_one(tmp_path):
    with bench.emulator(StageRig(protocol="grbl", **RIG), tmp_path):
        for other in ("asi", "squid"):
            stage = build_rig(stage_config(other, f"stage.port={tmp_path}/port", "illumination.driver=none")).stage
            with pytest.raises(DeviceError, match="does not"):
                stage.open()


def test_the_remote_camera_keeps_the_contract_and_refuses_bad_frames(tmp_path):
    with bench.emulator(StageRig(protocol="asi", **RIG), tmp_path):
        patient, hasty = (
            stage_config(
                "asi", "camera.driver=remote", f"camera.device=ipc://{tmp_path}/frames", "camera.width_px=96",
                "camera.height_px=80", f"camera.timeout_s={timeout_s}", f"stage.port={tmp_path}/port",
                "illumination.driver=none",
            )
            for timeout_s in (120.0, 5.0)
        )  # fmt: skip
        with bench.camera(patient, tmp_path) as side:
            rig = build_rig(patient)
            assert [c for c in check_camera(rig.camera, rig.clock) if not c.ok] == []
            camera = build_rig(hasty).camera  # by now its frames come at once, so only silence is waited for
            camera.open()
            for how in ("silent", "stale", "corrupt", "short"):
                camera.snap()
                side.ask("fail", how=how)
                with pytest.raises(DeviceError):
                    camera.snap()
            last = camera.snap()
            assert [last.frame_id] == [side.ask("log")["frames"][-1][0]]
            camera.close()
        with pytest.raises(DeviceError, match="did not answer"):
            camera.open()
        camera.close()

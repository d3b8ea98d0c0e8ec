"""The vectors of the protocol documents, against the drivers and, separately, against the emulators."""

import pytest
from driver_rig import RIG, wired

from edge_scanner.devices.drivers.squid import crc8, packet, set_speed, signed
from hil_sim.firmware.squid import check_sum
from hil_sim.rig import StageRig

COMMANDS = {
    "reset": (packet(1, 255), "01 ff 00 00 00 00 00 70"),
    "initialise": (packet(1, 254), "01 fe 00 00 00 00 00 59"),
    "x +1600": (packet(1, 0, *signed(1600)), "01 00 00 00 06 40 00 f9"),
    "x -1600": (packet(2, 0, *signed(-1600)), "02 00 ff ff f9 c0 00 ea"),
    "y to 16000": (packet(3, 7, *signed(16000)), "03 07 00 00 3e 80 00 c2"),
    "z to 5000": (packet(4, 8, *signed(5000)), "04 08 00 00 13 88 00 3b"),
    "home xy": (packet(5, 5, 4, 1, 1), "05 05 04 01 01 00 00 d5"),
    "home z": (packet(6, 5, 2, 0), "06 05 02 00 00 00 00 85"),
    "zero x": (packet(7, 5, 0, 2), "07 05 00 02 00 00 00 b2"),
    "limit x+": (packet(8, 9, 0, *signed(160000)), "08 09 00 00 02 71 00 ed"),
    "speed": (set_speed(9, 0, 25, 500), "09 16 00 09 c4 13 88 04"),
    "watchdog": (packet(10, 40, *signed(5000)), "0a 28 00 00 13 88 00 26"),
    "heartbeat": (packet(11, 42), "0b 2a 00 00 00 00 00 aa"),
    "ports off": (packet(12, 39), "0c 27 00 00 00 00 00 7b"),
}
REPORTS = ("01 01 00 00 03 20 a1", "01 00 00 00 06 40 99", "01 02 00 00 06 40 3d", "03 04 00 00 06 40 a3")


@pytest.mark.parametrize("name", COMMANDS)
def test_squid_commands(name):
    made, written = COMMANDS[name]
    assert made == bytes.fromhex(written)
    assert check_sum(made[:7]) == made[7]


def test_the_check_sum_of_both_sides():
    assert crc8(b"123456789") == check_sum(b"123456789") == 0xF4


@pytest.mark.parametrize("written", REPORTS)
def test_squid_reports(written):
    head, crc = bytes.fromhex(written)[:6], bytes.fromhex(written)[6]
    body = head + bytes(16) + b"\x14"
    assert crc8(body) == check_sum(body) == crc
    stage = wired("squid").stage
    stage._number = head[0]
    assert stage._fits(body + bytes((crc,)))
    assert not stage._fits(body + bytes((crc ^ 1,)))


def test_the_squid_emulator_reports_the_vectors():
    got = []
    firmware = StageRig(protocol="squid", **RIG).build(got.append)
    firmware.boot(-2.0)
    firmware.receive(bytes.fromhex("01 00 00 00 06 40 00 f9"), 0.0)
    firmware.tick(0.0)
    assert got[-1][:2].hex() == "0101"
    firmware.tick(5.0)
    assert got[-1].hex() == "010000000640" + "00" * 16 + "1499"
    firmware.receive(bytes.fromhex("01 00 00 00 06 40 00 f8"), 5.0)
    firmware.tick(6.0)
    assert got[-1].hex() == "010200000640" + "00" * 16 + "143d"


class Talk:
    """An emulator as a terminal program would see it."""

    def __init__(self, protocol):
        self.got = bytearray()
        self.firmware = StageRig(protocol=protocol, **RIG).build(self.got.extend)
        self.now_s = 0.0
        self.firmware.boot(0.0)

    def wait(self, seconds):
        for _ in range(200):
            self.now_s += seconds / 200
            self.firmware.tick(self.now_s)

    def say(self, data, wait_s=0.0):
        self.got.clear()
        self.firmware.receive(data, self.now_s)
        self.wait(wait_s)
        return self.got.decode()


def test_grbl_as_its_manual_says():
    grbl = Talk("grbl")
    assert grbl.say(b"?", 1.0) == "", "it boots for 1.4 s"
    grbl.wait(0.5)
    assert grbl.got.decode() == "\r\nGrbl 1.1h ['$' for help]\r\n[MSG:'$H'|'$X' to unlock]\r\n"
    assert grbl.say(b"$J=G53 G21 G90 X-5 F100\n") == "error:9\r\n"
    assert grbl.say(b"$X\n") == "[MSG:Caution: Unlocked]\r\nok\r\n"
    assert grbl.say(b"$H\n?") == "", "silent while homing"
    grbl.wait(10)
    assert grbl.got.decode() == "ok\r\n"
    assert grbl.say(b"?") == "<Idle|MPos:-13.000,-13.000,-5.400|FS:0,0|WCO:0.000,0.000,0.000>\r\n"
    assert grbl.say(b"?") == "<Idle|MPos:-13.000,-13.000,-5.400|FS:0,0|Ov:100,100,100>\r\n"
    assert grbl.say(b"$J=G53 G21 G90 X1 F100\n") == "error:15\r\n"
    assert grbl.say(b"$J=G53 G21 G90 X-5\n") == "error:22\r\n"
    assert grbl.say(b"$J=G53 G21 G90 X-5.25 Y-3 Z-2 F1500\n?").startswith("ok\r\n<Jog|MPos:-13.000")
    grbl.wait(0.1)
    assert grbl.say(b"\x85", 0.01) == "", "no reply to a jog cancel"
    assert grbl.say(b"?").startswith("<Hold:1|")
    grbl.wait(1)
    assert grbl.say(b"?").startswith("<Idle|")
    grbl.say(b"$J=G53 G21 G90 X-13 F1500\n", 0.05)
    assert grbl.say(b"\x18").startswith("ALARM:3\r\n\r\nGrbl 1.1h")
    grbl.firmware.hit_limit(grbl.now_s)
    assert grbl.got.decode().endswith("ALARM:1\r\n[MSG:Reset to continue]\r\n")
    assert grbl.say(b"?$X\n") == "", "critical: only a reset is heard"


def test_asi_as_its_manual_says():
    asi = Talk("asi")
    assert asi.say(b"v\r", 1.0) == "", "it boots for a second"
    assert asi.say(b"v\r") == ":A Version: USB-9.2n\r\n"
    assert asi.say(b"W X Y\r") == ":A 0 0\r\n"
    assert asi.say(b"M X=1234 Y=567\r/\rRS X?\r") == ":A\r\nB\r\n:A B\r\n"
    asi.wait(1)
    assert asi.say(b"W X Y\r/\r") == ":A 1234 567\r\nN\r\n"
    assert asi.say(b"R X=100\r", 1) == ":A\r\n"
    assert asi.say(b"W X\r\\\r") == ":A 1334\r\n:A\r\n"
    assert asi.say(b"M X=90000\r\\\r") == ":A\r\n:N-21\r\n"
    assert asi.say(b"H X=0 Y=0\rW X Y\r") == ":A\r\n:A 0 0\r\n"
    assert asi.say(b"SU X=1\rM X=10001\rM X=10000\r") == ":A\r\n:N-4\r\n:A\r\n"
    assert asi.say(b"FROB\rM\rM Q=1\r") == ":N-1\r\n:N-3\r\n:N-2\r\n"

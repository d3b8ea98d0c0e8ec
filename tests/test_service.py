"""The daemon as a service: readiness, the watchdog, logs, the trail before a fault."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
from control_rig import REGION, Served, raw_socket, request
from prometheus_client.parser import text_string_to_metric_families
from scan_rig import EXACT, SMALL, small_config

from edge_scanner import logs, metrics
from edge_scanner.control.client import Client, RemoteError
from edge_scanner.control.events import EventBus
from edge_scanner.control.trail import Trail
from edge_scanner.devices.illumination import Illumination
from edge_scanner.devices.rig import Rig, build_rig
from edge_scanner.errors import DeviceError, UsageError
from edge_scanner.geometry import Position
from edge_scanner.plan import ScanRegion, ScanRequest
from edge_scanner.scanner import Scanner
from edge_scanner.scanner.pulse import Pulse
from edge_scanner.service import Watchdog
from edge_scanner.state import State


class Hand:
    """Seconds that the test moves."""

    def __init__(self) -> None:
        self.s = 100.0

    def __call__(self) -> float:
        return self.s


def until(true: Callable[[], bool], within_s: float = 120.0) -> None:
    deadline_s = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline_s
        threading.Event().wait(0.005)


@contextlib.contextmanager
def listener(folder: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(str(folder / "n"))
        heard.settimeout(120)
        yield heard


def test_a_thread_is_late_only_while_it_is_busy_and_overdue() -> None:
    now = Hand()
    pulse = Pulse(10.0, now)
    pulse.step()
    other = threading.Thread(target=lambda: pulse.step(30.0), name="writer-7")
    other.start()
    other.join()
    now.s += 9.9
    assert pulse.late() == []
    now.s += 0.2
    assert pulse.late() == ["MainThread"]
    pulse.step()
    assert pulse.late() == []
    now.s += 20.0
    assert pulse.late() == ["MainThread", "writer-7"]
    pulse.rest()
    assert pulse.late() == ["writer-7"]


def test_the_watchdog_is_fed_only_while_nobody_is_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    late: list[str] = []
    now = Hand()
    with listener(tmp_path) as heard:
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "n"))
        watchdog = Watchdog(lambda: list(late), {"WATCHDOG_USEC": "4000000"}, now)
        heard.setblocking(False)

        def fed() -> int:
            count = 0
            with contextlib.suppress(BlockingIOError):
                while heard.recv(100) == b"WATCHDOG=1":
                    count += 1
            return count

        for _ in range(48):
            watchdog.tick()
            now.s += 0.125
        assert fed() == 6
        late.append("mosaic")
        for _ in range(48):
            watchdog.tick()
            now.s += 0.125
        assert fed() == 0
        assert [record.getMessage() for record in caplog.records] == [
            "No progress in the thread mosaic: the watchdog is not fed any more."
        ]
        late.clear()
        watchdog.tick()
        assert fed() == 1
        unasked = Watchdog(lambda: list(late), {}, now)
        now.s += 100
        unasked.tick()
        assert fed() == 0


class Brake:
    """Holds the stage from the first tile on, so that a test, however late it comes, finds the scan under way."""

    def __init__(self, rig: Rig, bus: EventBus) -> None:
        self.free = threading.Event()
        self.free.set()
        self._bus, self._wait = bus, rig.stage.wait
        self._tiles = 0
        rig.stage.wait = self.wait  # type: ignore[method-assign]

    def wait(self) -> Position:
        assert self.free.wait(120)
        return self._wait()

    def publish(self, topic: str, fields: dict[str, Any]) -> None:
        """Pass an event on; that of a tile comes from the thread that moves the stage."""
        if topic == "tile":
            self._tiles += 1
            if self._tiles == 1:
                self.free.clear()
        self._bus.publish(topic, fields)


def test_a_hung_stage_makes_the_scan_thread_late_and_a_pause_does_not(tmp_path: Path) -> None:
    config = small_config(tmp_path, "export.auto=false", *EXACT)
    rig = build_rig(config)
    bus = EventBus()
    now = Hand()
    brake = Brake(rig, bus)
    free = brake.free
    scanner = Scanner(config, rig, brake.publish, Pulse(60.0, now))
    scanner.open()
    try:
        scanner.home()
        until(lambda: scanner.state() is State.IDLE)
        now.s += 1e6
        assert scanner.pulse.late() == []
        scanner.scan(ScanRequest(region=ScanRegion(0.0, 0.0, 0.8, 0.6)))
        until(lambda: scanner.state() is State.SCANNING and scanner.status()["done"] >= 1)
        scanner.pause()
        free.set()
        until(lambda: scanner.state() is State.PAUSED)
        until(lambda: (setattr(now, "s", now.s + 1e3), scanner.pulse.late())[1] == [])
        free.clear()
        scanner.resume()
        until(lambda: (setattr(now, "s", now.s + 61.0), "scan" in scanner.pulse.late())[1])
        until(lambda: scanner.pulse.late() == ["scan"])
        free.set()
        until(lambda: scanner.state() is State.IDLE)
        now.s += 1e6
        assert scanner.pulse.late() == []
        assert scanner.scans()[0]["outcome"] == "completed"
    finally:
        free.set()
        scanner.close()
        bus.close()


class StuckLight(Illumination):
    """Cannot be put off any more once it was on."""

    def __init__(self) -> None:
        self.stuck = False

    def on(self) -> None:
        self.stuck = True

    def off(self) -> None:
        if self.stuck:
            raise DeviceError("The lamp does not answer.")


@pytest.mark.parametrize("stopped", [False, True])
def test_a_light_that_cannot_be_put_off_is_a_fault_and_everything_ends(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, stopped: bool
) -> None:
    unlit = "illumination.brightfield=false", "scan.shading=off", "stage.matrix=nominal"  # before the first tile
    config = small_config(tmp_path, "export.auto=false", *unlit, *EXACT)
    rig = replace(build_rig(config), illumination=StuckLight())
    bus = EventBus()
    brake = Brake(rig, bus)
    scanner = Scanner(config, rig, brake.publish if stopped else bus.publish)
    scanner.open()
    try:
        scanner.home()
        until(lambda: scanner.state() is State.IDLE)
        scanner.scan(ScanRequest(region=ScanRegion(0.0, 0.0, 0.8, 0.6)))
        if stopped:
            until(lambda: scanner.status()["done"] >= 1)
            scanner.stop()
            brake.free.set()
            until(lambda: "While the scan was ending: The lamp does not answer." in caplog.text)
        until(lambda: scanner.state() is State.FAULT)
        assert scanner.status()["fault"]["code"] == ("emergency_stop" if stopped else "device")
        scanner.reset()
        until(lambda: scanner.state() is State.IDLE)
        scanner.home()
        until(lambda: scanner.state() is not State.HOMING)
    finally:
        brake.free.set()
        scanner.close()
        bus.close()
    assert scanner.state() is State.STOPPED
    with pytest.raises(DeviceError):
        rig.stage.start_move(Position(0.0, 0.0, 0.0))  # closed


def test_the_process_tells_systemd_when_it_is_ready_alive_and_stopping(tmp_path: Path) -> None:
    with listener(tmp_path) as heard:
        log = tmp_path / "log"
        told = {"NOTIFY_SOCKET": str(tmp_path / "n"), "WATCHDOG_USEC": "400000"}
        command = [sys.executable, "-m", "edge_scanner", "run"]
        for text in (*SMALL, f'storage.root="{tmp_path}/scans"', f'control.endpoint="ipc://{tmp_path}/c"',
                     f'control.events="ipc://{tmp_path}/e"'):  # fmt: skip
            command += ["--set", text]
        with log.open("wb") as err:
            status = os.fstat(err.fileno())
            told["JOURNAL_STREAM"] = f"{status.st_dev}:{status.st_ino}"
            child = subprocess.Popen(command, stderr=err, env={**os.environ, **told})
        came: SimpleQueue[bytes] = SimpleQueue()

        def empty() -> None:
            """Take what comes as it comes: a daemon that is not heard waits, and answers nobody."""
            while message := heard.recv(200):
                came.put(message)

        listening = threading.Thread(target=empty)
        listening.start()
        try:
            assert came.get(timeout=120).startswith(b"EXTEND_TIMEOUT_USEC=")
            assert came.get(timeout=120).startswith(b"READY=1\n")
            assert [came.get(timeout=120) for _ in range(3)] == [b"WATCHDOG=1"] * 3
            with Client(f"ipc://{tmp_path}/c", timeout_s=120) as client:
                client.stop()
                with pytest.raises(RemoteError):
                    client.scan(**REGION)
            child.send_signal(signal.SIGTERM)
            until(lambda: came.get(timeout=120).startswith(b"STOPPING=1"))
            assert child.wait(120) == 0
        finally:
            child.kill()
            child.wait()
            heard.sendto(b"", str(tmp_path / "n"))
            listening.join()
    lines = [line for line in log.read_text().splitlines() if line[:3] != "<4>"]  # doubts about this machine's memory
    records = [json.loads(line.partition(">")[2]) for line in lines]
    assert [line[:3] for line in lines] == ["<6>", "<3>"], lines
    assert records[0]["message"].startswith("Ready at")
    trail = json.loads(records[1]["message"].partition("were ")[2])
    assert (trail[0]["cmd"], trail[0]["reply"]) == ("stop", "ok")


def test_a_fault_tells_the_last_requests_and_polling_does_not_push_them_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Served(tmp_path) as served, raw_socket(served) as wire:
        for message in (request("home", client="ui"), request("hoem", client="ui"), *[request("status")] * 80):
            wire.send(json.dumps(message).encode())
            wire.recv()
        served.scanner.finish()
        wire.send(json.dumps(request("stop", client="ui")).encode())
        wire.recv()
        until(lambda: "last requests" in caplog.text)
    [told] = [r.getMessage() for r in caplog.records if "last requests" in r.getMessage()]
    trail = json.loads(told.partition("were ")[2])
    assert [(one["cmd"], one["reply"], one["client"]) for one in trail] == [
        ("home", "ok", "ui"),
        ("hoem", "unknown_command", "ui"),
        ("stop", "ok", "ui"),
    ]


def test_the_trail_is_bounded_and_counts_everything() -> None:
    trail = Trail(lambda: 1.0)
    for n in range(200):
        trail.note("c", {"cmd": "home", "id": str(n), "args": {"x": "y" * 10_000}}, "ok")
        trail.note("c", {"cmd": "status"}, "ok")
    assert [one["id"] for one in trail.dump()] == [str(n) for n in range(150, 200)]
    assert len(json.dumps(trail.dump())) < 50 * 1000
    assert trail.counts == {"ok": 400}


def record(message: str, *args: object, level: int = logging.WARNING) -> logging.LogRecord:
    return logging.LogRecord("edge_scanner.x", level, __file__, 1, message, args, None)


def test_what_repeats_is_told_seldom_and_errors_always() -> None:
    now = Hand()
    seldom = logs.Seldom(burst=3, window_s=10.0, now_s=now)
    assert sum(seldom.filter(record("refused %s", n)) for n in range(1000)) == 3
    assert seldom.filter(record("something else"))
    assert all(seldom.filter(record("refused %s", n, level=logging.ERROR)) for n in range(10))
    now.s += 10.0
    late = record("refused %s", "again")
    assert seldom.filter(late)
    assert late.getMessage() == "refused again (and 997 like it before)"
    for n in range(10_000):
        seldom.filter(record(f"template {n}"))
    assert len(seldom._seen) <= 256


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield root
    root.handlers[:], root.level = before


def test_the_journal_gets_json_and_a_person_gets_a_line(tmp_path: Path, root_logger: logging.Logger) -> None:
    with (tmp_path / "log").open("w") as stream:
        status = os.fstat(stream.fileno())
        logs.configure("info", stream, {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"})
        try:
            raise ValueError("twelve\nlines")
        except ValueError:
            root_logger.exception("It broke: %s", "ä\n")
    line = (tmp_path / "log").read_text()
    assert line.count("\n") == 1
    told = json.loads(line.removeprefix("<3>"))
    assert (told["level"], told["message"]) == ("error", "It broke: ä\n")
    assert "ValueError: twelve" in told["exception"]
    plain = io.StringIO()
    logs.configure("warning", plain, {"JOURNAL_STREAM": "1:2"})
    root_logger.info("not this")
    root_logger.warning("this")
    assert plain.getvalue() == "WARNING this\n"


def test_warnings_reach_clients_as_events(root_logger: logging.Logger) -> None:
    bus = EventBus()
    handler = logs.EventHandler(bus.publish)
    root_logger.addHandler(handler)
    root_logger.info("no")
    root_logger.warning("low on %s", "oil")
    [(topic, body)] = bus.take()
    told = json.loads(body)
    assert (topic, told["level"], told["message"]) == (b"log", "warning", "low on oil")
    bus.close()


def scrape(url: str) -> dict[str, float]:
    with urllib.request.urlopen(url, timeout=10) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        return {s.name + "".join(s.labels.values()): s.value for f in families for s in f.samples}


def test_metrics_are_the_status(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    config = small_config(tmp_path, *EXACT)
    bus = EventBus()
    scanner = Scanner(config, build_rig(config), bus.publish)
    counts = {"ok": 3, "lease.held": 1}
    scanner.open()
    try:
        with metrics.serving("127.0.0.1:0", scanner.status, counts) as url:
            assert url is not None
            before = scrape(url)
            scanner.stop()
            after = scrape(url)
    finally:
        scanner.close()
        bus.close()
    assert (before["edge_scanner_stateIDLE"], before["edge_scanner_fault"]) == (1, 0)
    assert (after["edge_scanner_stateFAULT"], after["edge_scanner_stateIDLE"], after["edge_scanner_fault"]) == (1, 0, 1)
    assert (after["edge_scanner_requests_totalok"], after["edge_scanner_requests_totallease.held"]) == (3, 1)
    assert after["edge_scanner_disk_free_bytes"] > 0
    with pytest.raises(OSError, match="refused"):
        scrape(url)
    request.getfixturevalue("resident_memory")  # only now: the other metrics are right under an emulator too
    assert after["process_resident_memory_bytes"] > 1e7


@pytest.mark.parametrize("address", ["0.0.0.0:9464", "example.org:80", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:99999"])
def test_metrics_off_loopback_are_refused(address: str) -> None:
    with pytest.raises(UsageError), metrics.serving(address, dict, {}):
        pass


def test_metrics_are_off_unless_asked_for() -> None:
    with metrics.serving("", dict, {}) as url:
        assert url is None


def test_the_focus_model_is_made_ready_in_the_background_and_the_truth_is_told(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="learned focus needs the extra [cpu]")

    def providers(*more: str) -> dict[str, object]:
        config = small_config(tmp_path, *more)
        bus = EventBus()
        scanner = Scanner(config, build_rig(config), bus.publish)
        scanner.open()
        try:
            until(lambda: scanner.status()["providers"]["state"] != "building")
            assert scanner.hello()["providers"] == scanner.status()["providers"]
            return dict(scanner.status()["providers"])
        finally:
            scanner.close()
            bus.close()

    off = {"requested": [], "actual": [], "state": "off", "seconds": None, "error": None}
    assert providers("focus.mode=classical") == off
    ready = providers("focus.mode=model", 'focus.providers=["cpu"]')
    assert (ready["requested"], ready["actual"], ready["state"]) == (["cpu"], ["cpu"], "ready")
    failed = providers("focus.mode=model", f'focus.model="{tmp_path}/none.onnx"')
    assert (failed["state"], failed["actual"]) == ("failed", [])
    assert "none.onnx" in str(failed["error"])


UNIT = Path(__file__).parents[1] / "systemd" / "edge-scanner.service"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here")
def test_the_unit_is_valid_and_hardened() -> None:
    verified = subprocess.run(["systemd-analyze", "verify", UNIT], capture_output=True, text=True, timeout=30)
    complaints = [line for line in verified.stderr.splitlines() if UNIT.name in line]
    assert all("is not executable" in line for line in complaints), complaints  # nothing is installed here
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=15", "--no-pager", UNIT]
    rated = subprocess.run(command, capture_output=True, text=True, timeout=30)
    if "unrecognized option" in rated.stderr:
        pytest.skip("this systemd cannot rate a unit offline")
    assert rated.returncode == 0, rated.stdout[-300:]


NEWER_THAN_249 = """
ExecSearchPath ExitType LoadCredentialEncrypted RestrictFileSystems RestrictNetworkInterfaces SetCredentialEncrypted
StartupAllowedCPUs StartupAllowedMemoryNodes TTYColumns TTYRows ConditionMemoryPressure AssertMemoryPressure
ConditionCPUPressure AssertCPUPressure ConditionIOPressure AssertIOPressure ExtensionDirectories ConditionCredential
AssertCredential StartupMemoryHigh StartupMemoryLow StartupMemoryMax StartupMemorySwapMax StartupMemoryZSwapMax
DefaultStartupMemoryLow LogFilterPatterns MemoryZSwapMax OpenFile ReloadSignal DelegateSubgroup
FileDescriptorStorePreserve ImportCredential MemoryKSM MemoryPressureThresholdSec MemoryPressureWatch RestartMaxDelaySec
RestartMode RestartSteps RootEphemeral CoredumpReceive NFTSet SurviveFinalKillSignal MemoryZSwapWriteback
ExtensionImagePolicy MountImagePolicy RootImagePolicy ManagedOOMMemoryPressureDurationSec PrivatePIDs
"""
"""Directives that came with systemd 250 to 257."""


def test_the_unit_uses_only_what_systemd_249_knows() -> None:
    lines = [line for line in UNIT.read_text().splitlines() if line and line[0] not in "#[;"]
    used = {line.partition("=")[0] for line in lines}
    assert {"Type", "ExecStart", "WatchdogSec", "MemoryMax", "LoadCredential"} <= used
    assert not used & set(NEWER_THAN_249.split())
    values = " ".join(line.partition("=")[2] for line in lines)
    assert not [word for word in ("notify-reload", "%d", "disconnected") if word in values]
    assert "AF_NETLINK" in values  # libzmq aborts in bind("tcp://...") where it may not list interfaces

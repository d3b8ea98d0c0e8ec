"""The control server over real sockets: error codes, idempotent ids, lease, stop, limits."""

from __future__ import annotations

import base64
import json
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from control_rig import PATIENT_S, REGION, Served, raw_socket, request

from edge_scanner.config import ControlConfig
from edge_scanner.control.events import EventBus
from edge_scanner.control.messages import ARGUMENTS, ERROR_CODES
from edge_scanner.control.server import ControlServer
from edge_scanner.devices.clock import VirtualClock
from edge_scanner.errors import DeviceError, UsageError
from edge_scanner.plan import ScanPlan, ScanRegion
from edge_scanner.state import LEGAL, State


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with Served(tmp_path) as one:
        yield one


def ask(wire: zmq.Socket[bytes], message: Any) -> dict[str, Any]:
    wire.send(message if isinstance(message, bytes) else json.dumps(message).encode())
    reply: dict[str, Any] = json.loads(wire.recv())
    assert reply["v"] == 1
    assert set(reply) == {"v", "id", "ok", "result" if reply["ok"] else "error"}
    if not reply["ok"]:
        assert set(reply["error"]) == {"code", "message", "advice"}
        assert reply["error"]["code"] in ERROR_CODES
    return reply


def code(wire: zmq.Socket[bytes], message: Any) -> str:
    reply = ask(wire, message)
    return "ok" if reply["ok"] else str(reply["error"]["code"])


def homed(served: Served, wire: zmq.Socket[bytes], **more: Any) -> None:
    assert code(wire, request("home", **more)) == "ok"
    served.scanner.finish()


BAD = [
    ("bad_request", b""),
    ("bad_request", b"\xff\xfe"),
    ("bad_request", b"[1]"),
    ("bad_request", b"nonsense"),
    ("bad_request", b"[" * 100_000),
    ("bad_request", b'{"v":1,"v":1,"id":"a","cmd":"status","args":{}}'),
    ("bad_request", b'{"v":1,"id":"a","cmd":"scan","args":{"x_mm":NaN}}'),
    ("bad_request", {"v": 1, "cmd": "status"}),
    ("bad_request", {"v": 1, "id": 7, "cmd": "status"}),
    ("bad_request", {"v": 1, "id": "", "cmd": "status"}),
    ("bad_request", {"v": 1, "id": "x" * 129, "cmd": "status"}),
    ("bad_request", {"v": 1, "id": "no cmd"}),
    ("bad_request", {"v": 1, "id": "cmd no text", "cmd": 3}),
    ("bad_request", {"v": 1, "id": "cmd a list", "cmd": ["home"]}),
    ("bad_request", {"v": 1, "id": "cmd an object", "cmd": {}}),
    *(
        (
            "bad_request",
            b'{"v":1,"id":"deep %d","cmd":"scan","args":{"plan":' % n + b'{"a":' * n + b"1" + b"}" * n + b"}}",
        )
        for n in (40, 400, *range(900, 1000, 7))
    ),
    *(("bad_request", b'{"v":1,"cmd":' + b"[" * n + b"]" * n + b"}") for n in (40, *range(900, 1000, 7))),
    ("version", {**request("status"), "v": 2}),
    ("version", {**request("status"), "v": True}),
    ("version", {**request("status"), "v": 1.0}),
    ("version", {"id": "v missing", "cmd": "status"}),
    ("unknown_command", request("scann")),
    ("unknown_command", request("x" * 100_000)),
    ("unknown_field", request("status", arg=1)),
    ("unknown_field", request("status", {"x": 1})),
    ("unknown_field", request("scan", {**REGION, "widht_mm": 1})),
    ("unknown_field", request("stop", {"now": True})),
    ("bad_argument", {**request("status"), "args": []}),
    ("bad_argument", request("status", client=5)),
    ("bad_argument", request("status", client="")),
    ("bad_argument", request("scan")),
    ("bad_argument", request("scan", {"x_mm": 1})),
    ("bad_argument", request("scan", {**REGION, "resume": "a"})),
    ("bad_argument", request("scan", {**REGION, "x_mm": "1"})),
    ("bad_argument", request("scan", {**REGION, "x_mm": True})),
    ("bad_argument", request("scan", {**REGION, "width_mm": 0})),
    ("bad_argument", request("scan", {**REGION, "width_mm": 10**400})),
    ("bad_argument", json.dumps(request("scan", REGION)).replace("2.5", "1e999").encode()),
    ("bad_argument", request("scan", {"plan": {}})),
    ("bad_argument", request("scan", {"plan": [1]})),
    ("bad_argument", request("scan", {"resume": "../../etc"})),
    ("bad_argument", request("export")),
    ("bad_argument", request("export", {"scan_id": "a/b"})),
    ("bad_argument", request("export", {"scan_id": None})),
]


@pytest.mark.parametrize(("expected", "message"), BAD, ids=[f"{c}-{i}" for i, (c, _) in enumerate(BAD)])
def test_unusable_requests_are_refused_with_their_code_and_change_nothing(
    served: Served, expected: str, message: Any
) -> None:
    before = served.scanner.snapshot()
    with raw_socket(served) as wire:
        reply = ask(wire, message)
        assert reply["error"]["code"] == expected
        wanted = message.get("id") if isinstance(message, dict) else None
        usable = isinstance(wanted, str) and 0 < len(wanted) <= 128
        assert reply["id"] == (wanted if usable else reply["id"] if isinstance(message, bytes) else None)
        assert len(reply["error"]["message"]) < 600
        assert ask(wire, request("status"))["result"]["lease"]["holder"] is None
    assert served.scanner.snapshot() == before


@pytest.mark.parametrize(
    ("message", "near"),
    [
        (request("scann"), "'scan'"),
        (request("lease_release"), "'lease.release'"),
        (request("status", clinet="me"), "'client'"),
        (request("scan", {**REGION, "widht_mm": 1}), "'width_mm'"),
    ],
)
def test_a_misspelling_is_answered_with_the_nearest_name(served: Served, message: Any, near: str) -> None:
    with raw_socket(served) as wire:
        assert near in ask(wire, message)["error"]["message"]


@pytest.mark.parametrize("state", [state for state in State if state is not State.STOPPED])
@pytest.mark.parametrize("cmd", [cmd for cmd in ARGUMENTS if cmd != "shutdown"])
def test_a_command_is_refused_exactly_where_the_table_says(served: Served, cmd: str, state: State) -> None:
    served.scanner.known["done"] = {"scan_id": "done", "outcome": "completed"}
    served.scanner.homed = True
    served.scanner.jpeg = b"jpeg"
    served.scanner.enter(state)
    args = {"scan": REGION, "export": {"scan_id": "done"}}.get(cmd, {})
    with raw_socket(served) as wire:
        reply = ask(wire, request(cmd, args))
    if state in LEGAL[cmd]:
        assert reply["ok"]
    else:
        assert reply["error"]["code"] == "state.illegal"
        assert str(state) in reply["error"]["message"]
        assert all(str(legal) in reply["error"]["message"] for legal in LEGAL[cmd])
        assert served.scanner.calls == []


def test_the_table_of_commands_is_the_table_of_states() -> None:
    assert set(ARGUMENTS) == set(LEGAL)


def test_the_scanner_s_own_refusals_keep_their_codes(served: Served) -> None:
    served.scanner.known["other"] = {"scan_id": "other", "outcome": None}
    with raw_socket(served) as wire:
        assert code(wire, request("scan", REGION)) == "position.unknown"
        assert code(wire, request("preview")) == "not_found"
        homed(served, wire)
        assert code(wire, request("scan", {**REGION, "x_mm": 101})) == "limits.exceeded"
        assert code(wire, request("scan", {**REGION, "width_mm": 51})) == "disk.low"
        assert code(wire, request("scan", {"resume": "none"})) == "not_found"
        assert code(wire, request("export", {"scan_id": "none"})) == "not_found"
        assert code(wire, request("scan", {"resume": "other"})) == "plan.differs"
        served.scanner.fault = {"code": "emergency_stop"}
        assert code(wire, request("scan", REGION)) == "emergency_stop"
        served.scanner.trouble = DeviceError("The stage is silent.")
        assert code(wire, request("home")) == "device"
        served.scanner.trouble = ZeroDivisionError("a bug")
        reply = ask(wire, request("scan", REGION))
        assert reply["error"]["code"] == "internal"
        assert "a bug" not in reply["error"]["message"]
        served.scanner.jpeg = b"\xff\xd8jpeg"
        assert base64.b64decode(ask(wire, request("preview"))["result"]["jpeg"]) == b"\xff\xd8jpeg"
    assert served.scanner.calls == ["home"]


def test_a_plan_is_taken_whole(served: Served) -> None:
    plan = ScanPlan(ScanRegion(0, 0, 2, 1), 512, 640, 0.5, 64)
    with raw_socket(served) as wire:
        homed(served, wire)
        reply = ask(wire, request("scan", {"plan": json.loads(plan.to_json())}))
    assert reply["result"] == {"scan_id": "scan-0"}


def test_the_same_id_is_carried_out_once_whoever_sends_it(served: Served) -> None:
    with raw_socket(served) as one, raw_socket(served) as two:
        homed(served, one, client="ui")
        message = request("scan", REGION, client="ui")
        first = ask(one, message)
        served.scanner.finish()
        assert first["ok"]
        assert ask(two, message) == first
        assert ask(one, {**message, "cmd": "stop", "args": {}}) == first
        assert ask(two, request("scan", REGION, client="ui"))["result"] != first["result"]
    assert served.scanner.calls == ["home", "scan", "scan"]


def test_a_refusal_is_remembered_too(served: Served) -> None:
    message = request("scan", REGION)
    with raw_socket(served) as wire:
        assert code(wire, message) == "position.unknown"
        homed(served, wire)
        assert code(wire, message) == "position.unknown"
    assert served.scanner.calls == ["home"]


def test_reads_do_not_make_an_action_forgotten(served: Served) -> None:
    with raw_socket(served) as wire:
        message = request("home")
        first = ask(wire, message)
        for _ in range(42):
            for _ in range(100):
                wire.send(json.dumps(request("status")).encode())
            for _ in range(100):
                wire.recv()
        assert ask(wire, message) == first
    assert served.scanner.calls == ["home"]


def test_only_the_holder_of_the_lease_starts_things_until_it_is_silent_for_ten_seconds(tmp_path: Path) -> None:
    clock = VirtualClock()
    with Served(tmp_path, clock, lease_s=10) as served, raw_socket(served) as one, raw_socket(served) as two:
        homed(served, one)
        for cmd, args in (
            ("home", {}),
            ("scan", REGION),
            ("export", {"scan_id": "a"}),
            ("reset", {}),
            ("shutdown", {}),
        ):
            assert code(two, request(cmd, args)) == "lease.held"
        assert code(two, request("lease.release")) == "ok"
        clock.sleep_s(9)
        assert code(one, request("status")) == "ok"
        clock.sleep_s(9)
        assert code(two, request("home")) == "lease.held"
        assert code(two, request("status")) == "ok"
        clock.sleep_s(1.5)
        assert code(two, request("scan", REGION, client="second")) == "ok"
        assert ask(one, request("status"))["result"]["lease"]["holder"] == "second"
        assert code(one, request("pause")) == "ok"
        assert code(one, request("resume")) == "lease.held"
        assert code(one, request("cancel")) == "ok"
        assert code(one, request("stop")) == "ok"
        assert code(one, request("reset")) == "lease.held"
        assert ask(two, request("lease.release", client="second"))["result"] == {"released": True}
        assert code(one, request("reset")) == "ok"


def test_a_refused_command_does_not_take_the_lease(served: Served) -> None:
    with raw_socket(served) as one, raw_socket(served) as two:
        assert code(one, request("scan", REGION)) == "position.unknown"
        assert code(one, request("reset")) == "state.illegal"
        assert code(two, request("home")) == "ok"


def test_the_same_name_is_the_same_client_from_any_socket(served: Served) -> None:
    with raw_socket(served) as one, raw_socket(served) as two:
        assert code(one, request("home", client="ui")) == "ok"
        served.scanner.finish()
        assert code(two, request("home", client="ui")) == "ok"


def test_a_req_socket_is_answered(served: Served) -> None:
    with raw_socket(served, zmq.REQ) as wire:
        reply = ask(wire, request("hello"))
        assert reply["result"]["protocol"] == {"min": 1, "max": 1}
        assert ask(wire, b"rubbish")["error"]["code"] == "bad_request"


def test_more_than_one_frame_is_refused(served: Served) -> None:
    with raw_socket(served) as wire:
        wire.send_multipart([json.dumps(request("stop")).encode()] * 2)
        assert json.loads(wire.recv())["error"]["code"] == "bad_request"
        wire.send_multipart([b"", b"", json.dumps(request("stop")).encode()])
        assert json.loads(wire.recv_multipart()[-1])["error"]["code"] == "bad_request"
    assert served.scanner.calls == []


def test_an_oversized_message_is_dropped_and_the_server_lives(tmp_path: Path) -> None:
    with Served(tmp_path, max_message_kb=8) as served, raw_socket(served) as big, raw_socket(served) as wire:
        with big.get_monitor_socket(zmq.EVENT_DISCONNECTED) as told:
            big.send(json.dumps(request("home", client="x" * 9000)).encode())
            assert told.poll(PATIENT_S * 1000), "the server hangs up"
            big.disable_monitor()
        assert not big.poll(0)
        assert code(wire, request("status")) == "ok"
        assert code(big, request("status")) == "ok"
    assert served.scanner.calls == []


def test_a_stop_overtakes_what_waits_before_it(tmp_path: Path) -> None:
    bus = EventBus()
    served = Served(tmp_path)
    with ControlServer(served.config, served.scanner, bus) as server, raw_socket(served) as wire:

        def overtaken() -> int:
            """How many of 100 requests sent before a stop are answered after it; when they arrive is not ours."""
            stop = request("stop")
            for message in (*(request("status") for _ in range(100)), stop):
                wire.send(json.dumps(message).encode())
            ids: list[str] = []
            while len(ids) < 101:
                server.serve_once(5000)
                while wire.poll(0):
                    ids.append(json.loads(wire.recv())["id"])
            return 100 - ids.index(stop["id"])

        assert any(overtaken() > 0 for _ in range(20))


def test_a_stop_is_answered_in_every_state_by_anyone(served: Served) -> None:
    with raw_socket(served) as one, raw_socket(served) as two:
        assert code(one, request("home")) == "ok"
        for state in set(State) - {State.STOPPED}:
            served.scanner.enter(state)
            assert ask(two, request("stop"))["result"] == {"state": "FAULT"}
        assert ask(one, request("status"))["result"]["fault"]["code"] == "emergency_stop"


def test_shutdown_is_answered_before_the_sockets_close(served: Served) -> None:
    with raw_socket(served) as wire:
        assert ask(wire, request("shutdown"))["result"] == {"state": "STOPPED"}


def test_the_socket_s_folder_and_file_are_for_the_group(tmp_path: Path) -> None:
    with Served(tmp_path / "made") as served:
        assert stat.S_IMODE((tmp_path / "made").stat().st_mode) == 0o750
        for name in ("c.ipc", "e.ipc"):
            assert stat.S_IMODE((tmp_path / "made" / name).stat().st_mode) == 0o660
        with raw_socket(served) as wire:
            assert code(wire, request("status")) == "ok"


def bind(config: ControlConfig) -> None:
    bus = EventBus()
    try:
        with ControlServer(config, Served(Path("/nowhere")).scanner, bus):
            pass
    finally:
        bus.close()


def test_a_second_daemon_is_refused_and_the_first_goes_on(served: Served) -> None:
    with pytest.raises(UsageError, match="Another daemon answers"):
        bind(served.config)
    with raw_socket(served) as wire:
        assert code(wire, request("status")) == "ok"


def test_a_stale_socket_file_is_replaced_and_any_other_file_kept(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "c.ipc"))
    with Served(tmp_path) as served, raw_socket(served) as wire:
        assert code(wire, request("status")) == "ok"
    (tmp_path / "c.ipc").unlink(missing_ok=True)
    (tmp_path / "c.ipc").write_text("mine")
    with pytest.raises(UsageError, match="not a socket"):
        bind(served.config)
    assert (tmp_path / "c.ipc").read_text() == "mine"


@pytest.mark.parametrize(
    "endpoint",
    [
        "tcp://*:5555",
        "tcp://0.0.0.0:5555",
        "tcp://192.168.1.2:5555",
        "tcp://[::]:5555",
        "tcp://eth0:5555",
        "udp://x",
        "x",
    ],
)
def test_what_the_network_could_reach_is_refused(endpoint: str) -> None:
    with pytest.raises(UsageError):
        bind(ControlConfig(endpoint=endpoint, events="tcp://127.0.0.1:*"))


def test_tcp_on_loopback_is_served(tmp_path: Path) -> None:
    config = {"endpoint": "tcp://127.0.0.1:*", "events": "tcp://127.0.0.1:*"}
    with Served(tmp_path, **config) as served:
        served.config = ControlConfig(endpoint=served.endpoint)
        with raw_socket(served) as wire:
            assert ask(wire, request("hello"))["result"]["events"] == served.events

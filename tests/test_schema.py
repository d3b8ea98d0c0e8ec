"""The JSON Schema of every message: generated, in the repository, and true of what really goes over the wire."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from scan_rig import EXACT, small_config

import edge_scanner.control
from edge_scanner.control import messages, schema
from edge_scanner.control.events import TOPICS, EventBus
from edge_scanner.control.server import ControlServer
from edge_scanner.devices.rig import build_rig
from edge_scanner.errors import ScannerError
from edge_scanner.scanner import Scanner

DOCUMENT = json.loads((Path(edge_scanner.control.__path__[0]) / "schema.json").read_text())


def validator(part: str, name: str = "") -> Draft202012Validator:
    ref = DOCUMENT[part][name] if name else DOCUMENT[part]
    return Draft202012Validator({"$defs": DOCUMENT["$defs"], **ref})


def test_the_file_is_what_the_code_generates() -> None:
    made = schema.document()
    assert made == DOCUMENT, "run python -m edge_scanner.control.schema > edge_scanner/control/schema.json"
    Draft202012Validator.check_schema(DOCUMENT)


def test_every_command_topic_and_code_is_in_it() -> None:
    assert set(DOCUMENT["requests"]) == set(DOCUMENT["replies"]) == set(messages.ARGUMENTS)
    assert set(DOCUMENT["events"]) == TOPICS
    assert DOCUMENT["$defs"]["Fault"]["properties"]["code"]["enum"] == list(messages.ERROR_CODES)


ARGS = st.dictionaries(
    st.sampled_from(["x_mm", "y_mm", "width_mm", "height_mm", "plan", "resume", "scan_id", "other"]),
    st.one_of(st.none(), st.booleans(), st.integers(-(10**7), 10**7), st.floats(-1e7, 1e7), st.text(max_size=5),
              st.just("20250101-000000-abcd"), st.just({})),
    max_size=4,
)  # fmt: skip
ENVELOPES = st.fixed_dictionaries(
    {"v": st.sampled_from([1, 1, 1, 2, "1", None]), "id": st.one_of(st.just("a"), st.text(max_size=2), st.integers()),
     "cmd": st.sampled_from(list(messages.ARGUMENTS))},
    optional={"args": st.one_of(ARGS, ARGS, ARGS, st.lists(st.integers(), max_size=1)),
              "client": st.one_of(st.just("ui"), st.text(max_size=70), st.none(), st.integers()),
              "extra": st.just(1)},
)  # fmt: skip


@given(ENVELOPES)
def test_what_the_daemon_understands_the_schema_allows(raw: dict[str, Any]) -> None:
    allowed = validator("requests", raw["cmd"]).is_valid(raw)
    try:
        messages.understand(raw)
    except ScannerError as refusal:
        # what the schema cannot say: exactly one way to say where to scan, and what a plan must hold
        assert not allowed or (raw["cmd"] == "scan" and refusal.code in ("bad_argument", "unknown_field")), refusal
    else:
        assert allowed


@pytest.mark.parametrize("cmd", list(messages.ARGUMENTS))
def test_a_plain_request_of_each_command_is_allowed_and_an_odd_one_is_not(cmd: str) -> None:
    args = {"export": {"scan_id": "one"}, "scan": {"resume": "one"}}.get(cmd, {})
    raw = {"v": 1, "id": "a", "cmd": cmd, "args": args}
    assert messages.understand(raw).name == cmd
    check = validator("requests", cmd)
    assert check.is_valid(raw)
    for odd in ({"v": 2}, {"cmd": "other"}, {"id": ""}, {"id": None}, {"args": {**args, "odd": 1}}, {"odd": 1}):
        assert not check.is_valid({**raw, **odd})


class Tapped(EventBus):
    """A bus that keeps a copy of what it hands on."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[tuple[bytes, bytes]] = []

    def take(self) -> list[tuple[bytes, bytes]]:
        taken = super().take()
        self.heard += taken
        return taken


class Asking:
    """Sends requests to a server in this thread, and checks both ways against the schema."""

    def __init__(self, server: ControlServer) -> None:
        self._server = server
        self._context = zmq.Context()
        self._wire = self._context.socket(zmq.DEALER)
        self._wire.connect(server.endpoint)
        self._count = 0

    def __call__(self, cmd: str, **args: object) -> dict[str, Any]:
        self._count += 1
        raw = {"v": 1, "id": str(self._count), "cmd": cmd, "args": args}
        validator("requests", cmd).validate(raw)
        self._wire.send(json.dumps(raw).encode())
        while not self._wire.poll(0):
            self._server.serve_once(20)
        reply: dict[str, Any] = json.loads(self._wire.recv())
        (validator("replies", cmd) if reply["ok"] else validator("refusal")).validate(reply)
        return reply

    def until_idle(self) -> dict[str, Any]:
        while (status := self("status")["result"])["state"] not in ("IDLE", "FAULT"):
            self._server.serve_once(20)
        return dict(status)

    def close(self) -> None:
        self._context.destroy(linger=0)


def test_a_whole_session_of_the_real_scanner_is_as_the_schema_says(tmp_path: Path) -> None:
    config = small_config(
        tmp_path, *EXACT, f'control.endpoint="ipc://{tmp_path}/c"', f'control.events="ipc://{tmp_path}/e"'
    )
    bus = Tapped()
    scanner = Scanner(config, build_rig(config), bus.publish)
    region = {"x_mm": 0, "y_mm": 0.0, "width_mm": 0.5, "height_mm": 0.4}
    with ControlServer(config.control, scanner, bus) as server, contextlib.closing(Asking(server)) as ask:
        scanner.open()
        try:
            assert ask("scan", **region)["error"]["code"] == "position.unknown"
            assert ask("hello")["ok"]
            assert not ask("preview")["ok"]
            assert ask("home")["ok"]
            assert ask.until_idle()["homed"]
            scan_id = ask("scan", **region)["result"]["scan_id"]
            assert not ask("home")["ok"]
            assert ask.until_idle()["report"]["outcome"] == "completed"
            assert ask("preview")["ok"]
            assert ask("scans")["result"][0]["scan_id"] == scan_id
            assert ask("stop")["ok"]
            assert ask("status")["result"]["fault"]["code"] == "emergency_stop"
            bus.publish("log", {"level": "warning", "message": "as logs.EventHandler says it"})
            assert ask("reset")["ok"]
            assert ask("lease.release")["result"] == {"released": True}
        finally:
            scanner.close()
        server.serve_once(0)
    for topic, body in bus.heard:
        validator("events", topic.decode()).validate(json.loads(body))
    assert {topic.decode() for topic, _ in bus.heard} == TOPICS

"""Whatever arrives, the server answers or stays silent, changes nothing without an `ok`, and lives."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from control_rig import REGION, Served, raw_socket, request
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_scanner.control.messages import ARGUMENTS, ERROR_CODES

FAST = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
COMMAND = st.sampled_from([cmd for cmd in ARGUMENTS if cmd != "shutdown"])
ARGS = st.dictionaries(
    st.sampled_from([*REGION, "plan", "resume", "scan_id", "other"]), JSON | st.floats(-200, 200), max_size=6
)
NEAR = st.fixed_dictionaries(
    {},
    optional={
        "v": st.just(1) | JSON,
        "id": st.uuids().map(str) | JSON,
        "cmd": COMMAND | st.text(max_size=8),
        "args": ARGS | st.just(REGION) | JSON,
        "client": st.sampled_from(["a", "b"]) | JSON,
        "more": JSON,
    },
)
VALID = st.builds(
    lambda cmd, args, client: {**request(cmd, args), **client},
    COMMAND,
    st.just({}) | st.just(REGION) | st.just({"scan_id": "scan-0"}) | st.just({"resume": "scan-0"}) | ARGS,
    st.just({}) | st.just({"client": "a"}) | st.just({"client": "b"}),
)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with Served(tmp_path_factory.mktemp("f"), heartbeat_s=1000) as one:
        yield one


@pytest.fixture(scope="module")
def wire(served: Served) -> Iterator[zmq.Socket[bytes]]:
    with raw_socket(served) as one:
        yield one


def exchange(wire: zmq.Socket[bytes], body: bytes) -> dict[str, Any]:
    wire.send(body)
    reply: dict[str, Any] = json.loads(wire.recv(), parse_constant=lambda text: pytest.fail(f"{text} in a reply"))
    assert reply["ok"] in (True, False)
    if not reply["ok"]:
        assert reply["error"]["code"] in ERROR_CODES
        assert reply["error"]["message"]
    return reply


@FAST
@given(st.binary(max_size=300))
def test_bytes(served: Served, wire: zmq.Socket[bytes], body: bytes) -> None:
    before = served.scanner.snapshot()
    assert not exchange(wire, body)["ok"]
    assert served.scanner.snapshot() == before


@FAST
@given(st.lists(st.binary(max_size=50), min_size=1, max_size=5))
def test_frames(served: Served, wire: zmq.Socket[bytes], frames: list[bytes]) -> None:
    before = served.scanner.snapshot()
    wire.send_multipart(frames)
    assert json.loads(wire.recv_multipart()[-1])["error"]["code"] == "bad_request"
    assert served.scanner.snapshot() == before


@FAST
@given(NEAR | JSON | VALID)
def test_json_in_any_state(served: Served, wire: zmq.Socket[bytes], message: Any) -> None:
    before = served.scanner.snapshot()
    reply = exchange(wire, json.dumps(message).encode())
    if not reply["ok"]:
        assert reply["error"]["code"] != "internal"
        assert served.scanner.snapshot() == before


@FAST
@given(st.lists(VALID | st.just("finish"), min_size=2, max_size=12), st.data())
def test_histories_with_repeats(served: Served, wire: zmq.Socket[bytes], steps: list[Any], data: st.DataObject) -> None:
    replies: dict[str, dict[str, Any]] = {}
    for step in steps:
        if step == "finish":
            served.scanner.finish()
            continue
        before = served.scanner.snapshot()
        reply = exchange(wire, json.dumps(step).encode())
        if not reply["ok"]:
            assert served.scanner.snapshot() == before
        if reply["id"] is not None:  # none could be read where the JSON was bad: nothing to repeat
            replies[step["id"]] = reply
    after = served.scanner.snapshot()
    for request_id in data.draw(st.permutations(sorted(replies))):
        assert exchange(wire, json.dumps({**request("stop"), "id": request_id}).encode()) == replies[request_id]
    assert served.scanner.snapshot() == after


@pytest.mark.parametrize(
    "body",
    [
        b'{"v":1,"id":"x","cmd":"scan","args":' + b'{"plan":' * 50_000 + b"1" + b"}" * 50_001,
        b'{"v":1,"id":"x","cmd":"scan","args":{"x_mm":' + b"9" * 100_000 + b"}}",
        json.dumps(request("\ud800" * 1000)).encode(),
        json.dumps(request("scan", {"\ud800": 1})).encode(),
        json.dumps({**request("status"), "id": "\ud800"}).encode(),
        json.dumps(request("scan", {str(n): n for n in range(20_000)})).encode(),
        json.dumps(request("scan", {"plan": {str(n): n for n in range(20_000)}})).encode(),
    ],
    ids=["deep", "long number", "surrogate cmd", "surrogate key", "surrogate id", "many fields", "many plan fields"],
)
def test_hostile_shapes(served: Served, wire: zmq.Socket[bytes], body: bytes) -> None:
    before = served.scanner.snapshot()
    reply = exchange(wire, body)
    assert reply["error"]["code"] != "internal"
    assert len(reply["error"]["message"]) < 600
    assert served.scanner.snapshot() == before


def test_a_plan_of_hostile_numbers(served: Served, wire: zmq.Socket[bytes], tmp_path: Path) -> None:
    region = {"x_mm": 0, "y_mm": 0, "width_mm": 1, "height_mm": 1}
    side = {"tile_height_px": 64, "tile_width_px": 64, "overlap_px": 8}
    plan = {"version": 1, "region": region, **side, "pixel_size_um": 0.5}
    for change in (
        {"pixel_size_um": 10**400}, {"pixel_size_um": 1e-320}, {"tile_width_px": 10**400}, {"overlap_px": -1},
        {"region": {**region, "width_mm": 1e308}}, {"region": {**region, "x_mm": 10**400}}, {"region": None},
        {"region": {**region, "x_mm": 1e308}},
    ):  # fmt: skip
        reply = exchange(wire, json.dumps(request("scan", {"plan": plan | change})).encode())
        assert (reply["error"]["code"], change) == ("bad_argument", change)

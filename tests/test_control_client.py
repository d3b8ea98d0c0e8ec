"""The clients against a served scanner: waiting, retries, gaps, lease, errors."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from control_rig import PATIENT_S, REGION, Served

from edge_scanner.control import async_client
from edge_scanner.control import client as sync_client
from edge_scanner.control.client import AsyncClient, Client, Event, NoAnswerError, RemoteError
from edge_scanner.errors import ScannerError, UsageError
from edge_scanner.state import State


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with Served(tmp_path) as one:
        yield one


@pytest.fixture
def client(served: Served) -> Iterator[Client]:
    with Client(served.endpoint) as one:
        yield one


class Publisher:
    """A PUB end in the test's hands, which numbers events as it likes."""

    def __init__(self, folder: Path) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.XPUB)
        self._socket.setsockopt(zmq.RCVTIMEO, int(PATIENT_S * 1000))
        self.endpoint = f"ipc://{folder}/own.ipc"
        self._socket.bind(self.endpoint)

    def __enter__(self) -> Publisher:
        return self

    def __exit__(self, *_: object) -> None:
        self._context.destroy(linger=0)

    def await_subscriber(self) -> None:
        assert self._socket.recv() == b"\x01"

    def send(self, seq: int, session: str) -> None:
        body = {"v": 1, "seq": seq, "t": 0.0, "session": session}
        self._socket.send_multipart([b"progress", json.dumps(body).encode()])


def test_a_scan_from_home_to_outcome(served: Served, client: Client) -> None:
    seen: list[Event] = []

    def end_of_work(event: Event) -> None:
        seen.append(event)
        if event.topic == "heartbeat" and served.scanner.state() is not State.IDLE:
            served.scanner.finish()

    client.home()
    assert client.wait_idle(on_event=end_of_work)["state"] == "IDLE"
    scan_id = client.scan(**REGION)["scan_id"]
    assert client.wait_idle(scan_id, on_event=end_of_work)["outcome"] == "completed"
    client.export(scan_id)
    client.wait_idle(scan_id, on_event=end_of_work)
    assert served.scanner.calls == ["home", "scan", "export"]
    assert {event.topic for event in seen} >= {"snapshot", "state"}
    assert [scan["scan_id"] for scan in client.scans()] == [scan_id]


def test_waiting_ends_though_every_event_is_lost(served: Served, tmp_path: Path) -> None:
    with Publisher(tmp_path) as silent, Client(served.endpoint, silent.endpoint) as client:
        client.home()
        threading.Timer(0.2, served.scanner.finish).start()
        assert client.wait_idle()["state"] == "IDLE"


def test_waiting_has_an_end(served: Served, client: Client) -> None:
    client.home()
    with pytest.raises(ScannerError, match=r"still works after 0\.3 s"):
        client.wait_idle(timeout_s=0.3)


def test_waiting_through_a_fault_and_a_restart_reports_an_unfinished_scan(tmp_path: Path) -> None:
    with Served(tmp_path) as served, Client(served.endpoint) as client:
        served.scanner.homed = True
        scan_id = client.scan(**REGION)["scan_id"]
        client.stop()
        status = client.wait_idle(scan_id)
        assert (status["state"], status["outcome"], status["fault"]["code"]) == ("FAULT", None, "emergency_stop")
    with Served(tmp_path), Client(served.endpoint) as client:
        assert client.wait_idle(scan_id)["outcome"] is None


def test_a_refusal_keeps_code_and_advice(client: Client) -> None:
    with pytest.raises(RemoteError) as refusal:
        client.scan(**REGION)
    assert (refusal.value.code, refusal.value.advice) == ("position.unknown", "Home first.")
    for bad in (float("nan"), {1, 2}):
        with pytest.raises(UsageError):
            client.request("scan", x_mm=bad)


def test_no_daemon_is_said_and_a_later_one_does_not_get_the_request(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/c.ipc"
    with Client(endpoint, timeout_s=0.3) as client:
        with pytest.raises(NoAnswerError, match="No daemon answers at ipc"):
            client.home()
        with Served(tmp_path) as served, Client(endpoint) as other:
            assert other.status()["state"] == "IDLE"
            client._timeout_s = PATIENT_S
            assert client.status()["state"] == "IDLE"
            assert served.scanner.calls == []


@pytest.mark.parametrize("endpoint", ["nonsense", "tcp://host", "ipc://" + "x" * 300])
def test_an_impossible_endpoint_is_wrong_usage(endpoint: str) -> None:
    with pytest.raises(UsageError):
        Client(endpoint)


@contextlib.contextmanager
def lossy_server(folder: Path, ignore: int) -> Iterator[tuple[str, list[bytes]]]:
    """A ROUTER that answers only after having ignored some requests, and precedes the answer by a foreign one."""
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    router.setsockopt(zmq.RCVTIMEO, int(PATIENT_S * 1000))
    endpoint = f"ipc://{folder}/lossy.ipc"
    router.bind(endpoint)
    got: list[bytes] = []

    def answer() -> None:
        for _ in range(ignore + 1):
            sender, body = router.recv_multipart()
            got.append(body)
        for request_id in ("of another", json.loads(body)["id"]):
            reply = {"v": 1, "id": request_id, "ok": True, "result": {"of": request_id}}
            router.send_multipart([sender, json.dumps(reply).encode()])

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        yield endpoint, got
    finally:
        thread.join()
        context.destroy(linger=0)


class Lost:
    """The time-out of a client whose first requests are lost: short for each of them, long for the one that is not."""

    def __init__(self, requests: int) -> None:
        self._short = requests

    def __truediv__(self, tries: int) -> float:
        self._short -= 1
        return 0.2 if self._short >= 0 else PATIENT_S


def test_a_lost_request_is_sent_again_under_the_same_id(tmp_path: Path) -> None:
    with lossy_server(tmp_path, 2) as (endpoint, got), Client(endpoint) as client:
        assert client._socket.poll(PATIENT_S * 1000, zmq.POLLOUT), "or there would be nothing to lose"
        client._timeout_s = Lost(2)  # type: ignore[assignment]
        result = client.status()
    assert len(got) == 3
    assert len(set(got)) == 1
    assert result == {"of": json.loads(got[0])["id"]}


def test_a_lost_request_is_sent_again_by_the_async_client_too(tmp_path: Path) -> None:
    async def ask(endpoint: str) -> Any:
        async with AsyncClient(endpoint) as client:
            assert await client._socket.poll(PATIENT_S * 1000, zmq.POLLOUT), "or there would be nothing to lose"
            client._timeout_s = Lost(2)  # type: ignore[assignment]
            return await client.status()

    with lossy_server(tmp_path, 2) as (endpoint, got):
        result = asyncio.run(ask(endpoint))
    assert len(got) == 3
    assert len(set(got)) == 1
    assert result == {"of": json.loads(got[0])["id"]}


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let clients that leave wait as long for the answer as otherwise."""
    for module in (async_client, sync_client):
        monkeypatch.setattr(module, "RELEASE_S", PATIENT_S)


@pytest.mark.usefixtures("unhurried")
def test_leaving_releases_the_lease(served: Served) -> None:
    with Client(served.endpoint) as one:
        one.home()
        served.scanner.finish()
        with Client(served.endpoint) as two, pytest.raises(RemoteError, match="controlled by"):
            two.home()
        assert one.status()["lease"]["holder"] == one.name
    with Client(served.endpoint) as two:
        assert two.status()["lease"]["holder"] is None
        two.home()


def test_leaving_without_the_lease_leaves_the_holder_s(served: Served, client: Client) -> None:
    client.home()
    with Client(served.endpoint) as two:
        two.status()
    assert client.status()["lease"]["holder"] == client.name


def test_gaps_old_events_and_another_session(tmp_path: Path) -> None:
    with (
        Served(tmp_path, heartbeat_s=1000) as served,
        Publisher(tmp_path) as own,
        Client(served.endpoint, own.endpoint) as client,
        contextlib.closing(client.events(silence_s=PATIENT_S)) as events,
    ):
        session = client.status()["session"]
        first = next(events)
        own.await_subscriber()
        assert (first.topic, first.seq) == ("snapshot", client.status()["seq"])
        n = first.seq
        for seq in (n, n + 1, n + 1, n + 2):
            own.send(seq, session)
        assert [(event.topic, event.seq) for event in (next(events), next(events))] == [
            ("progress", n + 1),
            ("progress", n + 2),
        ]
        for _ in range(5):
            served.bus.publish("progress", {})
        own.send(n + 4, session)  # n + 3 is missing; the snapshot, at n + 5, includes n + 4 too
        own.send(n + 6, session)
        assert [(event.topic, event.seq) for event in (next(events), next(events))] == [
            ("snapshot", n + 5),
            ("progress", n + 6),
        ]
        own.send(1, "another")
        assert [(event.topic, event.session) for event in (next(events), next(events))] == [
            ("snapshot", session),
            ("progress", "another"),
        ]


def test_silence_brings_a_snapshot_and_a_dead_daemon_an_error(tmp_path: Path) -> None:
    with Publisher(tmp_path) as own:
        with Served(tmp_path) as served:
            client = Client(served.endpoint, own.endpoint, timeout_s=PATIENT_S)
            events = client.events(silence_s=0.05)
            assert [next(events).topic for _ in range(3)] == ["snapshot"] * 3
        client._timeout_s = 0.3
        with contextlib.closing(client), contextlib.closing(events), pytest.raises(NoAnswerError):
            list(events)


def test_events_of_the_daemon_come_in_order_without_a_hole(served: Served, client: Client) -> None:
    with contextlib.closing(client.events(silence_s=PATIENT_S)) as events:
        while next(events).topic != "heartbeat":
            pass  # now the subscription is known to be alive
        writers = [
            threading.Thread(target=lambda: [served.bus.publish("tile", {"n": n}) for n in range(50)]) for _ in range(4)
        ]
        for writer in writers:
            writer.start()
        seen: list[Event] = []
        while sum(event.topic == "tile" for event in seen) < 200:
            seen.append(next(events))
            assert seen[-1].topic in ("tile", "heartbeat")
    assert [event.seq for event in seen] == list(range(seen[0].seq, seen[0].seq + len(seen)))


@pytest.mark.usefixtures("unhurried")
def test_the_async_client_does_the_same(served: Served) -> None:
    async def run() -> None:
        async with AsyncClient(served.endpoint, timeout_s=PATIENT_S) as client:
            statuses = await asyncio.gather(*(client.status() for _ in range(50)))
            assert {status["state"] for status in statuses} == {"IDLE"}
            await client.home()
            assert (await client.wait_idle(on_event=finish))["state"] == "IDLE"
            scan_id = (await client.scan(**REGION))["scan_id"]
            assert (await client.wait_idle(scan_id, on_event=finish))["outcome"] == "completed"
            with pytest.raises(RemoteError) as refusal:
                await client.pause()
            assert refusal.value.code == "state.illegal"
            with pytest.raises(ScannerError, match="still works"):
                await client.home()
                await client.wait_idle(timeout_s=0.2)
            await client.stop()
            async with AsyncClient(served.endpoint) as other:
                with pytest.raises(RemoteError, match="controlled by"):
                    await other.reset()
        async with AsyncClient(served.endpoint) as other:
            await other.reset()
        async with AsyncClient(f"{served.endpoint}.none", timeout_s=0.2) as nobody:
            with pytest.raises(NoAnswerError):
                await nobody.status()

    def finish(_: Event) -> None:
        if served.scanner.state() in (State.HOMING, State.SCANNING):
            served.scanner.finish()

    asyncio.run(run())
    assert served.scanner.calls == ["home", "scan", "home", "stop", "reset"]


def test_shutdown_leaves_nothing_to_release(tmp_path: Path) -> None:
    with Served(tmp_path) as served, Client(served.endpoint, timeout_s=30) as client:
        client.home()
        client.shutdown()
        assert not client._leased

"""CURVE at the control sockets: who gets in, who does not, and what each of them is told."""

from __future__ import annotations

import asyncio
import contextlib
import json
import stat
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
from control_rig import PATIENT_S, Served, request

from edge_scanner.cli.app import main
from edge_scanner.config import ControlConfig
from edge_scanner.control import connect, keys
from edge_scanner.control.client import AsyncClient, Client, NoAnswerError
from edge_scanner.control.connect import reachable
from edge_scanner.control.events import EventBus
from edge_scanner.control.gate import Gate
from edge_scanner.control.server import ControlServer
from edge_scanner.errors import ScannerError, UsageError

TCP = {"endpoint": "tcp://127.0.0.1:*", "events": "tcp://127.0.0.1:*"}


class Guarded:
    """A folder of keys and a server on TCP that asks for them."""

    def __init__(self, folder: Path, *allowed: str) -> None:
        self.keys = folder / "keys"
        keys.new(self.keys, keys.SERVER)
        for name in ("friend", "stranger"):
            keys.new(folder, name)
        (self.keys / "allowed").mkdir()
        for name in allowed:
            self.allow(name, folder)
        self.folder = folder
        self.served = Served(folder, keys=str(self.keys), **TCP)

    def allow(self, name: str, folder: Path) -> None:
        keys.allow(self.keys, name, keys.read_public(folder / f"{name}.key"))

    def client(self, name: str = "friend", timeout_s: float = 15.0) -> Client:
        return Client(
            self.served.endpoint,
            timeout_s=timeout_s,
            server_key=self.keys / "server.key",
            key=self.folder / f"{name}.key_secret",
        )


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Guarded]:
    one = Guarded(tmp_path, "friend")
    with one.served:
        yield one


def why(client: Client) -> str:
    """What a client says that is not let in, once it knows: its time-out does not tell how soon that is."""
    with client, pytest.raises(NoAnswerError) as silence:
        while client._door.why() in (connect._DOWN, connect._WHY[zmq.EVENT_CONNECTED]):
            assert client._door._told.poll(PATIENT_S * 1000)
        client.hello()
    return str(silence.value)


def told(client: Client, cause: str) -> None:
    """Ask until that is why there is no answer; a moment earlier the server may be closing, or slow."""
    deadline_s = time.monotonic() + PATIENT_S
    with pytest.raises(NoAnswerError, match=cause):
        while time.monotonic() < deadline_s:
            try:
                client.status()
            except NoAnswerError as silence:
                if cause in str(silence):
                    raise


def test_the_right_key_commands_and_hears_events(guarded: Guarded) -> None:
    with guarded.client() as client:
        client.home()
        with contextlib.closing(client.events()) as events:
            while next(events).topic != "heartbeat":
                pass
    assert guarded.served.scanner.calls == ["home"]


def test_the_async_client_has_keys_too(guarded: Guarded) -> None:
    async def run() -> str:
        both = {"server_key": guarded.keys / "server.key", "key": guarded.folder / "friend.key_secret"}
        async with AsyncClient(guarded.served.endpoint, **both) as client:  # type: ignore[arg-type]
            state = (await client.status())["state"]
            async with contextlib.aclosing(client.events()) as events:
                async for event in events:
                    if event.topic == "heartbeat":
                        return str(state)
        raise AssertionError

    assert asyncio.run(run()) == "IDLE"


def test_everyone_else_is_kept_out_and_told_why(guarded: Guarded, tmp_path: Path) -> None:
    endpoint, server_key = guarded.served.endpoint, guarded.keys / "server.key"
    assert "does not allow this client's key" in why(guarded.client("stranger", timeout_s=1.5))
    assert "keys are used on one side only" in why(Client(endpoint, timeout_s=1.5)).lower()
    wrong = Client(endpoint, timeout_s=1.5, server_key=tmp_path / "stranger.key", key=tmp_path / "friend.key_secret")
    assert "server key is not this daemon's" in why(wrong)
    down = Client("tcp://127.0.0.1:9", timeout_s=1.5, server_key=server_key, key=tmp_path / "friend.key_secret")
    with down, pytest.raises(NoAnswerError, match="Nothing listens there"):
        down.hello()
    assert guarded.served.scanner.calls == []
    assert list(guarded.served.scanner.known) == []
    with guarded.client() as client:
        assert client.status()["state"] == "IDLE"


def test_a_key_for_a_daemon_without_keys_is_told_apart(tmp_path: Path) -> None:
    keys.new(tmp_path, "friend")
    with Served(tmp_path, **TCP) as served:
        mine = {"server_key": tmp_path / "friend.key", "key": tmp_path / "friend.key_secret"}
        assert "keys are used on one side only" in why(Client(served.endpoint, timeout_s=1.5, **mine)).lower()  # type: ignore[arg-type]


def test_strangers_hear_no_event(guarded: Guarded) -> None:
    context = zmq.Context()
    try:
        deaf = context.socket(zmq.SUB)
        deaf.setsockopt(zmq.SUBSCRIBE, b"")
        deaf.connect(guarded.served.events)
        with guarded.client() as client, contextlib.closing(client.events()) as events:
            assert [next(events).topic for _ in range(4)]
        assert not deaf.poll(0)
    finally:
        context.destroy(linger=0)


def test_allowing_and_revoking_need_no_restart(guarded: Guarded, tmp_path: Path) -> None:
    assert "does not allow" in why(guarded.client("stranger", timeout_s=1.5))
    guarded.allow("stranger", tmp_path)
    with guarded.client("stranger") as second, guarded.client("friend") as first:
        assert (second.status()["state"], first.status()["state"]) == ("IDLE", "IDLE")
        before = guarded.served.endpoint
        keys.revoke(guarded.keys, "stranger")
        second._timeout_s = 0.9
        told(second, "does not allow this client's key")  # the connection that was open is cut
        assert first.status()["state"] == "IDLE"
        assert guarded.served.endpoint == before
        guarded.allow("stranger", tmp_path)
        second._timeout_s = PATIENT_S
        assert second.status()["state"] == "IDLE"  # the same client, once it is allowed again
    keys.revoke(guarded.keys, "stranger")
    with pytest.raises(ScannerError, match="Nobody named 'stranger'"):
        keys.revoke(guarded.keys, "stranger")


def test_a_replay_across_the_cut_is_answered_but_not_carried_out_twice(guarded: Guarded, tmp_path: Path) -> None:
    guarded.allow("stranger", tmp_path)
    again = json.dumps(request("home", client="me")).encode()
    with guarded.client("stranger") as second:
        second.status()
        with guarded.client() as client:
            client._socket.send(again)
            first = client._socket.recv()
        keys.revoke(guarded.keys, "stranger")
        second._timeout_s = 0.9
        told(second, "does not allow this client's key")
    with guarded.client() as client:
        assert client._socket.poll(PATIENT_S * 1000, zmq.POLLOUT)
        client._socket.send(again)
        assert client._socket.recv() == first
    assert guarded.served.scanner.calls == ["home"]


def test_where_the_gate_is_not_served_nobody_gets_in(tmp_path: Path) -> None:
    """The fault that makes a plain CURVE server accept any key: its ZAP handler is gone."""
    rig = Guarded(tmp_path, "friend")
    for with_handler in (True, False):
        context = zmq.Context()
        try:
            gate = Gate(keys.Keyring(rig.keys, {}))
            handler = gate.open(context)
            router = context.socket(zmq.ROUTER)
            gate.guard(router)
            port = router.bind_to_random_port("tcp://127.0.0.1")
            if not with_handler:
                handler.close(linger=0)
            for name in ("friend", "stranger"):
                welcome = with_handler and name == "friend"
                knock = context.socket(zmq.DEALER)
                knock.curve_publickey, knock.curve_secretkey = zmq.auth.load_certificate(
                    tmp_path / f"{name}.key_secret"
                )
                knock.curve_serverkey = keys.read_public(rig.keys / "server.key")
                knock.connect(f"tcp://127.0.0.1:{port}")
                knock.send(b"hello")
                for _ in range(500 if welcome else 50):
                    if with_handler:
                        gate.answer()
                    if router.poll(10):
                        break
                assert bool(router.poll(0)) is welcome, (with_handler, name)
                if welcome:
                    router.recv_multipart()
                knock.close(linger=0)
        finally:
            context.destroy(linger=0)


class OpenGate(Gate):
    """A gate that forgot to ask."""

    def guard(self, socket: zmq.Socket[bytes]) -> None:
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_SECRETKEY, self._pair.secret)


def test_the_start_up_proof_sees_a_gate_that_lets_strangers_in(tmp_path: Path) -> None:
    rig = Guarded(tmp_path, "friend")
    context = zmq.Context()
    try:
        gate = OpenGate(keys.Keyring(rig.keys, {}))
        gate._pair = keys.read_pair(rig.keys / "server.key_secret")
        router = context.socket(zmq.ROUTER)
        gate.guard(router)
        port = router.bind_to_random_port("tcp://127.0.0.1")
        gate._socket = context.socket(zmq.REP)  # bound nowhere: no handler answers
        with pytest.raises(ScannerError, match="lets unknown keys in"):
            gate.prove(f"tcp://127.0.0.1:{port}", zmq.DEALER)
    finally:
        context.destroy(linger=0)


def start(folder: Path, **control: str) -> None:
    bus = EventBus()
    config = ControlConfig(**{"endpoint": f"ipc://{folder}/c", "events": f"ipc://{folder}/e", **control})  # type: ignore[arg-type]
    with ControlServer(config, Served(folder).scanner, bus):
        pass


def test_tcp_off_loopback_without_keys_does_not_start(tmp_path: Path) -> None:
    for where in ({"endpoint": "tcp://0.0.0.0:*"}, {"events": "tcp://0.0.0.0:*"}):
        with pytest.raises(UsageError, match="no CURVE keys"):
            start(tmp_path, **where)
    rig = Guarded(tmp_path)
    start(tmp_path, endpoint="tcp://0.0.0.0:*", events="tcp://0.0.0.0:*", keys=str(rig.keys))


def test_keys_that_others_can_read_or_write_do_not_start(tmp_path: Path) -> None:
    rig = Guarded(tmp_path)
    secret = rig.keys / "server.key_secret"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    secret.chmod(0o640)
    with pytest.raises(ScannerError, match="Others may read"):
        start(tmp_path, keys=str(rig.keys), **TCP)
    secret.chmod(0o600)
    (rig.keys / "allowed").chmod(0o777)
    with pytest.raises(ScannerError, match="Others may put keys"):
        start(tmp_path, keys=str(rig.keys), **TCP)
    (rig.keys / "allowed").chmod(0o755)
    start(tmp_path, keys=str(rig.keys), **TCP)
    start(tmp_path, keys=str(tmp_path / "nothing"))  # ipc only: keys are not asked for
    with pytest.raises(ScannerError, match=r"keys new"):
        start(tmp_path, keys=str(tmp_path / "nothing"), **TCP)


def test_systemd_s_credential_comes_before_the_file(tmp_path: Path) -> None:
    given, folder = keys.new(tmp_path / "credentials", "server"), keys.new(tmp_path / "keys", "server")
    found = keys.Keyring(tmp_path / "keys", {"CREDENTIALS_DIRECTORY": str(tmp_path / "credentials")}).server()
    assert found == given != folder
    assert keys.Keyring(tmp_path / "keys", {"CREDENTIALS_DIRECTORY": str(tmp_path)}).server() == folder


@pytest.mark.parametrize(
    "content",
    ["", "nonsense", 'public-key = "short"', 'public-key = "{}"\nsecret-key = "{}"'.format("a" * 40, "b" * 40)],
)
def test_what_is_no_key_is_said(tmp_path: Path, content: str) -> None:
    path = tmp_path / "x.key_secret"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(ScannerError):
        keys.read_pair(path)
    with pytest.raises(ScannerError):
        keys.Credentials.load(str(tmp_path / "none.key"), path)
    with pytest.raises(UsageError, match="both"):
        keys.Credentials.load("a" * 40, None)


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "x" * 65, "a\nb", 'a"b'])
def test_names_stay_in_their_folder(tmp_path: Path, name: str) -> None:
    for act in (keys.new, keys.revoke, lambda f, n: keys.allow(f, n, b"a" * 40)):
        with pytest.raises(UsageError):
            act(tmp_path / "keys", name)
    assert not (tmp_path / "keys").exists()


def test_a_key_is_never_overwritten_nor_shown(tmp_path: Path) -> None:
    pair = keys.new(tmp_path, "one")
    with pytest.raises(UsageError, match="already"):
        keys.new(tmp_path, "one")
    assert keys.read_pair(tmp_path / "one.key_secret") == pair
    assert pair.secret.decode() not in f"{pair} {pair!r}"
    assert pair.secret not in (tmp_path / "one.key").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.key", "one.key_secret"]


@pytest.mark.parametrize(
    ("events", "endpoint", "there"),
    [
        ("tcp://0.0.0.0:6", "tcp://box:5", "tcp://box:6"),
        ("tcp://[::]:6", "tcp://[fe80::1]:5", "tcp://[fe80::1]:6"),
        ("tcp://10.0.0.1:6", "tcp://box:5", "tcp://10.0.0.1:6"),
        ("ipc:///run/e", "ipc:///run/c", "ipc:///run/e"),
    ],
)
def test_events_of_a_wildcard_address_are_where_commands_are(events: str, endpoint: str, there: str) -> None:
    assert reachable(events, endpoint) == there


def test_many_strangers_at_once_do_not_keep_a_friend_out(guarded: Guarded) -> None:
    def knock() -> None:
        context = zmq.Context()
        for _ in range(10):
            one = context.socket(zmq.DEALER)
            one.curve_publickey, one.curve_secretkey = zmq.curve_keypair()
            one.curve_serverkey = keys.read_public(guarded.keys / "server.key")
            one.connect(guarded.served.endpoint)
            one.send(b"x")
        with guarded.client() as client:
            assert client.status()["state"] == "IDLE"
        context.destroy(linger=0)

    threads = [threading.Thread(target=knock) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENT_S)
    assert not any(thread.is_alive() for thread in threads)


def test_keys_and_ctl_on_the_command_line(
    guarded: Guarded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["edge-scanner", *map(str, words)])
        return main(), *capsys.readouterr()

    made = json.loads(run("keys", "new", "laptop", "--keys", tmp_path / "mine", "--json")[1])
    how = ("--endpoint", guarded.served.endpoint, "--server-key", guarded.keys / "server.key",
           "--key", made["secret_file"], "--timeout-s")  # fmt: skip
    code, _, complaint = run("ctl", *how, 3.0, "status")
    assert (code, complaint.count("\n")) == (1, 1)
    assert "keys allow" in complaint
    assert run("keys", "allow", "laptop", made["public"], "--keys", guarded.keys)[0] == 0
    code, answer, complaint = run("ctl", *how, PATIENT_S, "status", "--json")
    assert code == 0, complaint
    assert json.loads(answer)["state"] == "IDLE"
    listed = json.loads(run("keys", "list", "--keys", guarded.keys, "--json")[1])
    assert listed["server"] == keys.read_public(guarded.keys / "server.key").decode()
    assert {"name": "laptop", "public": made["public"]} in listed["allowed"]
    assert run("keys", "revoke", "laptop", "--keys", guarded.keys)[0] == 0
    assert run("ctl", *how, 0.6, "status")[0] == 1
    assert run("keys", "new", "../up", "--keys", guarded.keys)[0] == 2

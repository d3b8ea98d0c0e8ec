"""A hundred thousand messages, most of them hostile, at the control server; writes a record.

    python tests/service/fuzz.py [--count 100000] [--seed 1] [--record tests/records/fuzz.md]

Messages: well formed, one thing wrong, random JSON, deep, huge, binary, replayed. Every command in every state. After
each: a reply or silence; nothing changes without an `ok`; a replay gets the first reply and does nothing; `status` is
answered in between. Memory is looked at at the end.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import platform
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import zmq

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from control_rig import REGION, Served, raw_socket, request

from edge_scanner.control.messages import ACTIONS, ARGUMENTS, ERROR_CODES
from edge_scanner.devices.clock import VirtualClock
from edge_scanner.state import State

Sent = tuple[bytes, str | None]
COMMANDS = [cmd for cmd in ARGUMENTS if cmd != "shutdown"]
STATUS_EVERY = 50


class Hostile:
    """Makes messages; the same seed makes the same ones."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self._kinds: list[tuple[int, Callable[[], bytes]]] = [
            (30, self.good),
            (25, self.one_wrong),
            (15, self.any_json),
            (10, self.binary),
            (5, self.cut),
            (4, self.deep),
            (1, self.huge),
        ]

    def __call__(self) -> bytes:
        weights, makers = zip(*self._kinds, strict=True)
        return bytes(self.chance.choices(makers, weights)[0]())

    def plain(self) -> dict[str, Any]:
        cmd = self.chance.choice(COMMANDS)
        args: dict[str, Any] = {}
        if cmd == "scan":
            region = {**REGION, "x_mm": self.chance.choice([0, 0.5, 200]), "width_mm": self.chance.choice([1, 60])}
            args = self.chance.choice([region, {"resume": "scan-0"}, {"plan": {}}, region])
        elif cmd == "export":
            args = {"scan_id": self.chance.choice(["scan-0", "nothing"])}
        return request(cmd, args, client=self.chance.choice(["one", "one", "one", "two"]))

    def good(self) -> bytes:
        return json.dumps(self.plain()).encode()

    def one_wrong(self) -> bytes:
        message = self.plain()
        where = message if self.chance.random() < 0.6 else message["args"]
        key = self.chance.choice([*where, "more", "v", "id", "cmd", "x_mm"])
        if self.chance.random() < 0.2:
            where.pop(key, None)
        else:
            where[key] = self.value(2)
        return json.dumps(message).encode()

    def any_json(self) -> bytes:
        return json.dumps(self.value(4)).encode()

    def binary(self) -> bytes:
        return self.chance.randbytes(self.chance.choice([0, 1, 7, 64, 4096]))

    def cut(self) -> bytes:
        whole = self.good()
        return whole[: self.chance.randrange(len(whole))]

    def deep(self) -> bytes:
        opening = self.chance.choice([b"[", b'{"a":', b'{"v":1,"id":"d","cmd":"scan","args":{"plan":[', b'"'])
        if self.chance.random() < 0.5:
            return opening * self.chance.choice([10, 1000, 20_000])
        n = self.chance.choice([5, 31, 33, 300, *range(900, 1000, 3)])
        key, inner = self.chance.choice(["cmd", "args", "id", "more"]), "[" * n + "]" * n
        return json.dumps({**self.plain(), key: 0}).replace(f'"{key}": 0', f'"{key}": {inner}').encode()

    def huge(self) -> bytes:
        filler = "x" * self.chance.choice([10_000, 300_000])
        return json.dumps(
            {**self.plain(), self.chance.choice(["id", "cmd", "client", "args", "more"]): filler}
        ).encode()

    def value(self, depth: int) -> Any:
        chance = self.chance
        plain: list[Any] = [
            None, True, False, 0, -1, 1, 10**30, 1.5, float("nan"), float("inf"), "", "a", "\ud800", "é" * 9, "../..",
            "stop", [], {},
        ]  # fmt: skip
        if depth and chance.random() < 0.4:
            return [self.value(depth - 1) for _ in range(chance.randrange(4))]
        if depth and chance.random() < 0.6:
            return {chance.choice(["v", "id", "cmd", "args", "x", ""]): self.value(depth - 1) for _ in range(3)}
        return chance.choice(plain)


class Fuzz:
    """Sends, and checks what came of it."""

    def __init__(self, served: Served, wire: zmq.Socket[bytes], seed: int) -> None:
        self._served, self._wire, self._make = served, wire, Hostile(seed)
        self._replies: list[tuple[bytes, bytes]] = []
        self._first: dict[str, bytes] = {}
        self.codes: Counter[str] = Counter()
        self.seen: set[tuple[str, str]] = set()
        self.status_ms: list[float] = []

    def ask(self, body: bytes) -> bytes:
        self._wire.send(body)
        return self._wire.recv()  # a hang or a crash is a time-out here

    def step(self, n: int) -> None:
        scanner, chance = self._served.scanner, self._make.chance
        if chance.random() < 0.1 and scanner.state() not in (State.IDLE, State.FAULT):
            scanner.finish()
        if self._replies and chance.random() < 0.05:
            self._replay(*chance.choice(self._replies))
        else:
            self._send(self._make())
        if n % STATUS_EVERY == 0:
            began_s = time.perf_counter()
            assert json.loads(self.ask(json.dumps(request("status")).encode()))["ok"]
            self.status_ms.append((time.perf_counter() - began_s) * 1000)

    def _send(self, body: bytes) -> None:
        before, state = self._served.scanner.snapshot(), self._served.scanner.state()
        raw = self.ask(body)
        reply = json.loads(raw)
        if reply["ok"]:
            self.codes["ok"] += 1
            said = json.loads(body)
            if said["id"] in self._first and self._first[said["id"]] == raw:  # a used id: the first reply again
                assert self._served.scanner.snapshot() == before, body
                return
            if len(said["id"]) < 32:  # the other ids are never made twice
                self._first[said["id"]] = raw
            self.seen.add((state.value, said["cmd"]))
            if said["cmd"] in ACTIONS:
                self._replies = [*self._replies[-200:], (body, raw)]
            else:
                assert self._served.scanner.snapshot() == before, body
        else:
            assert self._served.scanner.snapshot() == before, (body, reply)
            assert reply["error"]["code"] in ERROR_CODES
            assert reply["error"]["code"] != "internal", (body, reply)
            self.codes[reply["error"]["code"]] += 1

    def _replay(self, body: bytes, first: bytes) -> None:
        before = self._served.scanner.snapshot()
        assert self.ask(body) == first, body
        assert self._served.scanner.snapshot() == before, body
        self.codes["replayed"] += 1


def resident_mib() -> float:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--record", type=Path)
    given = parser.parse_args()
    logging.disable()
    began_s = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="es-") as folder,
        Served(Path(folder), VirtualClock()) as served,
        raw_socket(served) as wire,
    ):
        fuzz = Fuzz(served, wire, given.seed)
        warm = given.count // 2  # by then every memory of the server is full
        for n in range(warm):
            fuzz.step(n)
        before_mib = resident_mib()
        for n in range(warm, given.count):
            fuzz.step(n)
        after_mib = resident_mib()
    fuzz.status_ms.sort()
    worst_ms = fuzz.status_ms[-1]
    legal = {(state, cmd) for state, cmd in fuzz.seen}
    lines = [
        f"{given.count} messages, seed {given.seed}, {time.monotonic() - began_s:.0f} s, {datetime.now(UTC):%Y-%m-%d}, "
        f"{platform.machine()}, {os.cpu_count()} cores (shared)",
        "replies: " + ", ".join(f"{code} {count}" for code, count in sorted(fuzz.codes.items())),
        f"{len(legal)} pairs of state and command were carried out",
        f"status in between: p50 {fuzz.status_ms[len(fuzz.status_ms) // 2]:.1f} ms, most {worst_ms:.1f} ms (bar: 100)",
        f"resident memory {before_mib:.1f} MiB half way, {after_mib:.1f} MiB at the end",
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    if given.record:
        given.record.write_text("# Fuzz of the control server\n\n" + "\n".join(f"- {line}" for line in lines) + "\n")
    return 0 if worst_ms < 100 and after_mib - before_mib < 16 else 1


if __name__ == "__main__":
    sys.exit(main())

"""The daemon's client for asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Any

import zmq.asyncio

from edge_scanner.control import connect
from edge_scanner.control.follow import (
    ENDED,
    RELEASE_S,
    TRIES,
    Event,
    NoAnswerError,
    Sequence,
    Turns,
    Verbs,
    encode_request,
    is_working,
    leased_after,
    new_name,
    result_of,
    with_outcome,
)
from edge_scanner.control.keys import Credentials
from edge_scanner.errors import ScannerError


class AsyncClient(Verbs[Awaitable[Any]]):
    """The same as `Client` for asyncio: the verbs are awaited, and several requests may be under way at once.

    Parameters
    ----------
    endpoint, events_endpoint, client, timeout_s, server_key, key
        See `Client`.
    """

    def __init__(
        self,
        endpoint: str,
        events_endpoint: str | None = None,
        client: str | None = None,
        timeout_s: float = 5.0,
        *,
        server_key: Path | str | None = None,
        key: Path | str | None = None,
    ) -> None:
        self._credentials = Credentials.load(server_key, key)
        self._endpoint = endpoint
        self._events_endpoint = events_endpoint
        self.name = client or new_name()
        self._timeout_s = timeout_s
        self._leased = self._heard = False
        self._context = zmq.asyncio.Context()
        self._socket, self._door = connect.dealer(self._context, endpoint, self._credentials)
        self._waiting: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._reader: asyncio.Task[None] | None = None

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Release the lease if it was taken, and disconnect."""
        if self._leased:
            self._timeout_s = min(self._timeout_s, RELEASE_S)
            with contextlib.suppress(ScannerError):
                await self.lease_release()
            self._leased = False
        if self._reader is not None:
            self._reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reader
            self._reader = None
        self._door.close()
        self._context.destroy(linger=0)

    async def request(self, cmd: str, /, **args: object) -> Any:
        """Send a command and return its result; see `Client.request`."""
        request_id, body = encode_request(cmd, args, self.name)
        if self._reader is None:
            self._reader = asyncio.create_task(self._read())
        answer = self._waiting[request_id] = asyncio.get_running_loop().create_future()
        try:
            for _ in range(TRIES):
                self._door.knock(self._endpoint)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._timeout_s / TRIES):
                        await self._socket.send(body)
                        result = result_of(await asyncio.shield(answer))
                        self._heard = True
                        self._leased = leased_after(cmd, self._leased)
                        return result
        finally:
            del self._waiting[request_id]
        if cmd == "shutdown" and self._heard and self._door.is_down:
            self._leased = False
            return dict(ENDED)
        raise NoAnswerError(self._endpoint, self._timeout_s, self._door.why())

    async def events(self, silence_s: float = 5.0) -> AsyncGenerator[Event, None]:
        """Yield snapshots and events; see `Client.events`."""
        socket = connect.subscriber(self._context, await self._events_at(), self._credentials)
        try:
            order = Sequence(await self._snapshot())
            yield order.last
            while True:
                if not await socket.poll(int(silence_s * 1000)):
                    yield order.advance(await self._snapshot())
                    continue
                event = Event.decode(*await socket.recv_multipart())
                if not order.is_old(event) and not order.follows(event):
                    yield order.advance(await self._snapshot())
                if not order.is_old(event):
                    yield order.advance(event)
        finally:
            socket.close(linger=0)

    async def wait_idle(
        self,
        scan_id: str | None = None,
        timeout_s: float = math.inf,
        on_event: Callable[[Event], None] | None = None,
    ) -> dict[str, Any]:
        """Wait until the daemon is not working; see `Client.wait_idle`."""
        turns = Turns(timeout_s)
        async with contextlib.aclosing(self.events(turns.silence_s)) as events:
            async for event in events:
                if on_event:
                    on_event(event)
                if turns.is_due(event) and not is_working(status := await self.status()):
                    return status if scan_id is None else with_outcome(status, await self.scans(), scan_id)
                turns.check()
        raise AssertionError("events never end")

    async def _events_at(self) -> str:
        return self._events_endpoint or connect.reachable((await self.hello())["events"], self._endpoint)

    async def _snapshot(self) -> Event:
        return Event.snapshot(await self.status())

    async def _read(self) -> None:
        while True:
            reply = json.loads(await self._socket.recv())
            answer = self._waiting.get(reply["id"])
            if answer is not None and not answer.done():
                answer.set_result(reply)

"""The Python client of the daemon, for programs and user interfaces: `Client` and `AsyncClient`.

::

    with Client("ipc:///run/edge-scanner/control.ipc") as scanner:
        scanner.home()
        scanner.wait_idle()
        scan_id = scanner.scan(x_mm=0, y_mm=0, width_mm=5, height_mm=4)["scan_id"]
        print(scanner.wait_idle(scan_id)["outcome"])
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import zmq

from edge_scanner.control import connect
from edge_scanner.control.async_client import AsyncClient
from edge_scanner.control.follow import (
    ENDED,
    RELEASE_S,
    TRIES,
    Event,
    NoAnswerError,
    RemoteError,
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

__all__ = ["AsyncClient", "Client", "Event", "NoAnswerError", "RemoteError"]


class Client(Verbs[Any]):
    """Talks to a daemon from one thread; make one for each thread.

    A request that is not answered is sent again under the same id, so it is never carried out twice. Leaving the
    context releases the lease if this client took it.

    Parameters
    ----------
    endpoint : str
        Where the daemon takes commands.
    events_endpoint : str, optional
        Where it sends events; asked of the daemon when omitted.
    client : str, optional
        Name under which the lease is held; a new unique one when omitted.
    timeout_s : float
        How long to wait for a reply, all tries together.
    server_key : Path or str, optional
        The daemon's public key, a file or its 40 characters, where the endpoint asks for keys.
    key : Path or str, optional
        This client's `.key_secret` file; its public key must be allowed at the daemon.
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
        self._context = zmq.Context()
        self._socket, self._door = connect.dealer(self._context, endpoint, self._credentials)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the lease if it was taken, and disconnect; safe to call twice."""
        if self._leased:
            self._timeout_s = min(self._timeout_s, RELEASE_S)
            with contextlib.suppress(ScannerError):
                self.lease_release()
            self._leased = False
        self._door.close()
        self._context.destroy(linger=0)

    def request(self, cmd: str, /, **args: object) -> Any:
        """Send a command and return its result.

        Raises
        ------
        RemoteError
            The daemon refused; `code` says why.
        NoAnswerError
            No reply came in time.
        """
        request_id, body = encode_request(cmd, args, self.name)
        for _ in range(TRIES):
            self._door.knock(self._endpoint)
            reply = self._try(request_id, body, self._timeout_s / TRIES)
            if reply is not None:
                result = result_of(reply)
                self._heard = True
                self._leased = leased_after(cmd, self._leased)
                return result
        if cmd == "shutdown" and self._heard and self._door.is_down:
            self._leased = False
            return dict(ENDED)
        raise NoAnswerError(self._endpoint, self._timeout_s, self._door.why())

    def events(self, silence_s: float = 5.0) -> Generator[Event, None, None]:
        """Yield a snapshot, then events as they come; where some were lost or none came, another snapshot.

        Parameters
        ----------
        silence_s : float
            After that long without an event the daemon is asked for a snapshot.

        Raises
        ------
        NoAnswerError
            The daemon is gone.
        """
        socket = connect.subscriber(self._context, self._events_at(), self._credentials)
        try:
            order = Sequence(self._snapshot())
            yield order.last
            while True:
                if not socket.poll(int(silence_s * 1000)):
                    yield order.advance(self._snapshot())
                    continue
                event = Event.decode(*socket.recv_multipart())
                if not order.is_old(event) and not order.follows(event):
                    yield order.advance(self._snapshot())
                if not order.is_old(event):
                    yield order.advance(event)
        finally:
            socket.close(linger=0)

    def wait_idle(
        self,
        scan_id: str | None = None,
        timeout_s: float = math.inf,
        on_event: Callable[[Event], None] | None = None,
    ) -> dict[str, Any]:
        """Wait until the daemon is not working; lost events do no harm.

        Parameters
        ----------
        scan_id : str, optional
            The scan whose outcome to report.
        timeout_s : float
        on_event : callable, optional
            Gets every event and snapshot meanwhile.

        Returns
        -------
        dict
            The last status; `outcome` is that of the scan, None if it is unfinished (fault, restart of the daemon).

        Raises
        ------
        NoAnswerError
            The daemon is gone.
        ScannerError
            It still works after `timeout_s`.
        """
        turns = Turns(timeout_s)
        with contextlib.closing(self.events(turns.silence_s)) as events:
            for event in events:
                if on_event:
                    on_event(event)
                if turns.is_due(event) and not is_working(status := self.status()):
                    return status if scan_id is None else with_outcome(status, self.scans(), scan_id)
                turns.check()
        raise AssertionError("events never end")

    def _events_at(self) -> str:
        return self._events_endpoint or connect.reachable(self.hello()["events"], self._endpoint)

    def _snapshot(self) -> Event:
        return Event.snapshot(self.status())

    def _try(self, request_id: str, body: bytes, timeout_s: float) -> dict[str, Any] | None:
        deadline_s = time.monotonic() + timeout_s
        if not self._socket.poll(int(timeout_s * 1000), zmq.POLLOUT):
            return None
        self._socket.send(body)
        while self._socket.poll(max(0, int((deadline_s - time.monotonic()) * 1000))):
            reply: dict[str, Any] = json.loads(self._socket.recv())
            if reply["id"] == request_id:
                return reply
        return None

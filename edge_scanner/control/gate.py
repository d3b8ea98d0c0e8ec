"""CURVE at the door: only clients whose public key is allowed get a connection. Fails closed.

libzmq lets any key in where no ZAP handler answers; `ZAP_ENFORCE_DOMAIN` turns that into a refusal. The handler has no
thread of its own: where the control thread does not serve, nobody is let in.
"""

from __future__ import annotations

import ipaddress
import logging
import time

import zmq
from zmq.utils import z85
from zmq.utils.monitor import recv_monitor_message

from edge_scanner.control.keys import Keyring
from edge_scanner.errors import ScannerError, UsageError

DOMAIN = b"edge-scanner"
ZAP = "inproc://zeromq.zap.01"
PROOF_S = 5.0

_log = logging.getLogger(__name__)


class Gate:
    """The ZAP handler of one context, served by the thread that owns the sockets.

    Parameters
    ----------
    keyring : Keyring
        Asked at every handshake, so that allowing and revoking need no restart.
    """

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring
        self._pair = keyring.server()
        keyring.allowed()
        self._admitted: set[bytes] = set()

    def open(self, context: zmq.Context[zmq.Socket[bytes]]) -> zmq.Socket[bytes]:
        """Start to answer for a context; poll the socket that is returned, and call `answer`."""
        self._socket = context.socket(zmq.REP)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(ZAP)
        return self._socket

    def guard(self, socket: zmq.Socket[bytes]) -> None:
        """Make a socket that is not bound yet ask for keys."""
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_SECRETKEY, self._pair.secret)
        socket.setsockopt(zmq.CURVE_PUBLICKEY, self._pair.public)
        socket.setsockopt(zmq.ZAP_DOMAIN, DOMAIN)
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)

    def answer(self) -> None:
        """Answer the handshakes that wait."""
        while self._socket.poll(0):
            version, number, domain, address, _identity, mechanism, *credentials = self._socket.recv_multipart()
            name = self._name(domain, mechanism, credentials)
            if name is None:
                _log.warning("A client at %s was refused: its key is not allowed.", address.decode(errors="replace"))
            verdict = [b"400", b"not allowed", b""] if name is None else [b"200", b"OK", name.encode()]
            self._socket.send_multipart([version, number, *verdict, b""])

    def has_revoked(self) -> bool:
        """Tell whether somebody was let in whose key is no longer allowed; once for each."""
        try:
            gone = self._admitted - set(self._keyring.allowed())
        except ScannerError as error:
            _log.error("%s", error)
            gone = set(self._admitted)
        self._admitted -= gone
        return bool(gone)

    def prove(self, endpoint: str, kind: int) -> None:
        """Knock at a bound endpoint with a key that nobody allowed; `kind` is a socket type that fits there.

        Raises
        ------
        ScannerError
            It was not refused.
        """
        with zmq.Context() as context, context.socket(kind) as stranger:
            stranger.setsockopt(zmq.LINGER, 0)
            stranger.curve_publickey, stranger.curve_secretkey = zmq.curve_keypair()
            stranger.curve_serverkey = self._pair.public
            with stranger.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_HANDSHAKE_FAILED_AUTH) as told:
                stranger.connect(near(endpoint))
                deadline_s = time.monotonic() + PROOF_S
                while not told.poll(10):
                    self.answer()
                    if time.monotonic() > deadline_s:
                        raise ScannerError(f"It cannot be proved that {endpoint} refuses unknown keys.")
                if recv_monitor_message(told)["event"] != zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                    raise ScannerError(f"{endpoint} lets unknown keys in.", "Do not use TCP with this libzmq.")
                stranger.disable_monitor()

    def _name(self, domain: bytes, mechanism: bytes, credentials: list[bytes]) -> str | None:
        if domain != DOMAIN or mechanism != b"CURVE" or len(credentials) != 1:
            return None
        key = z85.encode(credentials[0])
        try:
            name = self._keyring.allowed().get(key)
        except ScannerError as error:
            _log.error("%s", error)
            return None
        if name is not None:
            self._admitted.add(key)
        return name


def near(endpoint: str) -> str:
    """Return where this machine itself reaches a bound TCP endpoint."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError as error:
        raise UsageError(f"The endpoint {endpoint} has no address that can be tried.") from error
    if not address.is_unspecified:
        return endpoint
    return f"tcp://127.0.0.1:{port}" if address.version == 4 else f"tcp://[::1]:{port}"

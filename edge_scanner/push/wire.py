"""What goes over the socket between a feed and the collector: JSON messages with their length in front, then pixels.

    feed: offer (a tile without its pixels) -> collector: granted, or why not
    feed: the pixels as they lie in memory  -> collector: taken

No message is ever unpickled.
"""

from __future__ import annotations

import json
import socket
import struct
from typing import Any

from edge_scanner.errors import ScannerError, UsageError

LENGTH = struct.Struct(">I")
MAX_MESSAGE_BYTES = 4096


def send(connection: socket.socket, message: dict[str, Any]) -> None:
    """Send one message."""
    data = json.dumps(message).encode()
    connection.sendall(LENGTH.pack(len(data)) + data)


def parse(data: bytes) -> dict[str, Any]:
    """Return a message; ValueError when it is none."""
    message = json.loads(data)
    if not isinstance(message, dict):
        raise ValueError("not a message")
    return message


def refusal(error: ScannerError) -> dict[str, Any]:
    """Return the message that tells a feed that its offer is at fault."""
    return {"message": error.message, "advice": error.advice, "code": error.code}


def failure(error: BaseException) -> dict[str, Any]:
    """Return the message that tells a feed that the collector has failed."""
    code = error.code if isinstance(error, ScannerError) else ScannerError.code
    told = str(error) if isinstance(error, ScannerError) else repr(error)
    return {"message": f"The collector has failed: {told}", "advice": "", "code": code, "failed": True}


def check(answer: dict[str, Any]) -> None:
    """Raise the error that an answer tells of: UsageError where the offer is at fault, else ScannerError."""
    if "message" in answer:
        kind = ScannerError if "failed" in answer else UsageError
        raise kind(answer["message"], answer["advice"], code=answer["code"])

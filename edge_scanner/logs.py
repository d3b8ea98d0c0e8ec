"""Logs: a line for a person on a terminal, JSON for the journal; what repeats is told seldom."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TextIO

_PRIORITY = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
_KINDS = 256


class JsonFormatter(logging.Formatter):
    """One JSON object a line, after the priority that the journal reads (`sd-daemon(3)`)."""

    def format(self, record: logging.LogRecord) -> str:
        """Return `<priority>{...}`."""
        told = {
            "t": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "thread": record.threadName,
            "message": record.getMessage(),
        }
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        return f"<{_PRIORITY.get(record.levelno, 5)}>{json.dumps(told)}"


class Seldom(logging.Filter):
    """Lets a message that repeats pass a few times in a while, then says how many were held back.

    Messages are told apart by their template, so a flood with changing details is one. Errors always pass.
    Memory bound: 256 templates.

    Parameters
    ----------
    burst : int
        How many pass in one window.
    window_s : float
    now_s : callable
        Monotonic seconds.
    """

    def __init__(self, burst: int = 5, window_s: float = 10.0, now_s: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._burst, self._window_s, self._now_s = burst, window_s, now_s
        self._seen: dict[tuple[str, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether the record passes; called by logging."""
        if record.levelno >= logging.ERROR:
            return True
        kind, now_s = (record.name, str(record.msg)), self._now_s()
        began_s, count = self._seen.get(kind, (now_s, 0))
        held = max(0, count - self._burst)
        if now_s - began_s >= self._window_s:
            began_s, count = now_s, 0
            if held:
                record.msg, record.args = f"{record.getMessage()} (and {held} like it before)", ()
        if len(self._seen) >= _KINDS and kind not in self._seen:
            self._seen.clear()
        self._seen[kind] = (began_s, count + 1)
        return count < self._burst


class EventHandler(logging.Handler):
    """Publishes warnings and errors as events of the topic `log`.

    Parameters
    ----------
    publish : callable
        `publish(topic, fields)`; thread-safe, never blocks.
    """

    def __init__(self, publish: Callable[[str, Mapping[str, object]], object]) -> None:
        super().__init__(logging.WARNING)
        self._publish = publish
        self.addFilter(Seldom())

    def emit(self, record: logging.LogRecord) -> None:
        """Publish a record; called by logging."""
        told = {"level": record.levelname.lower(), "logger": record.name, "message": record.getMessage()}
        self._publish("log", told)


def configure(level: str, stream: TextIO = sys.stderr, environment: Mapping[str, str] = os.environ) -> None:
    """Send everything of at least that level to a stream, in the form that suits who reads it.

    Parameters
    ----------
    level : str
        `debug`, `info`, `warning` or `error`.
    stream : file
        JSON lines where it is the journal's (`JOURNAL_STREAM` of systemd), else plain ones.
    environment : mapping
    """
    handler = logging.StreamHandler(stream)
    if _is_journal(stream, environment.get("JOURNAL_STREAM", "")):
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    handler.addFilter(Seldom())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())


def _is_journal(stream: TextIO, named: str) -> bool:
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return named == f"{status.st_dev}:{status.st_ino}"

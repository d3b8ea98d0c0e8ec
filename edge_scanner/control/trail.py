"""The last requests, for whoever has to understand a fault; and how many of each kind there were."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

REMEMBERED = 50
RUBBISH = frozenset({"bad_request", "version", "unknown_command", "unknown_field", "bad_argument"})
"""Codes of requests that were not well formed."""
_READS = frozenset({"hello", "status", "scans", "preview"})
_SHOWN = 200

_log = logging.getLogger(__name__)


class Trail:
    """Remembers the last 50 requests; reads that were answered are only counted, or polling would push all else out.

    Attributes
    ----------
    counts : Counter
        Requests by code of the reply, `ok` for the good ones.
    """

    def __init__(self, wall_s: Callable[[], float] = time.time) -> None:
        self._wall_s = wall_s
        self._last: deque[dict[str, Any]] = deque(maxlen=REMEMBERED)
        self.counts: Counter[str] = Counter()

    def note(self, client: str, raw: dict[str, Any], code: str, message: str = "") -> None:
        """Remember how a request was answered; rubbish is logged too."""
        self.counts[code] += 1
        cmd = str(raw.get("cmd"))[:_SHOWN]
        if code in RUBBISH:
            _log.warning("A request of %s was refused: %s", client, message)
        if code != "ok" or cmd not in _READS:
            args = json.dumps(raw.get("args"))[:_SHOWN]
            told = {"t": round(self._wall_s(), 3), "client": client[:_SHOWN], "id": str(raw.get("id"))[:_SHOWN]}
            self._last.append({**told, "cmd": cmd, "args": args, "reply": code})

    def dump(self) -> list[dict[str, Any]]:
        """Return what is remembered, oldest first."""
        return list(self._last)

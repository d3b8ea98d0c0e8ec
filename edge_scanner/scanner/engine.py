"""The focus network made ready in the background: a first start with TensorRT compiles it, which takes minutes."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from edge_scanner.config import Config
from edge_scanner.focus import check_focus
from edge_scanner.focus.model import OnnxFocusModel

LONGEST_S = 900.0
"""A build that takes longer counts as hung."""
LOOK_S = 0.2

_log = logging.getLogger(__name__)


class FocusEngine:
    """Loads the network once, in a thread of its own, so that its compiled form is in the cache before the first scan.

    Parameters
    ----------
    config : Config
        Nothing is loaded unless `focus.mode` is `model`.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._wanted = config.focus.mode == "model"
        self._done = threading.Event()
        self._began_s = time.monotonic()
        self._took_s: float | None = None
        self._actual: tuple[str, ...] = ()
        self._error = ""

    def start(self) -> None:
        """Begin; returns at once."""
        self._began_s = time.monotonic()
        if self._wanted:
            # a daemon thread: a compiler cannot be interrupted, and must not keep the process from ending
            threading.Thread(target=self._load, name="engine", daemon=True).start()
        else:
            self._done.set()

    def wait(self, aborted: Callable[[], bool]) -> None:
        """Block until the network is ready or has failed to be, or `aborted` says so; asked five times a second."""
        while not self._done.wait(LOOK_S) and not aborted():
            pass

    def as_json(self) -> dict[str, Any]:
        """Return `requested` and `actual` providers, `state` (off, building, ready, failed), `seconds` and `error`."""
        state = "failed" if self._error else "ready" if self._done.is_set() else "building"
        seconds = time.monotonic() - self._began_s if self._took_s is None else self._took_s
        return {
            "requested": list(self._config.focus.providers) if self._wanted else [],
            "actual": list(self._actual),
            "state": state if self._wanted else "off",
            "seconds": round(seconds, 1) if self._wanted else None,
            "error": self._error or None,
        }

    def _load(self) -> None:
        try:
            check_focus(self._config)
            providers = OnnxFocusModel(self._config).providers
            self._actual = providers.actual
            if providers.degraded:
                _log.warning(
                    "The focus model runs on %s, though %s was asked for first.",
                    ", ".join(providers.actual), providers.requested[0],
                )  # fmt: skip
        except Exception as error:  # noqa: BLE001  whatever a provider throws is told, and a scan will meet it again
            self._error = str(error) or type(error).__name__
            _log.error("The focus model is not ready: %s", self._error)
        finally:
            self._took_s = time.monotonic() - self._began_s
            self._done.set()

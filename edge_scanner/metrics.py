"""`GET /metrics`: the daemon's figures as Prometheus text, on loopback only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from edge_scanner import __version__
from edge_scanner.control.endpoint import is_loopback
from edge_scanner.errors import UsageError
from edge_scanner.state import State


class StatusCollector(Collector):
    """Turns the daemon's status into metrics, whenever they are asked for.

    Parameters
    ----------
    status : callable
        Returns what `status` answers with; called in the metrics' own thread.
    counts : mapping
        Requests so far by code of the reply.
    """

    def __init__(self, status: Callable[[], Mapping[str, Any]], counts: Mapping[str, int]) -> None:
        self._status, self._counts = status, counts

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of this moment."""
        status = self._status()
        yield _labelled("info", "Version of the daemon.", "version", {__version__: 1})
        yield _labelled("state", "1 for the present state.", "state", {s: s == status["state"] for s in State})
        for name, text, value in (
            ("fault", "1 while a fault is latched.", status["fault"] is not None),
            ("homed", "1 while the position is known.", status["homed"]),
            ("scan_progress_ratio", "Share of the scan's targets that are done.", status["progress"]),
            ("scan_targets", "Targets of the scan.", status["tiles"]),
            ("scan_targets_done", "Targets that are done.", status["done"]),
            ("buffer_bytes", "Bytes between acquisition and mosaic.", status["buffer"]["bytes"]),
            ("buffer_high_bytes", "Most bytes ever there in this scan.", status["buffer"]["high_bytes"]),
            ("buffer_stall_seconds", "How long acquisition has waited for room.", status["buffer"]["stall_s"]),
            ("disk_free_bytes", "Free bytes where scans go.", status["disk"]["free_bytes"]),
            ("disk_reserve_bytes", "Bytes that are never used.", status["disk"]["reserve_bytes"]),
            ("temperature_celsius", "The hottest thermal zone.", status["thermal"]["max_c"]),
        ):
            if value is not None:
                yield GaugeMetricFamily(f"edge_scanner_{name}", text, value=float(value))
        for quantile in ("p50_ms", "p95_ms"):
            values = {stage: timing[quantile] / 1000 for stage, timing in status["stages"].items()}
            yield _labelled(f"stage_{quantile[:3]}_seconds", "Of a stage of a tile's life.", "stage", values)
        requests = CounterMetricFamily("edge_scanner_requests", "Requests by code of the reply.", labels=["code"])
        for code, count in dict(self._counts).items():
            requests.add_metric([code], count)
        yield requests


@contextmanager
def serving(address: str, status: Callable[[], Mapping[str, Any]], counts: Mapping[str, int]) -> Iterator[str | None]:
    """Serve metrics at `HOST:PORT` meanwhile, in a thread of its own; at nothing where the address is empty.

    Yields
    ------
    str or None
        The URL.

    Raises
    ------
    UsageError
        Not an address of loopback, or it is taken.
    """
    if not address:
        yield None
        return
    host, _, port = address.rpartition(":")
    if not is_loopback(address) or not port.isdigit():
        raise UsageError(f"control.metrics is {address!r}.", "Metrics are for loopback: 127.0.0.1:PORT.")
    registry = CollectorRegistry()
    registry.register(StatusCollector(status, counts))
    ProcessCollector(registry=registry)
    GCCollector(registry=registry)
    try:
        server, thread = start_http_server(int(port), host.strip("[]"), registry)
    except (OSError, OverflowError) as error:
        raise UsageError(f"control.metrics: {address} cannot be used ({error}).", "Choose another port.") from error
    try:
        yield f"http://{host}:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _labelled(name: str, text: str, label: str, values: Mapping[Any, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"edge_scanner_{name}", text, labels=[label])
    for key, value in values.items():
        family.add_metric([str(key)], float(value))
    return family

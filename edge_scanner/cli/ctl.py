"""`ctl`: one control command to a running daemon."""

from __future__ import annotations

import base64
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from edge_scanner.cli.output import EXIT_CANCELLED, EXIT_FAILED, print_json, print_rows, progress
from edge_scanner.config import ControlConfig
from edge_scanner.control.client import Client, Event
from edge_scanner.errors import ScannerError, UsageError
from edge_scanner.plan import ScanPlan, ScanRegion

app = typer.Typer(help="Send one command to a running daemon.", no_args_is_help=True)

JSON = typer.Option(False, "--json", help="Print JSON.")
TRUTH = (("against truth", "truth_px_p95", " px, p95"), ("PSNR", "psnr_db", " dB against the sharp specimen"))
"""Name, key and unit of what only the simulator knows."""

WAIT = typer.Option(False, "--wait", help="Block until the outcome; exit non-zero unless completed.")


@app.callback()
def _connect(
    context: typer.Context,
    endpoint: str = typer.Option(ControlConfig().endpoint, "--endpoint", "-e", help="The daemon's command socket."),
    events: str = typer.Option("", "--events", help="The daemon's event socket; asked of the daemon when omitted."),
    timeout_s: float = typer.Option(5.0, "--timeout-s", min=0.1, help="How long to wait for a reply."),
    server_key: str = typer.Option(
        "", "--server-key", envvar="EDGE_SCANNER_SERVER_KEY", help="The daemon's server.key, where TCP asks for keys."
    ),
    key: str = typer.Option("", "--key", envvar="EDGE_SCANNER_KEY", help="Your own .key_secret file."),
) -> None:
    """Send one command to a running daemon."""
    context.obj = lambda: Client(endpoint, events or None, timeout_s=timeout_s, server_key=server_key, key=key)


def _request(context: typer.Context, verb: str, as_json: bool, **args: object) -> Any:
    with context.obj() as client:
        result = client.request(verb, **args)
    _show(verb, result, as_json)
    return result


def _show(title: str, result: Any, as_json: bool) -> None:
    if as_json:
        print_json(result)
    elif isinstance(result, dict) and "accepted" in result:
        print_report(result)
    elif isinstance(result, dict) and result:
        print_rows("", [row for key, value in result.items() for row in _rows(key, value)])
    else:
        print_rows("", [(title, "accepted")])


def _rows(name: str, value: Any) -> list[tuple[str, str]]:
    """Return a row for each value; a group's have its name before their own: `disk.free_bytes`."""
    group = {f"{name}.{key}": inner for key, inner in value.items()} if isinstance(value, dict) else {}
    return [(key, _text(inner)) for key, inner in (group or {name: value}).items()]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


@app.command()
def hello(context: typer.Context, as_json: bool = JSON) -> None:
    """Versions, capabilities, execution providers."""
    _request(context, "hello", as_json)


@app.command()
def status(context: typer.Context, as_json: bool = JSON) -> None:
    """State, progress, buffers, disk, fault; `--json` has the last scan's report too."""
    with context.obj() as client:
        result = client.status()
    _show("status", result if as_json else {key: value for key, value in result.items() if key != "report"}, as_json)


@app.command()
def scans(context: typer.Context, as_json: bool = JSON) -> None:
    """List every scan on the daemon's disk."""
    with context.obj() as client:
        found = client.scans()
    entries = found["scans"] if isinstance(found, dict) else found
    if as_json:
        print_json(entries)
    else:
        rows = [(e["scan_id"], f"{e['outcome'] or e['state']}  {e['done']}/{e['tiles']} tiles") for e in entries]
        print_rows("", rows or [("", "no scans yet")])


@app.command()
def home(context: typer.Context, wait: bool = WAIT, as_json: bool = JSON) -> None:
    """Find the reference of every axis."""
    with context.obj() as client:
        result = client.home()
        if wait:
            result = _idle(client.wait_idle())
            if not result.get("homed"):
                raise ScannerError("Homing was cancelled; the position is unknown.")
    _show("home", {"homed": result["homed"]} if wait else result, as_json)


@app.command()
def scan(
    context: typer.Context,
    plan: Path | None = typer.Option(None, "--plan", help="A plan file."),
    x_mm: float | None = typer.Option(None, "--x-mm", help="Left edge of the region."),
    y_mm: float | None = typer.Option(None, "--y-mm", help="Top edge."),
    width_mm: float | None = typer.Option(None, "--width-mm"),
    height_mm: float | None = typer.Option(None, "--height-mm"),
    resume: str | None = typer.Option(None, "--resume", metavar="ID", help="Go on with an unfinished scan."),
    wait: bool = WAIT,
    as_json: bool = JSON,
) -> None:
    """Scan a region, a plan file, or what is left of an unfinished scan."""
    region = {"x_mm": x_mm, "y_mm": y_mm, "width_mm": width_mm, "height_mm": height_mm}
    given = [value is not None for value in region.values()]
    if sum([plan is not None, any(given), resume is not None]) != 1 or (any(given) and not all(given)):
        raise UsageError("Give --plan, or all of --x-mm --y-mm --width-mm --height-mm, or --resume.")
    args: dict[str, object] = {"resume": resume}
    if x_mm is not None and y_mm is not None and width_mm is not None and height_mm is not None:
        args = asdict(ScanRegion(x_mm, y_mm, width_mm, height_mm))
    if plan is not None:
        args = {"plan": json.loads(ScanPlan.load(plan).to_json())}
    with context.obj() as client:
        scan_id = client.scan(**args)["scan_id"]
        if not wait:
            _show("scan", {"scan_id": scan_id}, as_json)
            return
        report = wait_for_scan(client, scan_id)
    _show("scan", report, as_json)
    leave(report["outcome"])


@app.command()
def pause(context: typer.Context, as_json: bool = JSON) -> None:
    """Pause after the tile in hand."""
    _request(context, "pause", as_json)


@app.command()
def resume(context: typer.Context, wait: bool = WAIT, as_json: bool = JSON) -> None:
    """Go on with a paused scan."""
    with context.obj() as client:
        scan_id = client.status()["scan_id"]
        result = client.resume()
        if wait:
            result = wait_for_scan(client, scan_id)
    _show("resume", result, as_json)
    if wait:
        leave(result["outcome"])


@app.command()
def cancel(context: typer.Context, as_json: bool = JSON) -> None:
    """End the work under way; what was scanned is kept."""
    _request(context, "cancel", as_json)


@app.command()
def stop(context: typer.Context, as_json: bool = JSON) -> None:
    """Stop the stage at once: the emergency stop, latched until reset and home."""
    _request(context, "stop", as_json)


@app.command()
def reset(context: typer.Context, as_json: bool = JSON) -> None:
    """Leave FAULT; home again afterwards."""
    _request(context, "reset", as_json)


@app.command()
def export(context: typer.Context, scan_id: str, wait: bool = WAIT, as_json: bool = JSON) -> None:
    """Export the OME-TIFF of an ended scan."""
    with context.obj() as client:
        result = client.export(scan_id)
        if wait:
            _idle(client.wait_idle())
            result = {"scan_id": scan_id, "exported": True}
    _show("export", result, as_json)


@app.command()
def watch(context: typer.Context, as_json: bool = JSON) -> None:
    """Print events as they come, until interrupted."""
    with context.obj() as client:
        for event in client.events():
            typer.echo(json.dumps({"topic": event.topic, **event.fields}) if as_json else _line(event))


@app.command()
def preview(context: typer.Context, out: Path = typer.Argument(Path("preview.jpg"))) -> None:
    """Write the latest frame as JPEG."""
    with context.obj() as client:
        result = client.preview()
    if not result.get("jpeg"):
        raise ScannerError("There is no frame yet.", "Start a scan first.")
    out.write_bytes(base64.b64decode(result["jpeg"]))
    print_rows("", [("preview", str(out))])


@app.command("lease-release")
def lease_release(context: typer.Context, as_json: bool = JSON) -> None:
    """Let other clients take control."""
    _request(context, "lease.release", as_json)


@app.command()
def shutdown(context: typer.Context, as_json: bool = JSON) -> None:
    """End the daemon."""
    _request(context, "shutdown", as_json)


def wait_for_scan(client: Client, scan_id: str, *, bar: bool = True) -> dict[str, Any]:
    """Wait for a scan, with a progress bar on a terminal, and return its report.

    Raises
    ------
    ScannerError
        When the scan ended in a fault, or the daemon restarted meanwhile.
    """
    with progress("scanning", wanted=bar) as show:

        def on_event(event: Event) -> None:
            if event.topic == "progress" and event.fields.get("scan_id") == scan_id:
                show(event.fields["share"], f"tile {event.fields['done']} of {event.fields['tiles']}")
            elif event.topic == "state":
                show(1.0 if event.fields["state"] in ("FINISHING", "EXPORTING") else 0.0, event.fields["state"].lower())

        status = client.wait_idle(scan_id, on_event=on_event)
    _idle(status)
    report = status.get("report")
    if report and report["scan_id"] == scan_id:
        return dict(report)
    if status["outcome"] is None:
        raise ScannerError(f"The scan {scan_id} is unfinished; the daemon ended meanwhile.", "Start it again.")
    return {"scan_id": scan_id, "outcome": status["outcome"]}


def print_report(report: dict[str, Any]) -> None:
    """Print what a person asks first of a scan's report; `report.json` has all of it."""

    def value(key: str, unit: str = "", scale: float = 1.0) -> str:
        v = report[key]
        if v is None:
            return "not known"
        return f"{v * scale:g}{unit}" if isinstance(v, int | float) else f"{v}{unit}"

    rows = [
        ("outcome", value("outcome")),
        ("tiles", f"{report['tiles']}: {report['accepted']} accepted, {report['blank']} blank, "
                  f"{report['rejected']} rejected"),
        ("in focus", f"{value('in_focus_share', ' %', 100)}, {value('frames_per_tile')} frames a tile"),
        ("coverage", value("coverage", " %", 100)),
        ("seam step", value("seam_step", " grey levels")),
        ("registration", f"residual p95 {value('registration_px_p95', ' px')}"),
        *((name, value(key, unit)) for name, key, unit in TRUTH if report[key] is not None),
        ("time", f"{value('wall_s', ' s')}; {value('scan_s', ' s')} on the scan's clock"),
        ("peak memory", value("peak_rss_mib", " MiB in the daemon")),
        *((name, str(path)) for name, path in report["paths"].items()),
    ]  # fmt: skip
    print_rows("", rows)


def _idle(status: dict[str, Any]) -> dict[str, Any]:
    if fault := status.get("fault"):
        raise ScannerError(fault["message"], fault["advice"], code=fault["code"])
    return status


def leave(outcome: str) -> None:
    """Exit as the outcome asks: 0 completed, 3 cancelled, else 1."""
    if outcome != "completed":
        raise typer.Exit(EXIT_CANCELLED if outcome == "cancelled" else EXIT_FAILED)


def _line(event: Event) -> str:
    text = " ".join(f"{k}={_text(v)}" for k, v in event.fields.items() if k not in ("v", "t", "session"))
    return f"{event.topic:9s} {text}"

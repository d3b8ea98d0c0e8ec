"""`demo`: the main job on the simulator, driven over ZeroMQ as a user interface would."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import typer

from edge_scanner import config as configs
from edge_scanner.cli.ctl import leave, print_report, wait_for_scan
from edge_scanner.cli.output import print_json
from edge_scanner.config import Config
from edge_scanner.control.client import Client, NoAnswerError
from edge_scanner.errors import ScannerError, UsageError
from edge_scanner.plan import ScanRegion
from edge_scanner.sim.specimen import open_specimen

START_S = 30.0


def demo(
    out: Path = typer.Option(Path("out"), "--out", help="Folder for the scan."),
    slide: Path | None = typer.Option(None, "--slide", help="An image or slide as the specimen; scanned whole."),
    width_mm: float | None = typer.Option(None, "--width-mm", help="Region of the synthetic specimen."),
    height_mm: float | None = typer.Option(None, "--height-mm"),
    seed: int = typer.Option(1, "--seed", min=0, help="Of the synthetic tissue and of all noise."),
    overrides: list[str] = typer.Option([], "--set", metavar="SECTION.KEY=VALUE", help="Override a key."),
    as_json: bool = typer.Option(False, "--json", help="Print the report as JSON."),
) -> None:
    """Scan a simulated slide: start the daemon, drive it over ZeroMQ, export, and say where everything lies."""
    if slide is not None and (width_mm is not None or height_mm is not None):
        raise UsageError("--slide scans the whole specimen.", "Leave --width-mm and --height-mm out.")
    _make(out)
    given = [f"sim.seed={seed}", f"storage.root={json.dumps(str(out.resolve()))}"]
    if slide is not None:
        given.append(f"sim.slide={json.dumps(str(slide.resolve()))}")
    with tempfile.TemporaryDirectory(prefix="edge-scanner-") as sockets:
        given += [f'control.endpoint="ipc://{sockets}/control.ipc"', f'control.events="ipc://{sockets}/events.ipc"']
        given += overrides
        config = configs.load(None, given)
        region = _region(config, whole=slide is not None, width_mm=width_mm, height_mm=height_mm)
        with _daemon(given, Path(sockets)) as daemon, Client(config.control.endpoint) as client:
            _await_start(client, daemon, Path(sockets))
            client.home()
            client.wait_idle()
            scan_id = client.scan(**region)["scan_id"]
            report = wait_for_scan(client, scan_id, bar=not as_json)
            client.shutdown()
    if as_json:
        print_json(report)
    else:
        print_report(report)
    leave(report["outcome"])


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ScannerError(f"The folder {out} cannot be made ({error.strerror}).", "Choose another --out.") from error


def _region(config: Config, *, whole: bool, width_mm: float | None, height_mm: float | None) -> dict[str, object]:
    """Return the region: the whole specimen, or what was asked of it."""
    pixel_mm = config.optics.pixel_size_um / 1000
    specimen = open_specimen(config.sim, config.optics.pixel_size_um)
    width, height = specimen.width_px * pixel_mm, specimen.height_px * pixel_mm
    if not whole:
        width = min(width, 3.0) if width_mm is None else width_mm
        height = min(height, 2.0) if height_mm is None else height_mm
    return asdict(ScanRegion(0.0, 0.0, width, height))


@contextlib.contextmanager
def _daemon(given: list[str], sockets: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run the daemon as a process of its own; it is ended, by force if it must be, on the way out."""
    command = [sys.executable, "-m", "edge_scanner", "run"]
    for text in given:
        command += ["--set", text]
    with (sockets / "daemon.log").open("wb") as log:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        yield child
        child.wait(timeout=START_S)
    finally:
        if child.poll() is None:
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(timeout=START_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def _await_start(client: Client, daemon: subprocess.Popen[bytes], sockets: Path) -> None:
    deadline_s = time.monotonic() + START_S
    while True:
        if daemon.poll() is not None:
            log = (sockets / "daemon.log").read_text(encoding="utf-8", errors="replace").strip()
            raise ScannerError(log.splitlines()[-1].removeprefix("edge-scanner: ") if log else "The daemon died.")
        try:
            client.hello()
            return
        except NoAnswerError:
            if time.monotonic() > deadline_s:
                raise

"""`check`: the doctor."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import typer
from rich.console import Console
from rich.table import Table

from edge_scanner import config as configs
from edge_scanner.calibrate import named_flat_field, named_stage_calibration
from edge_scanner.calibrate.stage_file import StageCalibration
from edge_scanner.cli.output import EXIT_FAILED, print_json
from edge_scanner.cli.wheels import Runtime, check_video
from edge_scanner.config import Config
from edge_scanner.devices.contract import check_camera, check_illumination, check_stage
from edge_scanner.devices.rig import build_rig
from edge_scanner.errors import ScannerError
from edge_scanner.focus import check_focus
from edge_scanner.focus.model import OnnxFocusModel
from edge_scanner.memory import SERVICE
from edge_scanner.scanner.budget import Budget
from edge_scanner.shading import FlatField

PROBE_BYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the table."""

    what: str
    ok: bool
    detail: str


def check(
    config: Path | None = typer.Option(None, "--config", "-c", help="TOML file."),
    overrides: list[str] = typer.Option([], "--set", metavar="SECTION.KEY=VALUE", help="Override a key."),
    devices: bool = typer.Option(False, "--devices", help="Also prove the device contracts; the stage MOVES."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Check configuration, devices, execution providers, disk, memory; exit 1 on any failure."""
    settings = configs.load(config, overrides)
    findings = [Finding("configuration", True, str(config or "all defaults"))]
    for examine in (_storage, _memory, _calibration, _providers, _open_devices):
        findings += examine(settings)
    if devices and all(f.ok for f in findings):
        findings += _contracts(settings)
    if as_json:
        print_json({"findings": [asdict(f) for f in findings]})
    else:
        _print(findings)
    if not all(f.ok for f in findings):
        raise typer.Exit(EXIT_FAILED)


def _guarded(what: str, examine: Callable[[], str]) -> Finding:
    try:
        return Finding(what, True, examine())
    except ScannerError as error:
        return Finding(what, False, str(error))
    except OSError as error:
        return Finding(what, False, f"{error.strerror}: {error.filename}.")


def _storage(config: Config) -> Iterator[Finding]:
    root = Path(config.storage.root)

    def space() -> str:
        root.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(root).free
        if free < config.storage.reserve_mb * 1e6:
            raise ScannerError(f"{free / 1e9:.1f} GB are free, less than storage.reserve_mb.", "Free some space.")
        return f"{free / 1e9:.1f} GB free at {root}"

    def speed() -> str:
        block = os.urandom(1 << 20)
        with tempfile.NamedTemporaryFile(dir=root) as file:
            began_s = time.perf_counter()
            for _ in range(PROBE_BYTES >> 20):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            rate = PROBE_BYTES / (time.perf_counter() - began_s)
        return f"{rate / 1e6:.0f} MB/s written and synced"

    yield _guarded("disk space", space)
    yield _guarded("disk speed", speed)


def _memory(config: Config) -> Iterator[Finding]:
    def memory() -> str:
        budget = Budget.of(config, service=SERVICE)
        told = budget.check()
        if (doubt := budget.doubt()) is not None:
            raise doubt
        return told

    yield _guarded("memory", memory)


def _calibration(config: Config) -> Iterator[Finding]:
    def told(found: FlatField | StageCalibration | None) -> str:
        return "none named; measured before each scan" if found is None else f"measured {found.measured}"

    yield _guarded("flat field", lambda: told(named_flat_field(config)))
    yield _guarded("stage calibration", lambda: told(named_stage_calibration(config)))
    yield _guarded("focus calibration", lambda: check_focus(config))


def _providers(config: Config) -> Iterator[Finding]:
    runtime = Runtime.here()

    def model() -> str:
        if not runtime.offered:
            raise ScannerError("focus.mode is model, but onnxruntime is not installed.", "Install the extra [cpu].")
        providers = OnnxFocusModel(config).providers
        asked, actual = ", ".join(providers.requested), ", ".join(providers.actual)
        return f"runs on {actual}" + (f"; asked for {asked}: degraded" if providers.degraded else "")

    yield _guarded("execution providers", runtime.check)
    camera, build = config.camera, cv2.getBuildInformation()
    yield _guarded("video", lambda: check_video(build, camera.driver, camera.device))
    if config.focus.mode == "model":
        yield _guarded("focus model", model)


def _open_devices(config: Config) -> Iterator[Finding]:
    rig = None

    def drivers() -> str:
        nonlocal rig
        rig = build_rig(config)
        return f"stage {config.stage.driver}, camera {config.camera.driver}, light {config.illumination.driver}"

    yield _guarded("drivers", drivers)
    if rig is not None:
        with ExitStack() as stack:
            stack.callback(rig.camera.close)
            stack.callback(rig.stage.close)
            yield _guarded("stage", rig.stage.open)
            yield _guarded("camera", rig.camera.open)


def _contracts(config: Config) -> Iterator[Finding]:
    rig = build_rig(config)
    with ExitStack() as stack:
        stack.callback(rig.stage.close)
        stack.callback(rig.camera.close)
        stack.callback(rig.illumination.off)
        for result in (
            *check_stage(rig.stage, rig.clock),
            *check_camera(rig.camera, rig.clock),
            *check_illumination(rig.illumination, rig.stage),
        ):
            yield Finding(result.name, result.ok, result.detail)


def _print(findings: list[Finding]) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("check", "", "detail"):
        table.add_column(column, overflow="fold")
    for f in findings:
        table.add_row(f.what, "[green]ok[/]" if f.ok else "[red]FAILED[/]", f.detail)
    Console(highlight=False).print(table)

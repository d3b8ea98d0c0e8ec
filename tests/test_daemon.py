"""The daemon as its own process, driven over ZeroMQ and by `ctl`."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from scan_rig import EXACT, SMALL, calibrated_scan, levels_of, small_config

from edge_scanner.control.client import Client, RemoteError
from edge_scanner.scanner.scan import run_nested

REGION = {"x_mm": 0.0, "y_mm": 0.0, "width_mm": 0.8, "height_mm": 0.6}
LONG = {"x_mm": 0.0, "y_mm": 0.0, "width_mm": 8.0, "height_mm": 4.0}
AREA = [word for key, value in REGION.items() for word in (f"--{key.replace('_', '-')}", str(value))]


HELD = Path(__file__).with_name("held_daemon.py")


@contextlib.contextmanager
def daemon(root: Path, *more: str, dies: bool = False, hold: Path | None = None):
    """Run a daemon; while the file `hold` is there, its scans wait before the target whose index stands in it."""
    with tempfile.TemporaryDirectory(prefix="es-") as sockets:
        endpoint = f"ipc://{sockets}/c"
        command = [sys.executable, *(("-m", "edge_scanner") if hold is None else (HELD, hold)), "run"]
        for text in (*SMALL, f'storage.root="{root}"', f'control.endpoint="{endpoint}"',
                     f'control.events="ipc://{sockets}/e"', *more):  # fmt: skip
            command += ["--set", text]
        child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            with Client(endpoint, timeout_s=300) as client:
                client.hello()
                yield client, endpoint, child
        finally:
            child.terminate()
            _, complaint = child.communicate(timeout=300)
            assert "Traceback" not in complaint, complaint
    assert dies or child.returncode == 0, complaint


def ctl(endpoint, *words):
    command = [sys.executable, "-m", "edge_scanner", "ctl", "--endpoint", endpoint, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


def wait_for(client, topic, **fields):
    for event in client.events(silence_s=1):
        told = event.fields
        if event.topic == topic and all(told.get(k) == v for k, v in fields.items()):
            return
        if event.topic == "snapshot" and topic == "state" and told["state"] == fields["state"]:
            return


def wait_until_done(client, tiles):
    """Wait until a scan that is held there has captured so many tiles."""
    for _ in client.events(silence_s=0.05):
        if client.status()["done"] >= tiles:
            return


def code_of(call):
    with pytest.raises(RemoteError) as refused:
        call()
    assert refused.value.message
    assert refused.value.advice
    return refused.value.code


def test_home_scan_pause_resume_cancel_stop_reset(tmp_path):
    with daemon(tmp_path, "export.auto=false", *EXACT) as (client, endpoint, _):
        assert client.status()["state"] == "IDLE"
        assert code_of(lambda: client.scan(**REGION)) == "position.unknown"
        assert code_of(client.pause) == "state.illegal"
        client.home()
        assert client.wait_idle()["homed"]
        assert code_of(lambda: client.scan(**{**REGION, "x_mm": 500.0})) == "limits.exceeded"
        assert code_of(lambda: client.scan(**{**REGION, "width_mm": 0.0})) == "bad_argument"
        assert code_of(lambda: client.scan(resume="nothing")) == "not_found"

        scan_id = client.scan(**LONG)["scan_id"]
        wait_for(client, "tile", scan_id=scan_id)
        assert code_of(client.home) == "state.illegal"
        client.pause()
        wait_for(client, "state", state="PAUSED")
        done = client.status()["done"]
        status = json.loads(ctl(endpoint, "status", "--json").stdout)
        assert (status["state"], status["done"], status["outcome"]) == ("PAUSED", done, None)
        assert 0 < status["progress"] < 1
        client.resume()
        wait_for(client, "tile", scan_id=scan_id)
        client.cancel()
        status = client.wait_idle(scan_id)
        assert (status["state"], status["outcome"]) == ("IDLE", "cancelled")
        assert done < status["done"] == status["tiles"] - status["report"]["rejected"] < status["tiles"]

        second = client.scan(**LONG)["scan_id"]
        wait_for(client, "tile", scan_id=second)
        client.stop()
        status = client.status()
        assert (status["state"], status["fault"]["code"]) == ("FAULT", "emergency_stop")
        assert code_of(lambda: client.scan(**REGION)) == "state.illegal"
        client.reset()
        wait_for(client, "state", state="IDLE")
        assert code_of(lambda: client.scan(**REGION)) == "position.unknown"
        assert [(s["scan_id"], s["outcome"]) for s in client.scans()] == [
            (scan_id, "cancelled"), (second, "failed")]  # fmt: skip


def test_ctl_waits_for_the_outcome_and_the_daemon_scans_what_nested_loops_scan(tmp_path):
    wrong = ("sim.stage_error_um=3",)
    with daemon(tmp_path, *wrong) as (_, endpoint, _child):
        assert ctl(endpoint, "home", "--wait").returncode == 0
        done = ctl(endpoint, "scan", *AREA, "--wait", "--json")
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        refused = ctl(endpoint, "scan", "--plan", str(tmp_path / "none.json"))
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
        exported = ctl(endpoint, "export", report["scan_id"], "--wait")
        assert exported.returncode == 0, exported.stderr
        assert ctl(endpoint, "export", "nothing").returncode == 1
    assert (report["outcome"], report["holes"], report["coverage"]) == ("completed", [], 1.0)
    for path in report["paths"].values():
        assert Path(path).exists()
    scan = calibrated_scan(small_config(tmp_path, *wrong), tmp_path / "nested")
    run_nested(scan)
    scan.close()
    folder = Path(report["paths"]["store"]).parent
    for ours, nested in zip(levels_of(folder), levels_of(tmp_path / "nested"), strict=True):
        assert np.array_equal(ours, nested)
    assert json.loads((folder / "report.json").read_text())["paths"]["store"] == "slide.ome.zarr"


def test_sigterm_in_mid_scan_ends_with_exit_0_and_leaves_the_scan_unfinished(tmp_path):
    with daemon(tmp_path, *EXACT) as (client, _, child):
        client.home()
        client.wait_idle()
        scan_id = client.scan(**LONG)["scan_id"]
        wait_for(client, "tile", scan_id=scan_id)
        child.send_signal(signal.SIGTERM)
        assert child.wait(timeout=300) == 0
    with daemon(tmp_path, *EXACT) as (client, _, again):
        [entry] = client.scans()
        assert (entry["scan_id"], entry["outcome"], entry["state"]) == (scan_id, None, "unfinished")
        assert client.status()["state"] == "IDLE"
        client.shutdown()
        assert again.wait(timeout=300) == 0


def test_killed_in_mid_scan_and_resumed_to_the_same_pixels(tmp_path):
    wrong = ("sim.stage_error_um=3", "mosaic.codec=jpeg", "export.auto=false")
    area = {**REGION, "width_mm": 1.2, "height_mm": 0.9}
    hold = tmp_path / "hold"
    hold.write_text("18")
    with daemon(tmp_path, *wrong, dies=True, hold=hold) as (client, _, child):
        client.home()
        client.wait_idle()
        scan_id = client.scan(**area)["scan_id"]
        wait_until_done(client, 18)
        child.kill()
        child.wait(timeout=300)
    with daemon(tmp_path, *wrong, "camera.exposure_ms=7") as (client, _, _child):
        assert code_of(lambda: client.scan(resume=scan_id)) == "plan.differs"
    with daemon(tmp_path, *wrong) as (client, endpoint, _child):
        assert [(s["scan_id"], s["outcome"]) for s in client.scans()] == [(scan_id, None)]
        done = ctl(endpoint, "scan", "--resume", scan_id, "--wait", "--json")
        assert done.returncode == 0, done.stderr
        assert code_of(lambda: client.scan(resume=scan_id)) == "state.illegal"
    scan = calibrated_scan(small_config(tmp_path, *wrong), tmp_path / "nested", region=tuple(area.values()))
    run_nested(scan)
    scan.close()
    for ours, nested in zip(levels_of(tmp_path / scan_id), levels_of(tmp_path / "nested"), strict=True):
        assert np.array_equal(ours, nested)


def stopped(pid, tiff):
    """Return a descriptor of an export that was stopped in the middle of its work; None for one that is through."""
    export = os.pidfd_open(pid)
    signal.pidfd_send_signal(export, signal.SIGSTOP)
    while (state := Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]) not in "TZX":
        pass
    if state == "T" and not tiff.exists():
        return export
    signal.pidfd_send_signal(export, signal.SIGCONT)
    return os.close(export)


def caught_exporting(client, daemon_pid, scan_id, tiff):
    """Return a descriptor of an export, stopped; where it was through before, another one is asked for."""
    for _ in client.events(silence_s=0.05):
        for path in Path(f"/proc/{daemon_pid}/task").glob("*/children"):
            with contextlib.suppress(ProcessLookupError, FileNotFoundError):  # gone meanwhile
                if (pids := path.read_text().split()) and (export := stopped(int(pids[0]), tiff)) is not None:
                    return export
        if client.status()["state"] == "IDLE" and tiff.exists():
            tiff.unlink()
            client.export(scan_id)
    raise AssertionError("events never end")


def test_a_daemon_killed_while_it_exports_takes_the_export_with_it(tmp_path):
    with daemon(tmp_path, *EXACT, dies=True) as (client, _, child):
        client.home()
        client.wait_idle()
        scan_id = client.scan(**REGION)["scan_id"]
        tiff = tmp_path / scan_id / "slide.ome.tif"
        export = caught_exporting(client, child.pid, scan_id, tiff)
        child.kill()
        child.wait(timeout=300)
        with contextlib.suppress(ProcessLookupError):  # it hears of the daemon's end, or looks for it at its start
            signal.pidfd_send_signal(export, signal.SIGCONT)
        assert select.select([export], [], [], 60)[0], "the export ends"
        os.close(export)
    assert not tiff.exists(), "before it is through"


def test_a_daemon_without_its_device_refuses_to_start(tmp_path):
    command = [sys.executable, "-m", "edge_scanner", "run", "--set", "stage.driver=nosuch"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, "TMPDIR": "/tmp"})
    assert done.returncode == 2
    assert "nosuch" in done.stderr
    assert "Traceback" not in done.stderr

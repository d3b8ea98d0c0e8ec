"""A disk that fills up: the scan pauses before the reserve, lives on, and goes on when there is room."""

import contextlib
import os
import subprocess

import pytest
from test_daemon import LONG, code_of, daemon, wait_for


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 96 MB that can really be full."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=96m", "none", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small file system needs root")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


SLOWLY = ("mosaic.codec=none", "export.auto=false", "focus.mode=off", "sim.blur=false")


def test_a_scan_waits_for_room_and_goes_on(small_disk):
    filler = small_disk / "filler"
    area = {**LONG, "width_mm": 3.0, "height_mm": 2.0}
    with daemon(small_disk, *SLOWLY, "storage.reserve_mb=20") as (client, _, _child):
        client.home()
        client.wait_idle()
        scan_id = client.scan(**area)["scan_id"]
        wait_for(client, "tile", scan_id=scan_id)
        filler.write_bytes(bytes(os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize - 19_000_000))
        wait_for(client, "state", state="PAUSED")
        done = client.status()["done"]
        assert client.status()["disk"]["free_bytes"] > 10_000_000, "the reserve is intact"
        assert code_of(client.home) == "state.illegal", "the daemon answers"
        filler.unlink()
        status = client.wait_idle(scan_id)
        assert status["outcome"] == "completed"
        assert status["done"] > done


def test_a_plan_without_room_is_refused_and_a_full_disk_is_a_fault_that_can_be_resumed(small_disk):
    filler = small_disk / "filler"
    area = {**LONG, "width_mm": 3.0, "height_mm": 2.0}
    with daemon(small_disk, *SLOWLY) as (client, _, _child):
        client.home()
        client.wait_idle()
        assert code_of(lambda: client.scan(**LONG)) == "disk.low"
        scan_id = client.scan(**area)["scan_id"]
        wait_for(client, "tile", scan_id=scan_id)
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(100_000))
        wait_for(client, "state", state="FAULT")
        assert client.status()["fault"]["code"] == "disk.low"
        filler.unlink()
        client.reset()
        wait_for(client, "state", state="IDLE")
        client.scan(resume=scan_id)
        assert client.wait_idle(scan_id)["outcome"] == "completed"
        assert client.status()["report"]["coverage"] == 1.0

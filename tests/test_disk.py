"""A disk that fills up: the scan pauses before the reserve, lives on, and goes on when there is room."""

import os
import re
import subprocess

import pytest
from enospc import lane
from enospc import small_disk as disk_of_few_files
from scan_rig import small_config
from test_daemon import LONG, code_of, daemon, wait_for, wait_until_done

from edge_scanner.errors import DiskLowError
from edge_scanner.plan import ScanRegion
from edge_scanner.scanner.archive import Archive, bytes_needed, files_needed_by
from edge_scanner.scanner.scan import make_plan


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
    hold = small_disk.parent / "hold"
    hold.write_text("20")
    with daemon(small_disk, *SLOWLY, "storage.reserve_mb=20", hold=hold) as (client, _, _child):
        client.home()
        client.wait_idle()
        assert code_of(lambda: client.scan(**LONG)) == "disk.low"
        scan_id = client.scan(**area)["scan_id"]
        wait_until_done(client, 20)
        filler.write_bytes(bytes(os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize - 19_000_000))
        hold.unlink()
        wait_for(client, "state", state="PAUSED")
        done = client.status()["done"]
        assert client.status()["disk"]["free_bytes"] > 10_000_000, "the reserve is intact"
        assert "MB of room" in client.status()["pause"]["message"]
        assert code_of(client.home) == "state.illegal", "the daemon answers"
        filler.unlink()
        status = client.wait_idle(scan_id)
        assert status["outcome"] == "completed"
        assert status["done"] > done


@pytest.mark.parametrize(("what", "reserve"), [("bytes", False), ("inodes", True)])
def test_a_sample_of_full_disks_is_survived(tmp_path, what, reserve):
    """`make enospc` runs the whole."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    try:
        [seen] = lane(tmp_path, "tmpfs", what, reserve, [0.4])
    except PermissionError as error:
        pytest.skip(str(error))
    assert seen.wrong == ""
    assert seen.became != "completed"


def test_a_scan_whose_journal_was_never_made_can_go_on(tmp_path):
    """The disk was full, or the daemon killed, before there was a table in it."""
    archive, plan = Archive(small_config(tmp_path)), make_plan(small_config(tmp_path), ScanRegion(0.0, 0.0, 1.0, 0.9))
    folder = archive.create("broken", plan, "2026-11-20T00:00:00Z")
    (folder / "journal.sqlite").touch()
    [entry] = archive.list()
    assert (entry["state"], entry["outcome"], entry["done"]) == ("unfinished", None, 0)
    assert archive.unfinished("broken") == (folder, plan, "2026-11-20T00:00:00Z")


def test_a_plan_without_room_for_its_bytes_or_files_is_refused_but_not_for_what_it_has(small_disk):
    plan = make_plan(small_config(small_disk), ScanRegion(0.0, 0.0, 1.0, 0.9))
    folder = small_disk / "scan"
    folder.mkdir()
    for n in range(8):
        (folder / str(n)).write_bytes(bytes(100_000))
    disk = os.statvfs(small_disk)
    tight = {
        "bytes": disk.f_bavail * disk.f_frsize / 1e6 - bytes_needed(small_config(small_disk), plan) / 1e6 + 0.5,
        "files": disk.f_favail - files_needed_by(small_config(small_disk), plan) + 5,
    }
    for key in (f"storage.reserve_mb={tight['bytes']}", f"storage.reserve_files={tight['files']}"):
        archive = Archive(small_config(small_disk, "storage.reserve_files=0", key))
        with pytest.raises(DiskLowError, match=r"The scan may need"):
            archive.check_room(plan)
        archive.check_room(plan, folder)


@pytest.mark.parametrize(
    ("reserve", "sentence"),
    [
        ("reserve_mb=0", r"^The disk is full; the scan waits for room\.$"),
        ("reserve_mb=1", r"^The disk is down to its reserve; the scan waits for 2 MB of room\.$"),
    ],
)
def test_a_full_disk_tells_how_much_is_short_only_of_a_reserve(small_disk, reserve, sentence):
    archive = Archive(small_config(small_disk, f"storage.{reserve}", "storage.reserve_files=0"))
    assert archive.missing(0.1) == ""
    (small_disk / "filler").write_bytes(bytes(os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize))
    assert re.match(sentence, archive.missing(0.1))


@pytest.mark.parametrize(("reserve", "short"), [(0, "The disk has no file left"), (20, "room for 22 files")])
def test_a_disk_without_inodes_tells_so(tmp_path, reserve, short):
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    with disk_of_few_files(tmp_path) as disk:
        archive = Archive(small_config(disk, f"storage.reserve_files={reserve}", "storage.reserve_mb=0"))
        assert archive.missing(0.1) == ""
        for n in range(os.statvfs(disk).f_favail):
            (disk / str(n)).touch()
        assert short in archive.missing(0.1)

"""A disk that is slower than the scanner: the stage waits, the buffer keeps its bound, nothing is lost."""

import pytest
from endure.cgroup import RefusedError, measured_bytes_s, slow_disk
from scan_rig import EXACT
from test_daemon import daemon

RATE, BUFFER_MB, FRAME = 3_000_000, 1.0, 256 * 192 * 3


@pytest.fixture
def disk(tmp_path):
    try:
        with slow_disk(tmp_path, 256 << 20, RATE) as folder:
            yield folder
    except RefusedError as error:
        pytest.skip(str(error))


def test_the_stage_waits_for_a_slow_disk(disk):
    assert measured_bytes_s(disk, 3_000_000) < 1.3 * RATE
    area = {"x_mm": 0.0, "y_mm": 0.0, "width_mm": 1.5, "height_mm": 0.9}
    with daemon(disk, *EXACT, f"scan.buffer_mb={BUFFER_MB}", "scan.cache_mb=1") as (client, _, _child):
        client.home()
        client.wait_idle()
        status = client.wait_idle(client.scan(**area)["scan_id"])
    assert status["outcome"] == "completed"
    report = status["report"]
    spooled_s = report["tiles"] * FRAME / RATE
    assert 0 < report["stall_s"] < report["wall_s"]
    assert report["wall_s"] > spooled_s, "it really was slow"
    assert report["limit"] == "mosaic and store"
    assert BUFFER_MB * 1e6 - FRAME < status["buffer"]["high_bytes"] <= BUFFER_MB * 1e6, "full, and never fuller"
    assert status["buffer"]["stall_s"] == report["stall_s"]

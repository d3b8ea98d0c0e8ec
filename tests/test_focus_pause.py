"""Focus that fails on tile after tile: the daemon pauses, says why, and goes on when it is told to."""

import pytest
from test_daemon import REGION, daemon

from edge_scanner.control.client import RemoteError

LOST = ("focus.z_start_um=60", "focus.range_um=2", "focus.max_failed=2", "sim.surface=false", "export.auto=false",
        "scan.shading=off", "stage.matrix=nominal")  # fmt: skip


def paused_at(client, done):
    """Wait until the scan has paused with so many tiles done; heartbeats keep the events coming."""
    for _ in client.events():
        status = client.status()
        if (status["state"], status["done"]) == ("PAUSED", done):
            return status
    raise AssertionError("no more events")


def test_a_scan_out_of_focus_pauses_with_a_reason_and_goes_on(tmp_path):
    with daemon(tmp_path, *LOST) as (client, _, _child):
        client.home()
        client.wait_idle()
        scan_id = client.scan(**{**REGION, "width_mm": 0.6, "height_mm": 0.3})["scan_id"]
        status = paused_at(client, 2)
        assert "2 tiles in a row could not be focused" in status["pause"]["message"]
        assert "resume" in status["pause"]["advice"]
        client.resume()
        paused_at(client, 4)
        client.resume()
        status = client.wait_idle(scan_id)
        assert (status["outcome"], status["pause"]) == ("completed", None)
        assert status["done"] == status["tiles"]


def test_an_objective_that_the_model_was_not_measured_with_is_refused_with_advice(tmp_path):
    with daemon(tmp_path, "focus.mode=model", "optics.numerical_aperture=0.2") as (client, _, _child):
        client.home()
        client.wait_idle()
        with pytest.raises(RemoteError, match=r"this objective has 0\.2") as refused:
            client.scan(**REGION)
        assert (refused.value.code, client.status()["state"]) == ("bad_argument", "IDLE")
        assert "classical" in refused.value.advice
        assert "this objective has 0.2" in client.status()["providers"]["error"]
        assert client.scans() == []

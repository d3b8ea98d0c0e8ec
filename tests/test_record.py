"""The trace of memory: bounded, nothing high is lost, and a resumed scan's goes on where the first one's ended."""

import mmap

from hypothesis import given
from hypothesis import strategies as st
from scan_rig import homed_rig, new_scan, small_config

from edge_scanner.journal import Journal
from edge_scanner.memory import peak_rss_mib, rss_mib
from edge_scanner.record import SAMPLES, MemoryTrace
from edge_scanner.scanner.scan import Scan, run_nested


@given(st.integers(0, 5 * SAMPLES))
def test_a_trace_is_bounded_and_ordered(steps):
    trace = MemoryTrace()
    for _ in range(steps):
        trace.step()
    assert min(steps, SAMPLES // 4) <= len(trace.samples) < SAMPLES
    seconds = [s for s, _ in trace.samples]
    assert seconds == sorted(seconds)


def test_samples_of_a_long_trace_stand_for_the_same_number_of_steps():
    trace = MemoryTrace()
    for _ in range(3 * SAMPLES):
        trace.step()
    assert len(trace.samples) == 3 * SAMPLES / 4, "four steps each"


def test_a_short_rise_is_still_there_after_many_steps():
    trace = MemoryTrace()
    before_mib = rss_mib()
    for _ in range(8):
        trace.step()
    with mmap.mmap(-1, 64 << 20) as held:  # pages of its own: the heap may keep as much from an earlier test
        held.write(b"x" * len(held))
        trace.step()
    for _ in range(10 * SAMPLES):
        trace.step()
    most_mib = max(mib for _, mib in trace.samples)
    assert before_mib + 50 < most_mib < peak_rss_mib() + 4, "the kernel counts in batches"
    assert trace.samples[-1][1] < most_mib - 50


def test_a_resumed_scan_goes_on_with_the_trace(tmp_path):
    config = small_config(tmp_path)
    scan = new_scan(config, tmp_path / "scan")
    tiles = scan.acquire()
    for _ in range(4):
        for numbered in scan.place(next(tiles)):
            scan.write(numbered)
    scan.commit()
    scan.close()
    journal = Journal(tmp_path / "scan" / "journal.sqlite")
    first = journal.noted("memory")
    journal.close()
    assert len(first) == 4
    again = Scan(config, homed_rig(config), scan.plan, scan.folder, scan_id="scan", resume=True)
    again.recover()
    run_nested(again)
    again.close()
    assert [list(sample) for sample in again.memory.samples[:4]] == first
    assert len(again.memory.samples) == len(scan.plan)
    seconds = [s for s, _ in again.memory.samples]
    assert seconds == sorted(seconds)

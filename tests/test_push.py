"""Tiles pushed by other processes become the slide that a scan of them gives; what goes wrong is told to all."""

import json
import multiprocessing
import os
import pickle
import random
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from scan_rig import levels_of, new_scan, small_config

from edge_scanner import push
from edge_scanner.config import Config
from edge_scanner.errors import PlanError, ScannerError, StoreError, UsageError
from edge_scanner.plan import ScanPlan, ScanRegion
from edge_scanner.scanner.scan import run_nested
from edge_scanner.tile import Tile, Verdict

SPAWN = multiprocessing.get_context("spawn")
PLAN = ScanPlan(ScanRegion(0.0, 0.0, 0.3, 0.2), 96, 128, 1.0, 16)


def picture(index):
    return np.random.default_rng(index).integers(0, 255, (96, 128, 3), np.uint8)


def same(a, b):
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def produce(feed, tiles):
    """Run in a process of its own."""
    for tile in tiles:
        feed.push(tile.index, tile.pixels, tile.verdict, z_um=tile.position.z_um)


def push_until_told(feed, answers):
    """Run in a process of its own: push until the collector says why not."""
    try:
        for target in PLAN:
            feed.push((target.row, target.col), picture(target.index))
        answers.put("all were taken")
    except ScannerError as error:
        answers.put(str(error))


@pytest.fixture
def config(tmp_path):
    return small_config(tmp_path, "mosaic.chunk_px=256")


@dataclass(frozen=True)
class Scanned:
    """A scan in one thread: its tiles, one of them rejected, in a shuffled order, and what became of them."""

    config: Config
    plan: ScanPlan
    tiles: list[Tile]
    hole: int
    levels: list[np.ndarray]


@pytest.fixture(scope="module")
def scanned(tmp_path_factory):
    root = tmp_path_factory.mktemp("scanned")
    config = small_config(root, "stage.error_um=3", "sim.stage_error_um=3", "focus.mode=off", "scan.buffer_mb=0.3")
    scan = new_scan(config, root / "scan")
    tiles = list(scan.acquire())
    hole = scan.plan.index_at(2, 1)
    tiles[hole] = replace(tiles[hole], pixels=None, verdict=Verdict.REJECTED, reason="for the test")
    scan.acquire = lambda: iter(tiles)
    run_nested(scan)
    scan.close()
    return Scanned(config, scan.plan, random.Random(3).sample(tiles, len(tiles)), hole, levels_of(root / "scan"))


def test_two_spawned_producers_in_any_order_give_the_scan_bit_for_bit(tmp_path, scanned):
    tiles, hole = scanned.tiles, scanned.hole
    with push.collect(tmp_path / "pushed", scanned.plan, config=scanned.config, export=True) as collector:
        parts = (tiles[0::2], [t for t in tiles[1::2] if t.pixels is not None])
        workers = [SPAWN.Process(target=produce, args=(collector.feed(), part)) for part in parts]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert [w.exitcode for w in workers] == [0, 0]
    assert same(scanned.levels, levels_of(tmp_path / "pushed"))
    report = collector.report
    assert (report.tiles, report.accepted, [h["index"] for h in report.holes]) == (len(tiles), len(tiles) - 1, [hole])
    assert report.registered_tiles > len(tiles) / 2
    assert report.registration_px_p50 is not None
    assert report.buffer_high_mib <= 0.3, "the queue is bounded by scan.buffer_mb"
    assert json.loads((tmp_path / "pushed" / "report.json").read_text())["outcome"] == "completed"
    assert Path(report.paths["tiff"]).stat().st_size > 10_000


def test_positions_find_their_targets_and_what_nobody_pushed_is_a_hole(tmp_path, config):
    with push.collect(tmp_path / "scan", PLAN, config=config) as collector, collector.feed() as feed:
        for target in list(PLAN)[1:]:
            feed.push_at(target.x_um + 1.5, target.y_um - 1.5, picture(target.index))
        with pytest.raises(UsageError, match=r"No target lies .* 5\.0 um away"):
            feed.push_at(PLAN.target(0).x_um - 3, PLAN.target(0).y_um + 4, picture(0))
        with pytest.raises(UsageError, match="position"):
            feed.push_at(float("nan"), 0, picture(0))
        assert [t.index for t in collector.missing()] == [0]
    (hole,) = collector.report.holes
    assert (hole["index"], hole["reason"]) == (0, "never pushed")
    assert collector.report.paths["tiff"] is None
    corner = PLAN.target(0)
    assert (levels_of(tmp_path / "scan")[0][:32, :32] == 255).all(), corner
    with pytest.raises(ScannerError, match="has ended"):
        feed.push(0, picture(0))


BAD = {
    "shape": (0, np.zeros((96, 127, 3), np.uint8), "accepted", "shape"),
    "no channels": (0, np.zeros((96, 128), np.uint8), "accepted", "shape"),
    "type": (0, np.zeros((96, 128, 3), np.uint16), "accepted", "uint8|u1"),
    "not numbers": (0, [["a"]], "accepted", "shape"),
    "empty": (0, np.zeros((0, 128, 3), np.uint8), "accepted", "shape"),
    "no pixels": (0, None, "accepted", "no pixels"),
    "pixels of a rejected one": (0, np.zeros((96, 128, 3), np.uint8), "rejected", "no pixels"),
    "unknown index": (len(PLAN), np.zeros((96, 128, 3), np.uint8), "accepted", "no target"),
    "negative index": (-1, np.zeros((96, 128, 3), np.uint8), "accepted", "no target"),
    "unknown row": ((PLAN.rows, 0), np.zeros((96, 128, 3), np.uint8), "accepted", "no target"),
    "unknown column": ((0, -1), np.zeros((96, 128, 3), np.uint8), "accepted", "no target"),
    "twice": (1, np.zeros((96, 128, 3), np.uint8), "accepted", "pushed before"),
}


def test_what_does_not_fit_is_refused_and_nothing_else_is_touched(tmp_path, config):
    with push.collect(tmp_path / "bad", PLAN, config=config) as collector:
        feed, other = collector.feed(), pickle.loads(pickle.dumps(collector.feed()))
        feed.push(1, picture(1))
        for name, (target, pixels, verdict, told) in BAD.items():
            with pytest.raises(UsageError, match=told):
                feed.push(target, pixels, Verdict(verdict))
            assert len(collector.missing()) == len(PLAN) - 1, name
        for target in PLAN:
            if target.index != 1:
                other.push(target.index, picture(target.index))
    with push.collect(tmp_path / "good", PLAN, config=config) as collector:
        for target in PLAN:
            collector.feed().push(target.index, picture(target.index))
    assert same(levels_of(tmp_path / "bad"), levels_of(tmp_path / "good"))
    assert collector.report.holes == []


def test_a_producer_that_dies_in_the_middle_of_a_tile_gives_its_target_back_and_strangers_do_no_harm(tmp_path, config):
    with push.collect(tmp_path / "scan", PLAN, config=config) as collector:
        dying = collector.feed()
        connection = dying._connected()
        offer = {"target": 0, "z_um": 0.0, "verdict": "accepted", "shape": [96, 128, 3], "dtype": "|u1"}
        dying._tell(connection, offer)
        connection.sendall(bytes(1000))
        with pytest.raises(UsageError, match="before"):
            collector.feed().push(0, picture(0))
        dying.close()
        for nonsense in (b"GET / HTTP/1.1\r\n\r\n", b"\0\0\0\2{}", b"\0\0\0\2[]", b"\0\0\0\1{", b"\0"):
            with socket.socket(socket.AF_UNIX) as stranger:
                stranger.connect(collector._build.inbox.address)
                stranger.sendall(nonsense)
        feed = collector.feed()
        for target in PLAN:
            feed.push(target.index, picture(target.index))
    assert collector.report.holes == []


def test_a_failure_of_the_collector_is_told_to_every_producer_and_raised(tmp_path, config):
    failure = StoreError("The disk broke.")

    def broken(*_args):
        raise failure

    answers = SPAWN.Queue()
    with pytest.raises(StoreError) as caught, push.collect(tmp_path / "scan", PLAN, config=config) as collector:
        collector._build.spool.put = broken
        worker = SPAWN.Process(target=push_until_told, args=(collector.feed(), answers))
        worker.start()
        assert "The collector has failed: The disk broke." in answers.get(timeout=60)
        with pytest.raises(ScannerError, match="ended"):
            collector.feed().push(3, picture(3))
        worker.join()
    assert caught.value is failure


def collect_and_die(folder, address):
    """Run in a process of its own: take a few tiles, then stop taking, until it is killed."""
    with push.collect(folder, PLAN) as collector:
        stuck = threading.Event()
        collector._build.spool.put = lambda *_: stuck.wait()
        address.put(collector.feed())
        stuck.wait()


def test_a_killed_collector_leaves_no_producer_waiting(tmp_path):
    feeds = SPAWN.Queue()
    collector = SPAWN.Process(target=collect_and_die, args=(tmp_path / "scan", feeds))
    collector.start()
    feed = feeds.get(timeout=60)
    feed.push(0, picture(0))
    os.kill(collector.pid, signal.SIGKILL)
    collector.join()
    with pytest.raises(ScannerError, match="has ended"):
        feed.push(1, picture(1))


def test_a_push_waits_while_the_queue_is_full(tmp_path):
    config = small_config(tmp_path, "scan.buffer_mb=0.05")
    with push.collect(tmp_path / "scan", PLAN, config=config) as collector:
        gate, original = threading.Event(), collector._build.spool.put
        collector._build.spool.put = lambda *args: (gate.wait(), original(*args))
        pushed, third = [], threading.Event()
        collector._pipeline._on_tile = lambda tile: third.set() if tile.index == 2 else None

        def producer():
            for target in PLAN:
                collector.feed().push(target.index, picture(target.index))
                pushed.append(target.index)

        thread = threading.Thread(target=producer)
        thread.start()
        assert third.wait(60)
        assert pushed == [0, 1], "one is being placed, one is in the queue, and the third waits for room"
        gate.set()
        thread.join()
    assert collector.report.holes == []


def test_an_exception_in_the_statement_leaves_a_scan_that_can_be_gone_on_with_in_any_order(tmp_path, scanned):
    folder, config, plan = tmp_path / "scan", scanned.config, scanned.plan
    with pytest.raises(KeyError), push.collect(folder, plan, config=config) as collector:
        produce(collector.feed(), scanned.tiles[: len(plan) // 2])
        raise KeyError("the producer's own")
    assert collector.report is None
    with pytest.raises(StoreError):
        push.collect(folder, plan, config=config)
    with pytest.raises(PlanError, match="another plan"):
        push.collect(folder, replace(plan, overlap_px=8), config=config, resume=True)
    with push.collect(folder, plan, config=config, resume=True) as collector:
        missing = {target.index for target in collector.missing()}
        assert len(plan) // 2 <= len(missing) < len(plan), "some of what was pushed was durable"
        produce(collector.feed(), [tile for tile in scanned.tiles if tile.index in missing])
    assert [h["index"] for h in collector.report.holes] == [scanned.hole]
    assert same(scanned.levels, levels_of(folder))


def test_the_example_runs(tmp_path):
    example = Path(__file__).parents[1] / "deploy" / "examples" / "push_tiles.py"
    cv2.imwrite(str(tmp_path / "in.png"), np.random.default_rng(1).integers(0, 255, (1100, 1300, 3), np.uint8))
    run = [sys.executable, str(example), str(tmp_path / "in.png"), str(tmp_path / "scan")]
    told = subprocess.run(run, capture_output=True, text=True, timeout=120, check=True).stdout
    assert told.startswith("4 tiles, 0 holes, 4 placed by their pictures")
    assert (tmp_path / "scan" / "slide.ome.tif").exists()

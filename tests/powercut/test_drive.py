"""The parts of the power-cut rig that need no virtual machine: the forgetful drive, and the verdict on claims."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest
from machine import BLOCK, FLUSH, FUA, SECTOR, Machine, Parts
from powercut import Claims

PER_BLOCK = BLOCK // SECTOR


def entry(block: int, value: int, flags: int = 0, blocks: int = 1) -> bytes:
    head = struct.pack("<4Q", block * PER_BLOCK, blocks * PER_BLOCK, flags, 0).ljust(SECTOR, b"\0")
    return head + bytes([value]) * BLOCK * blocks


def flush() -> bytes:
    return struct.pack("<4Q", 0, 0, FLUSH, 0).ljust(SECTOR, b"\0")


@pytest.fixture
def drive(tmp_path: Path):
    """Return a function: log entries and a chance -> (first byte of each block, (cached, lost))."""

    def settle(keep: float, *entries: bytes):
        (tmp_path / "before.img").write_bytes(bytes(8 * BLOCK))
        (tmp_path / "drive.log").write_bytes(bytes(SECTOR) + b"".join(entries))
        machine = Machine(tmp_path, Parts(tmp_path, tmp_path, tmp_path))
        told = machine.settle(keep, random.Random(1))
        return list((tmp_path / "disk.img").read_bytes()[::BLOCK]), told

    return settle


def test_what_was_flushed_stays_and_the_rest_is_lost(drive):
    blocks, told = drive(0.0, entry(0, 1), entry(1, 2), flush(), entry(1, 3), entry(2, 4))
    assert blocks == [1, 2, 0, 0, 0, 0, 0, 0]
    assert told == (2, 2)


def test_a_write_through_stays_without_a_flush(drive):
    assert drive(0.0, entry(0, 1), entry(1, 2, FUA))[0][:2] == [0, 2]


def test_everything_stays_of_a_drive_that_was_lucky(drive):
    assert drive(1.0, flush(), entry(0, 1), entry(0, 2), entry(3, 5, blocks=2)) == ([2, 0, 0, 5, 5, 0, 0, 0], (4, 0))


def test_a_long_write_can_stay_in_part(drive):
    blocks, (cached, lost) = drive(0.5, entry(0, 7, blocks=8))
    assert cached == 8
    assert blocks.count(0) == lost
    assert 0 < lost < 8


def test_a_request_that_the_cut_tore_is_not_written(drive):
    assert drive(1.0, entry(0, 1), entry(1, 2)[:-1])[0][:2] == [1, 0]


SOUND = [["journal", "ok"], ["have-tile", "3", "77"], ["have-chunk", "0", "1", "2", "0", "99"]]


@pytest.fixture
def claims() -> Claims:
    claims = Claims()
    claims.take([["captured", "4", "78"], ["durable", "3", "77"], ["stored", "0", "1", "2", "0", "99"]])
    return claims


def test_claims_that_hold(claims):
    assert claims.lost(SOUND) == []
    assert claims.lost([["have-tile", "3", "chunks"], *SOUND[::2]]) == []


@pytest.mark.parametrize(
    ("line", "instead", "lost"),
    [
        (0, ["journal", "none"], ["journal"]),
        (1, ["have-tile", "3", "78"], ["tile 3"]),
        (1, ["have-tile", "4", "77"], ["tile 3"]),
        (2, ["have-chunk", "0", "1", "2", "0", "98"], ["chunk 0 1 2 0"]),
        (2, ["have-chunk", "0", "1", "2", "1", "99"], ["chunk 0 1 2 0"]),
    ],
)
def test_claims_that_do_not(claims, line, instead, lost):
    assert claims.lost([instead if n == line else said for n, said in enumerate(SOUND)]) == lost

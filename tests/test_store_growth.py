"""A store can be read at any moment of its growth, and shows only what the journal has."""

import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from store_slides import chunk_of, expected, new_store, places, planes, truth, write

from edge_scanner import store as stores
from edge_scanner.errors import StoreError
from edge_scanner.geometry import Box
from edge_scanner.store import EncodedChunk, StoredPart
from edge_scanner.store.codec import Gzip, Jpeg, Uncompressed, Zstd
from edge_scanner.tile import Chunk

KINDS = {
    "gzip rgb": {"codec": Gzip()},
    "zstd rgb16": {"codec": Zstd(), "dtype": "uint16", "fill_value": 65535},
    "none mono": {"codec": Uncompressed(), "channels": 1, "fill_value": 0},
    "gzip 3 planes of uint16": {"codec": Gzip(), "channels": 3, "dtype": "uint16", "described": planes(3)},
}


def seen_by_zarr(path: Path, level: int) -> np.ndarray:
    return np.moveaxis(zarr.open_array(path / "0" / str(level), mode="r")[:], 0, -1)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_zarr_python_sees_exactly_what_was_committed_at_any_moment(kind: str, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = new_store(Path(folder) / "s.ome.zarr", height_px=70, width_px=99, **KINDS[kind])
        order = data.draw(st.permutations(places(store)))
        committed: set[tuple[int, int, int]] = set()
        while order:
            group, order = order[: (n := data.draw(st.integers(1, 8)))], order[n:]
            write(store, group)
            assert not any(store.has(*place) for place in group)
            for level in range(len(store.levels)):
                np.testing.assert_array_equal(seen_by_zarr(store.path, level), expected(store, level, committed))
            assert {(p.level, p.row, p.col) for p in store.commit()} == set(group)
            committed |= set(group)
            for level, size in enumerate(store.levels):
                want = expected(store, level, committed)
                np.testing.assert_array_equal(seen_by_zarr(store.path, level), want)
                np.testing.assert_array_equal(
                    stores.open(store.path).read(level, Box(0, 0, size.height_px, size.width_px)), want
                )


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_box_of_any_level_is_read(data: st.DataObject, written: stores.SlideStore) -> None:
    level = data.draw(st.integers(0, len(written.levels) - 1))
    size = written.levels[level]
    y0, x0 = data.draw(st.integers(0, size.height_px - 1)), data.draw(st.integers(0, size.width_px - 1))
    box = Box(y0, x0, data.draw(st.integers(y0 + 1, size.height_px)), data.draw(st.integers(x0 + 1, size.width_px)))
    want = truth(written, level)[box.y0 : box.y1, box.x0 : box.x1]
    np.testing.assert_array_equal(written.read(level, box), want)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> stores.SlideStore:
    with new_store(tmp_path_factory.mktemp("slide") / "s.ome.zarr", Gzip(), channels=2, described=planes(2)) as store:
        write(store, places(store))
    return stores.open(store.path)


def test_clipped_chunks_are_padded_by_replication(tmp_path: Path) -> None:
    store = new_store(tmp_path / "s.ome.zarr", Gzip(), height_px=40, width_px=50)
    (part,) = store.encode(chunk_of(store, 0, 1, 1)).parts
    whole = store.codec.decode(part, (32, 32, 3), np.uint8)
    np.testing.assert_array_equal(whole[:8, :18], truth(store, 0)[32:, 32:])
    np.testing.assert_array_equal(whole[8:, :18], np.broadcast_to(whole[7:8, :18], (24, 18, 3)))
    np.testing.assert_array_equal(whole[:, 18:], np.broadcast_to(whole[:, 17:18], (32, 14, 3)))


def test_jpeg_chunks_are_stored_as_encoded(tmp_path: Path) -> None:
    with new_store(tmp_path / "s.ome.zarr", Jpeg(95, "444")) as store:
        encoded = {place: store.encode(chunk_of(store, *place)) for place in places(store)}
        for one in encoded.values():
            store.append(one)
    reader = stores.open(store.path)
    for place, one in encoded.items():
        assert reader.encoded(*place) == one.parts[0]
    size = reader.levels[0]
    ours = reader.read(0, Box(0, 0, size.height_px, size.width_px))
    np.testing.assert_array_equal(seen_by_zarr(store.path, 0), ours)


def test_a_chunk_is_stored_once(tmp_path: Path) -> None:
    store = new_store(tmp_path / "s.ome.zarr", Gzip())
    write(store, [(0, 0, 0)])
    with pytest.raises(StoreError, match="stored before"):
        write(store, [(0, 0, 0)])
    store.commit()
    for again in (store, stores.open(store.path)):
        with pytest.raises(StoreError, match="stored before"):
            write(again, [(0, 0, 0)])


def test_an_unscanned_chunk_has_no_bytes_and_reads_as_fill(tmp_path: Path) -> None:
    store = new_store(tmp_path / "s.ome.zarr", Gzip())
    empty = store.encode(Chunk(0, 1, 1, None))
    assert empty.parts == ()
    store.append(empty)
    assert store.commit() == []
    assert store.encoded(0, 1, 1) is None
    assert (store.read(0, Box(32, 32, 64, 64)) == 255).all()
    with pytest.raises(StoreError, match="stored before"):
        store.append(empty)


def test_the_journal_hears_of_parts_before_a_reader_can_see_them(tmp_path: Path) -> None:
    store = new_store(tmp_path / "s.ome.zarr", Gzip(), channels=2, described=planes(2))
    journal: list[StoredPart] = []

    def on_durable(parts: list[StoredPart]) -> None:
        reader = stores.open(store.path)
        for part in parts:
            assert not store.has(part.level, part.row, part.col)
            assert not reader.has(part.level, part.row, part.col)
            raw = (store.path / part.shard).read_bytes()[part.offset : part.offset + part.length]
            np.testing.assert_array_equal(
                store.codec.decode(raw, (32, 32), np.uint8)[:1, :1],
                chunk_of(store, part.level, part.row, part.col).pixels[:1, :1, part.channel],
            )
        journal.extend(parts)

    for k in range(0, len(places(store)), 5):
        write(store, places(store)[k : k + 5])
        before = len(journal)
        assert store.commit(on_durable) == journal[before:]
    assert len(journal) == 2 * len(places(store))


def test_a_group_that_the_journal_refuses_stays_invisible_and_may_be_written_again(tmp_path: Path) -> None:
    store = new_store(tmp_path / "s.ome.zarr", Gzip())
    write(store, [(0, 0, 0), (0, 2, 3)])

    def refuse(parts: list[StoredPart]) -> None:
        raise RuntimeError("no room in the journal")

    with pytest.raises(RuntimeError):
        store.commit(refuse)
    assert store.commit() == []
    assert not store.has(0, 0, 0)
    write(store, [(0, 0, 0), (0, 2, 3)])
    store.commit()
    np.testing.assert_array_equal(seen_by_zarr(store.path, 0), expected(store, 0, {(0, 0, 0), (0, 2, 3)}))


def test_many_threads_may_append_while_one_commits(tmp_path: Path) -> None:
    store = new_store(tmp_path / "s.ome.zarr", Gzip(), height_px=300, width_px=300, chunk_px=16, shard_chunks=4)
    parts: list[StoredPart] = []
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(write, store, [place]) for place in places(store)]
        while not all(job.done() for job in jobs):
            parts += store.commit()
        parts += store.commit()
    assert [job.exception() for job in jobs if job.exception()] == []
    assert sorted((p.level, p.row, p.col) for p in parts) == sorted(places(store))
    for level in range(len(store.levels)):
        np.testing.assert_array_equal(seen_by_zarr(store.path, level), truth(store, level))


READER = """
import sys, numpy as np, zarr
from edge_scanner import store as stores
from edge_scanner.geometry import Box
path, whole, torn, reads = sys.argv[1], False, 0, 0
print("ready", flush=True)
while not whole:
    reads += 1
    try:
        a = np.moveaxis(zarr.open_array(path + "/0/0", mode="r")[:], 0, -1)
    except ValueError:
        torn += 1
        continue
    b = stores.open(path).read(0, Box(0, 0, *a.shape[:2]))
    for seen in (a, b):
        blocks = seen.reshape(16, 16, 16, 16, 3).swapaxes(1, 2).reshape(256, -1)
        assert (blocks == blocks[:, :1]).all(), "a chunk is half there"
        number = np.arange(256) % 200 + 1
        assert ((blocks[:, 0] == 0) | (blocks[:, 0] == number)).all(), "wrong pixels"
        later, whole = blocks[:, 0] != 0, (blocks[:, 0] != 0).all()
        if seen is a:
            earlier = later
    assert (later >= earlier).all(), "a chunk vanished"
print(reads, torn)
"""


def test_another_process_reads_while_indices_are_rewritten(tmp_path: Path) -> None:
    path = tmp_path / "s.ome.zarr"
    store = new_store(path, Gzip(), height_px=256, width_px=256, chunk_px=16, shard_chunks=16, fill_value=0)
    reader = subprocess.Popen([sys.executable, "-c", READER, str(path)], stdout=subprocess.PIPE, text=True)
    assert reader.stdout is not None
    assert reader.stdout.readline() == "ready\n"
    for n in range(256):
        pixels = np.full((16, 16, 3), n % 200 + 1, np.uint8)
        store.append(store.encode(Chunk(0, n // 16, n % 16, pixels)))
        store.commit()
    out, _ = reader.communicate(timeout=120)
    assert reader.returncode == 0
    assert int(out.split()[0]) >= 1


@pytest.mark.parametrize(
    "bad",
    [
        Chunk(0, 0, 0, np.zeros((31, 32, 3), np.uint8)),
        Chunk(0, 0, 0, np.zeros((32, 32, 1), np.uint8)),
        Chunk(0, 0, 0, np.zeros((32, 32, 3), np.uint16)),
        Chunk(0, 99, 0, np.zeros((32, 32, 3), np.uint8)),
        Chunk(0, 0, -1, np.zeros((32, 32, 3), np.uint8)),
        Chunk(9, 0, 0, None),
    ],
)
def test_a_chunk_that_does_not_fit_is_refused(tmp_path: Path, bad: Chunk) -> None:
    with pytest.raises(StoreError):
        new_store(tmp_path / "s.ome.zarr", Gzip()).encode(bad)


def test_wrong_parts_and_a_closed_store_are_refused(tmp_path: Path) -> None:
    store = new_store(tmp_path / "s.ome.zarr", Gzip())
    with pytest.raises(StoreError, match="2 parts"):
        store.append(EncodedChunk(0, 0, 0, (b"a", b"b")))
    store.close()
    store.close()
    with pytest.raises(StoreError, match="closed"):
        write(store, [(0, 0, 0)])


def test_a_block_that_fails_commits_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError), new_store(tmp_path / "s.ome.zarr", Gzip()) as store:
        write(store, [(0, 0, 0)])
        raise KeyError
    assert not stores.open(tmp_path / "s.ome.zarr").has(0, 0, 0)

"""Damaged, cut, foreign and half-written stores: an error or the fill value, never wrong pixels; and the way back."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from store_slides import chunk_of, expected, new_store, places, planes, truth, write

from edge_scanner import store as stores
from edge_scanner.errors import DiskLowError, StoreError
from edge_scanner.geometry import Box
from edge_scanner.store import SlideStore, StoredPart
from edge_scanner.store.codec import Gzip, Jpeg
from edge_scanner.store.shard import disk_errors

SHARD = "0/0/c/0/0/0"


def whole(store: SlideStore, level: int = 0) -> np.ndarray:
    size = store.levels[level]
    return store.read(level, Box(0, 0, size.height_px, size.width_px))


@pytest.fixture
def slide(tmp_path: Path) -> tuple[SlideStore, list[StoredPart]]:
    store = new_store(tmp_path / "s.ome.zarr", Gzip())
    write(store, places(store))
    return store, store.commit()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_torn_index_is_an_error_and_never_wrong_pixels(data: st.DataObject, tmp_path_factory) -> None:
    store = new_store(tmp_path_factory.mktemp("torn") / "s.ome.zarr", Gzip(), height_px=64, width_px=64)
    write(store, [(0, 0, 0), (0, 1, 1)])
    store.commit()
    old = (store.path / SHARD).read_bytes()[:68]
    write(store, [(0, 0, 1), (0, 1, 0)])
    store.commit()
    new = (store.path / SHARD).read_bytes()
    cut = data.draw(st.integers(0, 68))
    (store.path / SHARD).write_bytes(new[:cut] + old[cut:] + new[68:])
    was, now = {(0, 0, 0), (0, 1, 1)}, {(0, r, c) for r in (0, 1) for c in (0, 1)}
    ways = [
        lambda: whole(stores.open(store.path)),
        lambda: np.moveaxis(zarr.open_array(store.path / "0" / "0", mode="r")[:], 0, -1),
    ]
    for read in ways:
        try:
            pixels = read()
        except (StoreError, ValueError):
            assert old[:cut] != new[:cut] or old[cut:] != new[cut:68]
            assert cut not in (0, 68)
            continue
        assert any(np.array_equal(pixels, expected(store, 0, seen)) for seen in (was, now))


@pytest.mark.parametrize("size", [0, 10, 67])
def test_a_shard_without_a_whole_index_is_an_error(slide: tuple[SlideStore, list[StoredPart]], size: int) -> None:
    os.truncate(slide[0].path / SHARD, size)
    reader = stores.open(slide[0].path)
    for use in (lambda: whole(reader), lambda: reader.has(0, 0, 0), lambda: list(reader.parts(0))):
        with pytest.raises(StoreError, match="truncated"):
            use()


def test_a_shard_cut_within_its_chunks_loses_only_those(slide: tuple[SlideStore, list[StoredPart]]) -> None:
    store, parts = slide
    inside = sorted((p for p in parts if p.shard == SHARD), key=lambda p: p.offset)
    os.truncate(store.path / SHARD, inside[-1].offset + 5)
    reader = stores.open(store.path)
    with pytest.raises(StoreError, match="truncated"):
        reader.encoded(0, inside[-1].row, inside[-1].col)
    for part in inside[:-1]:
        box = Box(0, 0, 32, 32).shifted(part.row * 32, part.col * 32)
        np.testing.assert_array_equal(
            reader.read(0, box), truth(store, 0)[box.y0 : box.y1, box.x0 : box.x1], strict=True
        )


def test_zeros_where_a_power_cut_lost_a_page_are_an_error(slide: tuple[SlideStore, list[StoredPart]]) -> None:
    store, parts = slide
    part = next(p for p in parts if p.shard == SHARD)
    with (store.path / SHARD).open("r+b") as file:
        file.seek(part.offset)
        file.write(bytes(part.length))
    with pytest.raises(StoreError, match="cannot be decoded"):
        whole(stores.open(store.path))


def _level(name: str) -> Callable[[Path], None]:
    return lambda path: shutil.rmtree(path / "0" / name)


def _edited(key: str, value: object, level: str = "1") -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        file = path / "0" / level / "zarr.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))

    return edit


DAMAGE: dict[str, Callable[[Path], None]] = {
    "no level 0": _level("0"),
    "no level 2": _level("2"),
    "no store": shutil.rmtree,
    "no image": lambda path: (path / "0" / "zarr.json").unlink(),
    "not JSON": lambda path: (path / "0" / "0" / "zarr.json").write_text("{"),
    "not text": lambda path: (path / "0" / "0" / "zarr.json").write_bytes(b"\xff\xfe"),
    "a list": lambda path: (path / "0" / "0" / "zarr.json").write_text("[]"),
    "another type in one level": _edited("data_type", "uint16"),
    "another shape in one level": _edited("shape", [3, 74, 102]),
    "a type that is none of ours": _edited("data_type", "float32", "0"),
    "no such type": _edited("data_type", "complex77", "0"),
    "no codecs": _edited("codecs", [], "0"),
    "nonsense shape": _edited("shape", [3, "x", None], "0"),
    "no shape": _edited("shape", [], "0"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_store_whose_documents_are_wrong_is_not_opened(
    slide: tuple[SlideStore, list[StoredPart]], damage: str
) -> None:
    DAMAGE[damage](slide[0].path)
    with pytest.raises(StoreError):
        stores.open(slide[0].path)


def test_boxes_and_chunks_outside_are_refused(slide: tuple[SlideStore, list[StoredPart]]) -> None:
    store, _ = slide
    for box in (Box(0, 0, 0, 5), Box(-1, 0, 5, 5), Box(0, 0, 151, 5), Box(0, 0, 5, 204)):
        with pytest.raises(StoreError, match="not inside"):
            store.read(0, box)
    for place in ((9, 0, 0), (-1, 0, 0), (0, 5, 0), (0, 0, 7), (0, -1, 0)):
        with pytest.raises(StoreError, match="no chunk"):
            store.encoded(*place)
    with pytest.raises(StoreError, match="no part"):
        store.encoded(0, 0, 0, 1)


CRASH = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from store_slides import new_store, places, planes, write
from edge_scanner.store.codec import Gzip
import pickle
store = new_store(Path(sys.argv[1]) / "s.ome.zarr", Gzip(), channels=2, described=planes(2))
todo = places(store)
kill_in_group, instant = int(sys.argv[3]), sys.argv[4]
journal = open(Path(sys.argv[1]) / "journal", "ab")
def on_durable(parts):
    if instant == "before the journal" and n == kill_in_group:
        os._exit(9)
    pickle.dump(list(parts), journal)
    journal.flush()
    if instant == "before the index" and n == kill_in_group:
        os._exit(9)
for n in range(8):
    write(store, todo[n * 5 : n * 5 + 5])
    if instant == "before the commit" and n == kill_in_group:
        os._exit(9)
    store.commit(on_durable)
"""


@pytest.mark.parametrize("instant", ["before the commit", "before the journal", "before the index"])
def test_after_a_crash_the_journal_restores_exactly_what_it_knows(tmp_path: Path, instant: str) -> None:
    here = str(Path(__file__).parent)
    done = subprocess.run([sys.executable, "-c", CRASH, str(tmp_path), here, "5", instant], check=False, timeout=60)
    assert done.returncode == 9
    parts = _journal(tmp_path / "journal")
    store = stores.open(tmp_path / "s.ome.zarr")
    assert store.rebuild_index(parts) == []
    known = {(p.level, p.row, p.col) for p in parts}
    assert known == set(places(store)[: 30 if instant == "before the index" else 25])
    ends = {p.shard: max(q.offset + q.length for q in parts if q.shard == p.shard) for p in parts}
    for name, end in ends.items():
        assert (store.path / name).stat().st_size == end, "garbage behind the last part is cut off"
    files = {str(f.relative_to(store.path)) for f in store.path.glob("0/*/c/**/*") if f.is_file()}
    assert files == set(ends), "shards that the journal does not know are gone"
    for level in range(len(store.levels)):
        np.testing.assert_array_equal(whole(store, level), expected(store, level, known))
    write(store, [place for place in places(store) if place not in known])
    store.commit()
    again = stores.open(store.path)
    for level in range(len(store.levels)):
        np.testing.assert_array_equal(whole(again, level), truth(store, level))


def _journal(path: Path) -> list[StoredPart]:
    import pickle

    parts: list[StoredPart] = []
    with path.open("rb") as file:
        while True:
            try:
                parts += pickle.load(file)
            except EOFError:
                return parts


def test_rebuilding_repairs_a_corrupt_index_and_changes_nothing_else(
    slide: tuple[SlideStore, list[StoredPart]],
) -> None:
    store, parts = slide
    before = {f: f.read_bytes() for f in store.path.rglob("*") if f.is_file()}
    with (store.path / SHARD).open("r+b") as file:
        file.write(b"garbage!")
    (store.path / f"{SHARD}.partial").write_bytes(b"left over")
    fresh = stores.open(store.path)
    with pytest.raises(StoreError, match="corrupt"):
        fresh.has(0, 0, 0)
    assert fresh.rebuild_index(parts) == []
    assert {f: f.read_bytes() for f in store.path.rglob("*") if f.is_file()} == before


@pytest.mark.parametrize("damage", ["flipped", "cut", "removed"])
def test_rebuilding_names_the_damaged_chunks_which_may_then_be_written_again(tmp_path: Path, damage: str) -> None:
    store = new_store(tmp_path / "s.ome.zarr", Gzip(), channels=2, described=planes(2))
    write(store, places(store))
    parts = store.commit()
    inside = sorted((p for p in parts if p.shard == SHARD), key=lambda p: p.offset)
    file, last = store.path / SHARD, inside[-1]
    if damage == "removed":
        file.unlink()
    else:
        data = bytearray(file.read_bytes())
        data[last.offset + 30] ^= 1
        file.write_bytes(data[: last.offset + 3] if damage == "cut" else data)
    fresh = stores.open(store.path)
    lost = fresh.rebuild_index(parts)
    bad = {(p.level, p.row, p.col) for p in lost}
    assert bad == {(p.level, p.row, p.col) for p in (inside if damage == "removed" else [last])}
    assert len(lost) == 2 * len(bad), "both channels of a chunk are lost together"
    np.testing.assert_array_equal(whole(fresh), expected(store, 0, set(places(store)) - bad))
    write(fresh, sorted(bad))
    fresh.commit()
    np.testing.assert_array_equal(whole(stores.open(store.path)), truth(store, 0))


def test_a_flipped_bit_in_a_jpeg_is_found_by_the_journal(tmp_path: Path) -> None:
    store = new_store(tmp_path / "s.ome.zarr", Jpeg())
    write(store, [(0, 0, 0)])
    (part,) = store.commit()
    data = bytearray((store.path / part.shard).read_bytes())
    data[-20] ^= 4
    (store.path / part.shard).write_bytes(data)
    assert stores.open(store.path).rebuild_index([part], verify=False) == []
    assert stores.open(store.path).rebuild_index([part]) == [part]


def test_the_journal_of_another_store_is_refused_and_nothing_is_touched(
    slide: tuple[SlideStore, list[StoredPart]],
) -> None:
    store, parts = slide
    foreign = StoredPart(0, 0, 0, 0, "../../elsewhere", 68, 10, 0)
    with pytest.raises(StoreError, match="does not belong"):
        store.rebuild_index([*parts, foreign])
    np.testing.assert_array_equal(whole(stores.open(store.path)), truth(store, 0))


FULL = """
import resource, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from store_slides import new_store, places, write
from edge_scanner import store as stores
from edge_scanner.errors import StoreError
from edge_scanner.store.codec import Uncompressed
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = new_store(Path(sys.argv[1]) / "s.ome.zarr", Uncompressed())
resource.setrlimit(resource.RLIMIT_FSIZE, (8000, resource.RLIM_INFINITY))
refused = []
for place in places(store):
    try:
        write(store, [place])
    except StoreError as error:
        refused.append(place)
store.commit()
assert refused and len(refused) < len(places(store)), refused
assert not any(store.has(*place) for place in refused)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
write(store, refused)
store.commit()
"""


def test_a_chunk_that_did_not_fit_on_the_disk_is_written_when_there_is_room(tmp_path: Path) -> None:
    here = str(Path(__file__).parent)
    subprocess.run([sys.executable, "-c", FULL, str(tmp_path), here], check=True, timeout=60)
    store = stores.open(tmp_path / "s.ome.zarr")
    for level in range(len(store.levels)):
        np.testing.assert_array_equal(whole(store, level), truth(store, level))
    sizes = {f: f.stat().st_size for f in store.path.glob("0/*/c/0/*/*")}
    parts = [p for k in range(len(store.levels)) for p in store.parts(k)]
    assert sum(sizes.values()) == 68 * len(sizes) + sum(p.length for p in parts), "a failed write leaves no hole"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_disk_is_told_from_other_failures(tmp_path: Path) -> None:
    with pytest.raises(DiskLowError, match="disk is full"), disk_errors(tmp_path):
        Path("/dev/full").write_bytes(b"x")
    with pytest.raises(StoreError, match="cannot be"), disk_errors(tmp_path):
        tmp_path.write_bytes(b"x")


def test_a_shard_that_cannot_be_synced_counts_as_not_written(slide: tuple[SlideStore, list[StoredPart]]) -> None:
    store = new_store(slide[0].path.with_name("other.ome.zarr"), Gzip())
    write(store, [(0, 0, 0), (0, 0, 2)])
    lost = store.path / SHARD
    lost.rename(store.path / "aside")
    with pytest.raises(StoreError):
        store.commit()
    (store.path / "aside").rename(lost)
    assert not store.has(0, 0, 0)
    assert not store.has(0, 0, 2)
    store.append(store.encode(chunk_of(store, 0, 0, 0)))
    assert [(p.row, p.col) for p in store.commit()] == [(0, 0)]
    np.testing.assert_array_equal(whole(stores.open(store.path)), expected(store, 0, {(0, 0, 0)}))

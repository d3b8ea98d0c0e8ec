"""Streaming into the store: whole or not at all, resumed after any end, each tile read about once, on a cluster too."""

import json
from itertools import product

import numpy as np
import pytest
import zarr
from fuse_scenes import cut, grid, listed, picture
from typer.testing import CliRunner

from edge_scanner.cli.app import build
from edge_scanner.errors import AbortedError, SourceError, UsageError
from edge_scanner.fuse.lazy import prepare
from edge_scanner.fuse.slide import fuse_slide
from edge_scanner.fuse.sources import open_source
from edge_scanner.fuse.tiles import TileReader, TileShape
from edge_scanner.fuse.write import pieces, write
from edge_scanner.geometry import Box
from edge_scanner.store import Channel, SlideMetadata, SlideStore
from edge_scanner.store.codec import Uncompressed

IMAGE = picture(300, 260)
PLACES = grid(300, 260, 60, 50)
NARROW_MB = 0.08
"""Tiles kept; not enough for the whole width at chunks of 16 px, so there are bands."""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiles")
    listed(folder, cut(folder, IMAGE, PLACES, 60), PLACES)
    return folder


def everything(path):
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def levels(path):
    store = SlideStore.open(path)
    return [store.read(k, Box(0, 0, level.height_px, level.width_px)) for k, level in enumerate(store.levels)]


@pytest.mark.parametrize("chunk", [16, 32, 128, 512])
def test_tiles_are_read_about_once_whatever_the_chunk(source, tmp_path, chunk):
    report = fuse_slide(open_source(source), tmp_path / "o.ome.zarr", chunk_px=chunk, memory_mb=1.0)
    assert np.array_equal(levels(tmp_path / "o.ome.zarr")[0], IMAGE)
    assert 1 <= report.loads_per_tile <= 1.5


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Twenty by twenty tiles, turned a little."""
    folder = tmp_path_factory.mktemp("many")
    files = [folder / f"{k:03d}.npy" for k in range(400)]
    for k, file in enumerate(files):
        np.save(file, np.full((60, 60), k % 200, np.uint8))
    return files, [np.array([[1, 0.01, 54 * (k % 20)], [-0.01, 1, 54 * (k // 20)], [0, 0, 1]]) for k in range(400)]


@pytest.mark.parametrize("chunk", [8, 16, 30, 60, 120, 240])
def test_with_room_for_twenty_tiles_each_of_many_is_read_about_once(many, chunk):
    fusion = prepare(*many, cache_mb=20 * 3600 / 1e6)
    for piece in pieces(fusion, chunk, 20 * 3600):
        for row, cols in piece.runs:
            for col in cols:
                for index in fusion.touching((row * chunk, col * chunk), (chunk, chunk)):
                    fusion.reader.tile(index)
    assert 1 <= fusion.reader.loads / 400 <= 1.5


def test_other_readers_see_the_same(source, tmp_path):
    fuse_slide(open_source(source), tmp_path / "o.ome.zarr", chunk_px=64)
    array = zarr.open_group(tmp_path / "o.ome.zarr", mode="r")["0/0"]
    assert np.array_equal(np.moveaxis(array[:], 0, -1), IMAGE)
    assert array.shards == (3, 512, 512)
    assert not (tmp_path / "o.ome.zarr.partial").exists()
    assert not (tmp_path / "o.ome.zarr" / ".fusing").exists()


@pytest.mark.parametrize("codec", ["gzip", "jpeg"])
@pytest.mark.parametrize("after", [1, 3])
def test_an_interrupted_fusion_goes_on_and_gives_the_same_bytes(source, tmp_path, after, codec):
    straight = tmp_path / "straight.ome.zarr"
    options = {"chunk_px": 16, "codec": codec, "memory_mb": NARROW_MB}
    whole = fuse_slide(open_source(source), straight, **options)
    out = tmp_path / "o" / "straight.ome.zarr"
    polled = iter(range(1000))
    with pytest.raises(AbortedError):
        fuse_slide(open_source(source), out, **options, cancelled=lambda: next(polled) >= after)
    assert not out.exists()
    report = fuse_slide(open_source(source), out, **options)
    assert (report.pieces, report.pieces_computed) == (whole.pieces, whole.pieces - after)
    for a, b in zip(levels(straight), levels(out), strict=True):
        assert np.array_equal(a, b)
    assert everything(out).keys() == everything(straight).keys()


def test_a_run_with_other_memory_starts_anew(source, tmp_path):
    out = tmp_path / "o.ome.zarr"
    polled = iter(range(1000))
    with pytest.raises(AbortedError):
        fuse_slide(open_source(source), out, chunk_px=16, memory_mb=NARROW_MB, cancelled=lambda: next(polled) >= 2)
    report = fuse_slide(open_source(source), out, chunk_px=16)
    assert report.pieces == report.pieces_computed
    assert np.array_equal(levels(out)[0], IMAGE)


def test_wide_memory_reads_each_tile_once(source, tmp_path):
    assert fuse_slide(open_source(source), tmp_path / "o.ome.zarr", chunk_px=16).loads_per_tile == 1


def test_a_torn_end_is_cut_off_and_done_again(source, tmp_path):
    out = tmp_path / "o.ome.zarr"
    polled = iter(range(1000))
    with pytest.raises(AbortedError):
        fuse_slide(open_source(source), out, chunk_px=16, cancelled=lambda: next(polled) >= 2)
    partial = tmp_path / "o.ome.zarr.partial"
    shard = sorted(p for p in (partial / "0" / "0" / "c").rglob("*") if p.is_file())[-1]
    data = bytearray(shard.read_bytes())
    data[:8] = b"\xff" * 8
    shard.write_bytes(bytes(data) + b"half a chunk")
    fuse_slide(open_source(source), out, chunk_px=16)
    assert np.array_equal(levels(out)[0], IMAGE)


def test_other_work_does_not_go_on_with_it(source, tmp_path):
    out = tmp_path / "o.ome.zarr"
    polled = iter(range(1000))
    with pytest.raises(AbortedError):
        fuse_slide(open_source(source), out, chunk_px=16, cancelled=lambda: next(polled) >= 2)
    report = fuse_slide(open_source(source), out, chunk_px=32)
    assert report.pieces == report.pieces_computed
    assert np.array_equal(levels(out)[0], IMAGE)


def test_pieces_cover_every_chunk_once_and_are_whole_shards():
    tiles = [np.zeros((50, 60), np.uint8)] * 12
    transforms = [np.array([[1, 0, 47 * (k % 4)], [0, 1, 41 * (k // 4)], [0, 0, 1]]) for k in range(12)]
    fusion = prepare(tiles, transforms)
    for chunk_px, cache_bytes in product((2, 4, 10, 64, 1000), (10**4, 10**6)):
        seen = [(r, c) for p in pieces(fusion, chunk_px, cache_bytes) for r, cols in p.runs for c in cols]
        rows, cols = (-(-n // chunk_px) for n in fusion.extent)
        assert len(seen) == len(set(seen)) == rows * cols
        assert all(p.rows[0] % 8 == p.cols[0] % 8 == 0 for p in pieces(fusion, chunk_px, cache_bytes))


def test_an_existing_output_stays(source, tmp_path):
    out = tmp_path / "o.ome.zarr"
    out.mkdir()
    (out / "zarr.json").write_text("{}")
    with pytest.raises(UsageError, match="exists"):
        fuse_slide(open_source(source), out)
    assert [p.name for p in tmp_path.iterdir()] == ["o.ome.zarr"]
    fuse_slide(open_source(source), out, overwrite=True)
    assert np.array_equal(levels(out)[0], IMAGE)


def test_a_listing_beside_the_output_is_not_replaced(tmp_path):
    names = cut(tmp_path, IMAGE, PLACES, 60)
    listed(tmp_path, names, PLACES)
    (tmp_path / "tiles.csv").rename(tmp_path / "positions.csv")
    with pytest.raises(UsageError, match="would be replaced"):
        fuse_slide(open_source(tmp_path), tmp_path / "o.ome.zarr")


@pytest.mark.parametrize("name", ["positions.csv", "layout.svg"])
def test_the_command_replaces_its_own_drawing_and_table_only(source, tmp_path, name):
    """Twice into one folder is fine; a table or drawing of somebody else, or the list that is read, is not."""
    assert command("fuse", source, tmp_path / "a.ome.zarr").exit_code == 0
    assert command("fuse", source, tmp_path / "b.ome.zarr").exit_code == 0
    (tmp_path / name).write_text("file,z_um\na.png,3.5\n")
    refused = command("fuse", source, tmp_path / "c.ome.zarr", "--register").exception
    assert isinstance(refused, UsageError)
    assert name in str(refused)
    assert (tmp_path / name).read_text() == "file,z_um\na.png,3.5\n"
    assert not list(tmp_path.glob("c.*"))


def test_the_list_that_a_command_reads_stays_by_whatever_way_it_is_named(tmp_path):
    names = cut(tmp_path, IMAGE, PLACES, 60)
    listed(tmp_path, names, PLACES)
    before = (tmp_path / "tiles.csv").rename(tmp_path / "positions.csv").read_bytes()
    (tmp_path / "tiles.csv").symlink_to("positions.csv")
    (tmp_path / "link").symlink_to(tmp_path)
    for way in (tmp_path, tmp_path / "positions.csv", tmp_path / "link" / "positions.csv", tmp_path / "tiles.csv"):
        for out in (tmp_path, tmp_path / "link"):
            refused = command("fuse", way, out / "o.ome.zarr", "--register").exception
            assert isinstance(refused, UsageError)
            assert "would be replaced" in str(refused)
    assert (tmp_path / "positions.csv").read_bytes() == before


def test_registration_finds_the_places_again(tmp_path):
    """Tiles of a smooth picture listed up to some pixels wrong."""
    rng = np.random.default_rng(4)
    image = picture(900, 1100)
    places = grid(900, 1100, 256, 200)
    wrong = [
        (y + int(dy), x + int(dx))
        for (y, x), (dy, dx) in zip(places, rng.integers(-6, 7, (len(places), 2)), strict=True)
    ]
    listed(tmp_path, cut(tmp_path, image, places, 256), wrong)
    report = fuse_slide(open_source(tmp_path), tmp_path / "o" / "o.ome.zarr", register=True)
    rows = [line.split(",") for line in (tmp_path / "o" / "positions.csv").read_text().splitlines()[1:]]
    found = np.array([(float(y), float(x)) for _, x, y in rows])
    off = found - np.array(places)
    assert np.abs(off - off.mean(axis=0)).max() < 0.1
    assert report.edges >= len(places)
    assert report.residual_px_p95 < 0.1


def command(*words):
    return CliRunner().invoke(build(["fuse"]), [str(w) for w in words])


def test_the_command_tells_in_json(source, tmp_path):
    done = command("fuse", source, tmp_path / "o.ome.zarr", "--register", "--json", "--chunk", 64)
    assert done.exit_code == 0
    told = json.loads(done.stdout)
    assert {"tiles", "edges", "residual_px_p50", "residual_px_p95", "wall_s", "peak_rss_mib"} <= told.keys()
    assert told["tiles"] == len(PLACES)
    assert (tmp_path / "positions.csv").is_file()


@pytest.mark.parametrize(
    "words", [["--blend", "best"], ["--chunk", "7"], ["--codec", "bzip2"], ["--scheduler", "tcp://127.0.0.1:1"]]
)
def test_wrong_words_leave_nothing(source, tmp_path, words):
    done = command("fuse", source, tmp_path / "o.ome.zarr", *words)
    assert done.exit_code != 0
    assert list(tmp_path.iterdir()) == []


def test_a_missing_tile_leaves_nothing(tmp_path):
    names = cut(tmp_path / "t", IMAGE, PLACES, 60)
    listed(tmp_path / "t", names, PLACES)
    (tmp_path / "t" / names[5]).unlink()
    done = command("fuse", tmp_path / "t", tmp_path / "o" / "o.ome.zarr")
    assert done.exit_code != 0
    assert "t005.tif is missing" in str(done.exception)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("number", [5, -1])
def test_a_damaged_tile_leaves_nothing_half_written(tmp_path, number):
    names = cut(tmp_path / "t", IMAGE, PLACES, 60)
    listed(tmp_path / "t", names, PLACES)
    data = (tmp_path / "t" / names[number]).read_bytes()
    (tmp_path / "t" / names[number]).write_bytes(data[: len(data) // 2])
    done = command("fuse", tmp_path / "t", tmp_path / "o" / "o.ome.zarr", "--chunk", 16)
    assert isinstance(done.exception, SourceError)
    assert names[number] in str(done.exception)
    assert list((tmp_path / "o").iterdir()) == []


@pytest.mark.parametrize("dtype, channels, background", [("uint8", 3, 255), ("uint16", 3, 65535), ("uint8", 1, 0)])
def test_glass_lies_where_no_tile_does(tmp_path, dtype, channels, background):
    pixels = np.full((40, 40, channels), 7, dtype)
    places = [(0, 0), (0.5, 60.5)]
    for number in range(2):
        np.save(tmp_path / f"{number}.npy", pixels)
    rows = [f"{number}.npy,{x},{y}" for number, (y, x) in enumerate(places)]
    (tmp_path / "tiles.csv").write_text("\n".join(["file,x_px,y_px", *rows]) + "\n")
    fuse_slide(open_source(tmp_path), tmp_path / "o" / "o.ome.zarr", chunk_px=16)
    mosaic = levels(tmp_path / "o" / "o.ome.zarr")[0]
    assert np.unique(mosaic).tolist() == sorted({7, background})
    assert (mosaic[:40, :40] == 7).all()
    assert (mosaic[:, 41:60] == background).all()


def test_what_is_no_slide_is_never_replaced(source, tmp_path):
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "precious.txt").write_text("kept")
    for out in (notes, source, source.parent):
        with pytest.raises(UsageError, match=r"no OME-Zarr|is the source"):
            fuse_slide(open_source(source), out, overwrite=True)
    assert (notes / "precious.txt").read_text() == "kept"
    assert len(open_source(source).tiles) == len(PLACES)


class Noting(TileReader):
    """Notes what others hold of its bound, and what it holds then."""

    def leave(self, nbytes):
        super().leave(nbytes)
        self.noted = [*getattr(self, "noted", []), (nbytes, self.held_bytes)]


@pytest.mark.parametrize("across", [10, 40])
@pytest.mark.parametrize("chunk_px", [16, 60])
def test_tiles_and_the_pyramid_share_one_bound_however_wide_the_mosaic(many, tmp_path, across, chunk_px):
    files, bound = many[0][: 5 * across], 150_000
    transforms = [
        np.array([[1, 0, 54 * (k % across)], [0, 1, 54 * (k // across)], [0, 0, 1]]) for k in range(len(files))
    ]
    fusion = prepare(files, transforms)
    fusion.reader = Noting(files, TileShape((60, 60), np.dtype(np.uint8)), bound)
    metadata = SlideMetadata(name="s", pixel_size_um=1.0, channels=(Channel("a"),))
    write(
        fusion, tmp_path / "o.ome.zarr", chunk_px=chunk_px, codec=Uncompressed(), metadata=metadata, cache_bytes=bound,
        identity="s",
    )  # fmt: skip
    assert max(left for left, _ in fusion.reader.noted) >= chunk_px * 540 / 4  # a row of chunks, halved
    assert max(left + held for left, held in fusion.reader.noted) <= bound
    assert fusion.reader.loads <= 1.5 * len(files)

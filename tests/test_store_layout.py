"""What lies on the disk: levels, number of files, metadata that validators accept."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_slides import RGB, metadata, new_store, planes

from edge_scanner import store as stores
from edge_scanner.errors import StoreError
from edge_scanner.store import EncodedChunk
from edge_scanner.store.codec import Gzip, Jpeg, Zstd
from edge_scanner.store.layout import Layout


def layout(height_px: int, width_px: int, chunk_px: int = 512, shard_chunks: int = 8, channels: int = 3) -> Layout:
    described = RGB if channels == 3 else planes(channels)
    kind = np.dtype("uint8")
    return Layout(height_px, width_px, channels, kind, chunk_px, shard_chunks, 255, Gzip(), metadata(described))


@settings(deadline=None)
@given(height=st.integers(1, 300_000), width=st.integers(1, 300_000), chunk=st.sampled_from([256, 512, 1024]))
def test_each_level_halves_rounded_up_until_one_chunk_holds_it(height: int, width: int, chunk: int) -> None:
    levels = layout(height, width, chunk).levels()
    assert (levels[0].height_px, levels[0].width_px, levels[0].downsample) == (height, width, 1)
    for finer, coarser in itertools.pairwise(levels):
        assert (coarser.height_px, coarser.width_px) == (math.ceil(finer.height_px / 2), math.ceil(finer.width_px / 2))
        assert coarser.downsample == 2 * finer.downsample
        assert (coarser.rows, coarser.cols) == (math.ceil(finer.rows / 2), math.ceil(finer.cols / 2))
    assert max(levels[-1].height_px, levels[-1].width_px) <= chunk
    assert all(max(level.height_px, level.width_px) > chunk for level in levels[:-1])


@settings(deadline=None)
@given(level=st.integers(0, 9), row=st.integers(0, 999), col=st.integers(0, 999), data=st.data())
def test_every_part_has_its_own_place(level: int, row: int, col: int, data: st.DataObject) -> None:
    one = layout(5000, 5000, channels=4, shard_chunks=data.draw(st.integers(1, 9)))
    channel = data.draw(st.integers(0, 3))
    slot = one.slot_of(row, col, channel)
    assert 0 <= slot < one.slots
    assert one.chunk_at(one.shard_of(level, row, col), slot) == (level, row, col, channel)


def test_a_large_slide_is_few_files(tmp_path: Path) -> None:
    one = layout(60_000, 60_000)
    store = stores.create(
        tmp_path / "s.ome.zarr",
        height_px=60_000,
        width_px=60_000,
        channels=3,
        dtype="uint8",
        codec=Gzip(),
        fill_value=255,
        metadata=metadata(),
    )
    for k, level in enumerate(one.levels()):
        for row in range(level.rows):
            for col in range(level.cols):
                store.append(EncodedChunk(k, row, col, (b"x",)))
    store.commit()
    assert sum(len(list(store.parts(k))) for k in range(len(store.levels))) == sum(
        level.rows * level.cols for level in store.levels
    )
    shards = sum(math.ceil(level.rows / 8) * math.ceil(level.cols / 8) for level in store.levels)
    assert store.file_count == shards + len(store.levels) + 3 + 1
    assert store.file_count < 1000


def test_the_documents_say_what_ome_zarr_asks_for(tmp_path: Path) -> None:
    store = new_store(tmp_path / "s.ome.zarr", Jpeg())
    read = {folder: json.loads((store.path / folder / "zarr.json").read_text()) for folder in ("", "OME", "0", "0/0")}
    assert read[""]["attributes"]["ome"]["bioformats2raw.layout"] == 3
    assert read["OME"]["attributes"]["ome"] == {"version": "0.5", "series": ["0"]}
    assert read["0/0"]["dimension_names"] == ["c", "y", "x"]
    image = read["0"]["attributes"]["ome"]
    assert image["version"] == "0.5"
    (multiscale,) = image["multiscales"]
    assert [axis["name"] for axis in multiscale["axes"]] == ["c", "y", "x"]
    for k, dataset in enumerate(multiscale["datasets"]):
        scale, translation = dataset["coordinateTransformations"]
        assert dataset["path"] == str(k)
        assert scale == {"type": "scale", "scale": [1.0, 0.5 * 2**k, 0.5 * 2**k]}
        shift = (2**k - 1) / 2 * 0.5
        assert translation == {"type": "translation", "translation": [0.0, 250.0 + shift, 1000.0 + shift]}
    assert [c["label"] for c in image["omero"]["channels"]] == ["Red", "Green", "Blue"]
    root = read[""]["attributes"]["ome"]["multiscales"][0]["datasets"]
    assert [dataset["path"] for dataset in root] == [f"0/{k}" for k in range(len(store.levels))]
    assert "<Image" in (store.path / "OME" / "METADATA.ome.xml").read_text()


@pytest.mark.parametrize(
    ("codec", "dtype", "channels"), [(Jpeg(81, "420"), "uint8", 0), (Gzip(3), "uint16", 0), (Zstd(2), "uint8", 5)]
)
def test_a_store_is_opened_as_it_was_created(tmp_path: Path, codec: stores.Codec, dtype: str, channels: int) -> None:
    described = planes(channels) if channels else RGB
    made = new_store(tmp_path / "s.ome.zarr", codec, dtype=dtype, channels=channels or 3, described=described)
    found = stores.open(made.path)
    assert found.layout == made.layout
    assert found.levels == made.levels
    assert (found.channels, found.dtype, found.chunk_px, found.shard_chunks) == (channels or 3, dtype, 32, 2)
    assert (found.codec, found.fill_value, found.metadata) == (codec, 255, metadata(described))


@pytest.mark.parametrize(
    "wrong",
    [
        {"codec": Jpeg(), "dtype": "uint16"},
        {"codec": Jpeg(), "channels": 1},
        {"codec": Jpeg(), "channels": 3, "described": planes(3)},
        {"codec": Gzip(), "dtype": "float32"},
        {"codec": Gzip(), "dtype": "int8"},
        {"codec": Gzip(), "channels": 2},
        {"codec": Gzip(), "channels": 3, "described": planes(2)},
        {"codec": Gzip(), "height_px": 0},
        {"codec": Gzip(), "fill_value": 256},
    ],
)
def test_what_cannot_be_stored_is_refused_and_leaves_nothing(tmp_path: Path, wrong: dict) -> None:
    with pytest.raises(StoreError):
        new_store(tmp_path / "s.ome.zarr", **wrong)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["folder", "file", "dangling link"])
def test_an_existing_path_is_refused_and_kept(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "s.ome.zarr"
    {"folder": path.mkdir, "file": path.touch, "dangling link": lambda: path.symlink_to("nowhere")}[kind]()
    with pytest.raises(StoreError, match="exists already"):
        new_store(path, Gzip())
    assert [entry.name for entry in tmp_path.iterdir()] == ["s.ome.zarr"]


def test_what_an_interrupted_creation_left_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "s.ome.zarr.partial" / "0").mkdir(parents=True)
    new_store(tmp_path / "s.ome.zarr", Gzip())
    assert [entry.name for entry in tmp_path.iterdir()] == ["s.ome.zarr"]


def test_a_file_where_a_folder_should_be_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be"):
        new_store(tmp_path / "file" / "s.ome.zarr", Gzip())

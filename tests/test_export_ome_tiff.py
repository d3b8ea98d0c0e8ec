"""The export: the same bytes, one file, whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import tifffile
from export_slides import LABEL, contents, level, make, slide
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_scanner.errors import AbortedError, DiskLowError, ScannerError, StoreError, UsageError
from edge_scanner.export import ExportReport, to_ome_tiff
from edge_scanner.store import SlideStore
from edge_scanner.store.codec import Gzip, Jpeg, Uncompressed

KEPT = ("jpeg", "gzip", "none", "uint16 channels")


def tiles(path: Path, store: SlideStore) -> Iterator[tuple[int, int, int, int, int, bytes]]:
    """Yield (level, row, col, plane, offset, bytes) of each tile, read by tifffile's own directory parser."""
    data = path.read_bytes()
    with tifffile.TiffFile(path) as tiff:
        for plane in range(store.layout.planes):
            pages = [tiff.pages[plane], *tiff.pages[plane].pages]
            for number, (page, size) in enumerate(zip(pages, store.levels, strict=True)):
                grid = product(range(size.rows), range(size.cols))
                for (row, col), offset, count in zip(grid, page.dataoffsets, page.databytecounts, strict=True):
                    yield number, row, col, plane, offset, data[offset : offset + count]


@pytest.mark.parametrize("kind", KEPT)
def test_every_tile_is_its_chunk_and_the_rest_share_one_background(kind: str, tmp_path: Path) -> None:
    store = make(kind, tmp_path / "s.ome.zarr")
    before = contents(store.path)
    report = to_ome_tiff(store.path, tmp_path / "s.ome.tif")
    shared, copied = set(), 0
    for number, row, col, plane, offset, tile in tiles(tmp_path / "s.ome.tif", store):
        chunk = store.encoded(number, row, col, plane)
        if chunk is None:
            shared.add((offset, len(tile)))
            continue
        copied += 1
        if isinstance(store.codec, Gzip):
            assert len(zlib.decompress(tile)) == np.prod(store.layout.part_shape) * store.dtype.itemsize  # its Adler-32
            tile, chunk = tile[2:-4], chunk[20:-8]
        assert hashlib.sha256(tile).digest() == hashlib.sha256(chunk).digest()
    assert len(shared) == 1
    assert report == ExportReport(
        (tmp_path / "s.ome.tif").stat().st_size, len(store.levels), report.wall_s, copied, 0, report.peak_rss_mib
    )
    assert contents(store.path) == before


def test_levels_in_the_main_chain_share_the_tiles_of_the_sub_directories(tmp_path: Path) -> None:
    store = make("jpeg", tmp_path / "s.ome.zarr")
    to_ome_tiff(store.path, tmp_path / "s.ome.tif")
    with tifffile.TiffFile(tmp_path / "s.ome.tif") as tiff:
        main = {page.shape: page.dataoffsets for page in map(tiff.pages.__getitem__, range(1, len(tiff.pages)))}
        below = {page.shape: page.dataoffsets for page in tiff.pages[0].pages}
        assert main == below
        assert tiff.is_bigtiff


@pytest.mark.parametrize(("kind", "compression"), [("zstd", "zlib"), ("gzip", "none"), ("uint16 channels", "zstd")])
def test_other_lossless_compressions_keep_every_pixel(kind: str, compression: str, tmp_path: Path) -> None:
    store = make(kind, tmp_path / "s.ome.zarr")
    report = to_ome_tiff(store.path, tmp_path / "s.ome.tif", compression=compression)
    assert (report.copied_tiles, report.encoded_tiles > 0) == (0, True)
    with tifffile.TiffFile(tmp_path / "s.ome.tif") as tiff:
        for number, series in enumerate(tiff.series[0].levels):
            pixels = series.asarray()
            true = level(store, number)
            np.testing.assert_array_equal(pixels, true if store.layout.rgb else np.moveaxis(true, -1, 0), strict=True)


def test_jpeg_of_a_lossless_slide_is_close_and_smaller_at_a_lower_quality(tmp_path: Path) -> None:
    store = make("gzip", tmp_path / "s.ome.zarr")
    sizes = []
    for quality in (95, 50):
        out = tmp_path / f"{quality}.ome.tif"
        sizes.append(to_ome_tiff(store.path, out, compression="jpeg", quality=quality).bytes)
    error = np.abs(tifffile.imread(tmp_path / "95.ome.tif").astype(int) - level(store, 0))
    assert np.median(error) <= 3
    assert sizes[1] < sizes[0]


@settings(max_examples=12, deadline=None)
@given(
    st.integers(1, 130),
    st.integers(1, 130),
    st.sampled_from([Jpeg(90, "444"), Gzip(), Uncompressed()]),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_any_size_and_any_holes_read_back_equal(height: int, width: int, codec, rgb: bool, random) -> None:
    rgb = rgb or codec.name == "jpeg"
    with tempfile.TemporaryDirectory() as folder:
        places = [(k, r, c) for k in range(5) for r in range(9) for c in range(9)]
        absent = frozenset(p for p in places if random.random() < 0.3)
        store = slide(
            Path(folder) / "s.ome.zarr",
            codec,
            channels=3 if rgb else 2,
            rgb=rgb,
            height_px=height,
            width_px=width,
            chunk_px=16,
            absent=absent,
        )
        to_ome_tiff(store.path, Path(folder) / "s.ome.tif")
        with tifffile.TiffFile(Path(folder) / "s.ome.tif") as tiff:
            assert len(tiff.series[0].levels) == len(store.levels)
            for number, series in enumerate(tiff.series[0].levels):
                true = level(store, number)
                seen = series.asarray(squeeze=False).reshape(true.shape if rgb else np.moveaxis(true, -1, 0).shape)
                np.testing.assert_array_equal(seen if rgb else np.moveaxis(seen, 0, -1), true)


def test_progress_rises_to_one_and_a_cancelled_export_leaves_nothing(tmp_path: Path) -> None:
    store = make("gzip", tmp_path / "s.ome.zarr")
    seen: list[float] = []
    to_ome_tiff(store.path, tmp_path / "s.ome.tif", progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    count = iter(range(len(seen)))
    with pytest.raises(AbortedError):
        to_ome_tiff(store.path, tmp_path / "t.ome.tif", cancelled=lambda: next(count) == len(seen) // 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.ome.tif", "s.ome.zarr"]


@contextmanager
def refused(store: SlideStore, folder: Path, kind: type[ScannerError], match: str) -> Iterator[None]:
    """Expect one clear error, an untouched source and no new file."""
    before, names = contents(store.path), sorted(folder.rglob("*"))
    with pytest.raises(kind, match=match) as caught:
        yield
    assert "\n" not in str(caught.value)
    assert contents(store.path) == before
    assert sorted(folder.rglob("*")) == names


def test_zstd_is_not_kept_and_the_advice_names_what_to_use(tmp_path: Path) -> None:
    store = make("zstd", tmp_path / "s.ome.zarr")
    with refused(store, tmp_path, UsageError, "--compression zlib"):
        to_ome_tiff(store.path, tmp_path / "s.ome.tif")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"compression": "lzma"}, "no compression"),
        ({"quality": 90}, "belongs to"),
        ({"compression": "jpeg", "quality": 0}, "1 to 100"),
        ({"compression": "jpeg"}, "8-bit RGB only"),
        ({"label": LABEL[..., 0]}, "label image"),
    ],
)
def test_arguments_that_cannot_be(arguments: dict[str, object], match: str, tmp_path: Path) -> None:
    store = make("uint16 channels", tmp_path / "s.ome.zarr")
    with refused(store, tmp_path, UsageError, match):
        to_ome_tiff(store.path, tmp_path / "s.ome.tif", **arguments)


def test_chunks_that_cannot_be_tiles(tmp_path: Path) -> None:
    store = slide(tmp_path / "s.ome.zarr", Gzip(), chunk_px=100)
    with refused(store, tmp_path, UsageError, "multiple of 16"):
        to_ome_tiff(store.path, tmp_path / "s.ome.tif")


def test_an_existing_output_is_replaced_only_on_demand(tmp_path: Path) -> None:
    store = make("jpeg", tmp_path / "s.ome.zarr")
    out = tmp_path / "s.ome.tif"
    out.write_bytes(b"precious")
    with refused(store, tmp_path, UsageError, "exists"):
        to_ome_tiff(store.path, out)
    assert out.read_bytes() == b"precious"
    to_ome_tiff(store.path, out, overwrite=True)
    assert tifffile.TiffFile(out).is_ome


def test_outputs_that_cannot_be_written(tmp_path: Path) -> None:
    store = make("jpeg", tmp_path / "s.ome.zarr")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"")
    with refused(store, tmp_path, UsageError, "is a directory"):
        to_ome_tiff(store.path, tmp_path / "folder", overwrite=True)
    with refused(store, tmp_path, StoreError, "no folder"):
        to_ome_tiff(store.path, tmp_path / "nowhere" / "s.ome.tif")
    with refused(store, tmp_path, StoreError, "no folder"):
        to_ome_tiff(store.path, tmp_path / "file" / "s.ome.tif")


def test_two_exports_to_one_name_do_not_mix(tmp_path: Path) -> None:
    store = make("jpeg", tmp_path / "s.ome.zarr")
    partial = tmp_path / "s.ome.tif.partial"
    with partial.open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        other.write(b"half")
        other.flush()
        with refused(store, tmp_path, StoreError, "Another process"):
            to_ome_tiff(store.path, tmp_path / "s.ome.tif")
        assert partial.read_bytes() == b"half"
    to_ome_tiff(store.path, tmp_path / "s.ome.tif")  # what a killed export left behind is no obstacle
    assert not partial.exists()


@pytest.mark.parametrize("kind", ["jpeg", "gzip"])
def test_damaged_stores(kind: str, tmp_path: Path) -> None:
    whole = make(kind, tmp_path / "whole.ome.zarr")

    def damaged(name: str) -> tuple[SlideStore, Path]:
        shutil.copytree(whole.path, tmp_path / name / "s.ome.zarr")
        return SlideStore.open(tmp_path / name / "s.ome.zarr"), tmp_path / name

    store, folder = damaged("truncated")
    shard = store.path / "0/0/c/0/1/1"
    os.truncate(shard, shard.stat().st_size - 10)
    with refused(store, folder, StoreError, "truncated"):
        to_ome_tiff(store.path, folder / "s.ome.tif")
    store, folder = damaged("index")
    with (store.path / "0/0/c/0/0/0").open("r+b") as file:
        file.write(b"\x07")
    with refused(store, folder, StoreError, "corrupt"):
        to_ome_tiff(store.path, folder / "s.ome.tif")
    store, folder = damaged("level")
    shutil.rmtree(store.path / "0/1")
    with refused(store, folder, StoreError, "1"):
        to_ome_tiff(store.path, folder / "s.ome.tif")
    store, folder = damaged("dtype")
    document = store.path / "0/1/zarr.json"
    document.write_text(document.read_text().replace("uint8", "uint16"))
    with refused(store, folder, StoreError, "Level 1"):
        to_ome_tiff(store.path, folder / "s.ome.tif")


def test_a_file_size_limit_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    store = make("none", tmp_path / "s.ome.zarr")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with refused(store, tmp_path, StoreError, os.strerror(errno.EFBIG)):
            to_ome_tiff(store.path, tmp_path / "s.ome.tif")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(small)]
    if not shutil.which("mount") or subprocess.run(mounted, capture_output=True, check=False).returncode:
        pytest.skip("a small file system cannot be mounted here (needs root)")
    try:
        for kind, compression in (("none", "keep"), ("gzip", "none")):
            store = make(kind, tmp_path / f"{kind}.ome.zarr")
            with refused(store, small, DiskLowError, "disk became full"):
                to_ome_tiff(store.path, small / "s.ome.tif", compression=compression)
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_the_export_of_a_daemon_runs_below_normal_priority(tmp_path: Path) -> None:
    """Whatever priority the daemon has: its child looks at its own when it is done."""
    source, out = tmp_path / "s.ome.zarr", tmp_path / "o.ome.tif"
    slide(source, Gzip())
    child = f"""if True:
        import os
        from edge_scanner.cli.files import export
        export({source!r}, {out!r}, "keep", None, False, True, os.getppid())
        print(os.getpriority(os.PRIO_PROCESS, 0))
    """.replace("PosixPath", "__import__('pathlib').Path")
    done = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, timeout=120)
    assert out.is_file(), done.stderr
    assert int(done.stdout.split()[-1]) >= 5

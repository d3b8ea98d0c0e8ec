"""Rechunking: the same pixels in other chunks, within the memory bound, whole or not at all."""

from __future__ import annotations

import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from export_slides import contents, level, make, slide
from store_slides import new_store

from edge_scanner.errors import AbortedError, ScannerError, StoreError, UsageError
from edge_scanner.export import to_ome_tiff
from edge_scanner.rechunk import rechunk
from edge_scanner.store import SlideStore
from edge_scanner.store.codec import Gzip
from edge_scanner.tile import Chunk


def arrays(path: Path, store: SlideStore) -> list[zarr.Array]:
    return [zarr.open_array(path / "0" / str(k), mode="r") for k in range(len(store.levels))]


@pytest.mark.parametrize("kind", ["gzip", "zstd", "uint16 channels"])
@pytest.mark.parametrize("chunk", [(128,), (48,), (96, 64, 32, 16)])
def test_pixels_stay_and_chunks_become_what_was_asked(kind: str, chunk: tuple[int, ...], tmp_path: Path) -> None:
    store = make(kind, tmp_path / "s.ome.zarr")
    before = contents(store.path)
    seen: list[float] = []
    report = rechunk(store.path, tmp_path / "r.ome.zarr", chunk=chunk, memory_mb=4, progress=seen.append)
    sizes = chunk * len(store.levels) if len(chunk) == 1 else chunk
    planes = 3 if store.layout.rgb else 1
    for number, (array, size) in enumerate(zip(arrays(tmp_path / "r.ome.zarr", store), sizes, strict=True)):
        assert array.chunks == (planes, size, size)
        assert array.shards == (store.channels, *[report.shard_px[number]] * 2)
        np.testing.assert_array_equal(np.moveaxis(array[:], 0, -1), level(store, number), strict=True)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    assert contents(store.path) == before


@pytest.mark.parametrize("chunk", [32, 128])
def test_one_size_for_all_levels_can_be_opened_and_exported(chunk: int, tmp_path: Path) -> None:
    store = make("gzip", tmp_path / "s.ome.zarr")
    rechunk(store.path, tmp_path / "r.ome.zarr", chunk=[chunk])
    again = SlideStore.open(tmp_path / "r.ome.zarr")
    assert (again.levels[-1].height_px, again.chunk_px) == (store.levels[-1].height_px, chunk)
    with pytest.raises(StoreError, match="--compression zlib"):
        to_ome_tiff(again.path, tmp_path / "r.ome.tif")
    to_ome_tiff(again.path, tmp_path / "r.ome.tif", compression="zlib")
    with tifffile.TiffFile(tmp_path / "r.ome.tif") as tiff:
        for number, series in enumerate(tiff.series[0].levels):
            np.testing.assert_array_equal(series.asarray(), level(store, number), strict=True)


def test_sizes_that_differ_are_for_other_readers(tmp_path: Path) -> None:
    store = make("gzip", tmp_path / "s.ome.zarr")
    rechunk(store.path, tmp_path / "r.ome.zarr", chunk=[128, 64, 32, 16])
    with pytest.raises(StoreError, match="another shape, type or codec"):
        SlideStore.open(tmp_path / "r.ome.zarr")


def test_jpeg_stays_close(tmp_path: Path) -> None:
    store = make("jpeg", tmp_path / "s.ome.zarr")
    rechunk(store.path, tmp_path / "r.ome.zarr", chunk=[160])
    seen = np.moveaxis(arrays(tmp_path / "r.ome.zarr", store)[0][:], 0, -1).astype(int)
    assert np.median(np.abs(seen - level(store, 0))) <= 2


def test_metadata_is_still_valid(tmp_path: Path) -> None:
    models = pytest.importorskip("ome_zarr_models", reason="ome-zarr-models is not installed (extra `readers`)")
    store = make("gzip", tmp_path / "s.ome.zarr")
    rechunk(store.path, tmp_path / "r.ome.zarr", chunk=[32])
    image = models.open_ome_zarr(zarr.open_group(tmp_path / "r.ome.zarr" / "0", mode="r"))
    assert len(image.attributes.ome.multiscales[0].datasets) == len(store.levels)


def test_nothing_is_stored_where_nothing_was_scanned(tmp_path: Path) -> None:
    places = frozenset((k, r, c) for k in range(5) for r in range(9) for c in range(9))
    store = slide(tmp_path / "s.ome.zarr", Gzip(), absent=places - {(0, 0, 0)})
    rechunk(store.path, tmp_path / "r.ome.zarr", chunk=[32])
    shards = [p for p in (tmp_path / "r.ome.zarr" / "0").rglob("c/*/*/*") if p.is_file()]
    assert [str(p.relative_to(tmp_path / "r.ome.zarr")) for p in shards] == ["0/0/c/0/0/0"]


@pytest.mark.parametrize(
    ("arguments", "kind", "match"),
    [
        ({"chunk": [64, 32]}, UsageError, "2 chunk sizes do not fit"),
        ({"chunk": []}, UsageError, "0 chunk sizes"),
        ({"chunk": [8]}, UsageError, "8 px cannot be"),
        ({"chunk": [-1]}, UsageError, "cannot be"),
        ({"chunk": [4096], "memory_mb": 64}, UsageError, "need 302 MB"),
        ({"chunk": [64], "cancelled": lambda: True}, AbortedError, "cancelled"),
    ],
)
def test_refusals_leave_nothing(
    arguments: dict[str, object], kind: type[ScannerError], match: str, tmp_path: Path
) -> None:
    store = make("gzip", tmp_path / "s.ome.zarr")
    with pytest.raises(kind, match=match):
        rechunk(store.path, tmp_path / "r.ome.zarr", **arguments)
    assert [p.name for p in tmp_path.iterdir()] == ["s.ome.zarr"]


def test_an_existing_output_is_replaced_only_on_demand(tmp_path: Path) -> None:
    store = make("gzip", tmp_path / "s.ome.zarr")
    (tmp_path / "r.ome.zarr").mkdir()
    (tmp_path / "r.ome.zarr" / "precious").touch()
    with pytest.raises(UsageError, match="exists"):
        rechunk(store.path, tmp_path / "r.ome.zarr", chunk=[32])
    with pytest.raises(UsageError, match="no OME-Zarr"):
        rechunk(store.path, tmp_path / "r.ome.zarr", chunk=[32], overwrite=True)
    assert (tmp_path / "r.ome.zarr" / "precious").exists()
    (tmp_path / "r.ome.zarr" / "zarr.json").touch()
    rechunk(store.path, tmp_path / "r.ome.zarr", chunk=[32], overwrite=True)
    assert not (tmp_path / "r.ome.zarr" / "precious").exists()
    with pytest.raises(StoreError):
        rechunk(tmp_path / "nowhere.ome.zarr", tmp_path / "t.ome.zarr", chunk=[32])


def noise(path: Path, side: int) -> Path:
    """Return a gzip store, without its lower levels, of pixels that do not compress."""
    store = new_store(path, Gzip(), height_px=side, width_px=side, chunk_px=512, shard_chunks=4)
    pixels = np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8)
    for row, col in product(range(side // 512), range(side // 512)):
        store.append(store.encode(Chunk(0, row, col, pixels)))
    store.commit()
    return path


def test_memory_stays_within_the_bound(tmp_path: Path) -> None:
    """Rechunk 50 MB of pixels in 24 MB more than a warm interpreter."""
    small, large = noise(tmp_path / "small.ome.zarr", 512), noise(tmp_path / "large.ome.zarr", 4096)
    script = (
        "import resource, sys\n"
        "from edge_scanner.rechunk import rechunk\n"
        "rechunk(sys.argv[1], sys.argv[1] + '.out', chunk=[128], memory_mb=1)\n"
        "warm = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "rechunk(sys.argv[2], sys.argv[2] + '.out', chunk=[256], memory_mb=24)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - warm) / 1024)\n"
    )
    command = [sys.executable, "-c", script, str(small), str(large)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 24

"""Independent readers and validators open the store: equal pixels or a documented refusal."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr
from store_slides import expected, new_store, places, planes, write

from edge_scanner.geometry import Box
from edge_scanner.store import SlideStore
from edge_scanner.store.codec import Gzip, Jpeg, Uncompressed, Zstd

KINDS = {
    "jpeg": {"codec": Jpeg(92, "420")},
    "gzip": {"codec": Gzip(6)},
    "zstd": {"codec": Zstd(3)},
    "none": {"codec": Uncompressed()},
    "gzip uint16 rgb": {"codec": Gzip(), "dtype": "uint16", "fill_value": 65535},
    "gzip uint16 4 channels": {"codec": Gzip(), "dtype": "uint16", "channels": 4, "described": planes(4)},
    "zstd mono": {"codec": Zstd(), "channels": 1, "fill_value": 0},
}
HOLE = (0, 1, 2)


@pytest.fixture(scope="module", params=KINDS)
def slide(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SlideStore:
    """Return a slide of odd size with one chunk that was never scanned."""
    store = new_store(tmp_path_factory.mktemp("slide") / "s.ome.zarr", **KINDS[request.param])
    write(store, [place for place in places(store) if place != HOLE])
    store.commit()
    return store


def pixels(store: SlideStore, level: int) -> np.ndarray:
    """Return (c, y, x) that a reader shall see; JPEG as our own reader sees it."""
    if store.codec.name == "jpeg":
        size = store.levels[level]
        return np.moveaxis(store.read(level, Box(0, 0, size.height_px, size.width_px)), -1, 0)
    return np.moveaxis(expected(store, level, set(places(store)) - {HOLE}), -1, 0)


def read_zarr(path: Path) -> np.ndarray:
    return zarr.open_array(path, mode="r")[:]


def read_tensorstore(path: Path) -> np.ndarray:
    tensorstore = pytest.importorskip("tensorstore", reason="tensorstore is not installed (extra `readers`)")
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}
    return np.asarray(tensorstore.open(spec, open=True, read=True).result().read().result())


def read_zarrs(path: Path) -> np.ndarray:
    pytest.importorskip("zarrs", reason="zarrs is not installed (extra `readers`)")
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        return zarr.open_array(path, mode="r")[:]


READERS: dict[str, Callable[[Path], np.ndarray]] = {
    "zarr-python": read_zarr,
    "tensorstore": read_tensorstore,
    "zarrs": read_zarrs,
}


@pytest.mark.filterwarnings("ignore:Array is unsupported by ZarrsCodecPipeline")  # then zarr-python itself decodes
@pytest.mark.parametrize("reader", READERS)
def test_array_readers_see_equal_pixels_or_refuse_jpeg(slide: SlideStore, reader: str) -> None:
    for level in range(len(slide.levels)):
        path = slide.path / "0" / str(level)
        if reader == "tensorstore" and slide.codec.name == "jpeg":
            READERS["zarr-python"](path)
            with pytest.raises(ValueError, match="jpeg"):
                READERS[reader](path)
        else:
            np.testing.assert_array_equal(READERS[reader](path), pixels(slide, level), strict=True)


BARE = """
import sys, numpy, zarr
assert "edge_scanner" not in sys.modules
a = zarr.open_group(sys.argv[1], mode="r")["0/0"]
numpy.save(sys.argv[2], a[:])
"""


def test_zarr_python_alone_reads_jpeg_through_the_entry_point(tmp_path: Path) -> None:
    store = new_store(tmp_path / "s.ome.zarr", Jpeg())
    write(store, places(store))
    store.commit()
    subprocess.run(
        [sys.executable, "-c", BARE, str(store.path), str(tmp_path / "seen.npy")], check=True, cwd=tmp_path, timeout=60
    )
    np.testing.assert_array_equal(np.load(tmp_path / "seen.npy"), pixels(store, 0), strict=True)


def test_zarr_python_writes_jpeg_with_the_same_codec(tmp_path: Path) -> None:
    ours = new_store(tmp_path / "s.ome.zarr", Jpeg(85, "444"))
    write(ours, places(ours))
    ours.commit()
    copy = zarr.create_array(
        tmp_path / "copy.zarr",
        shape=(3, 150, 203),
        shards=(3, 64, 64),
        chunks=(3, 32, 32),
        dtype="uint8",
        fill_value=255,
        filters=[{"name": "transpose", "configuration": {"order": [1, 2, 0]}}],
        serializer={"name": "jpeg", "configuration": {"quality": 85, "subsampling": "444"}},
        compressors=None,
    )
    copy[:] = pixels(ours, 0)
    error = np.abs(copy[:].astype(int) - pixels(ours, 0))
    assert np.percentile(error, 99) <= 12


@pytest.mark.parametrize(("shape", "dtype"), [((3, 64, 64), "uint16"), ((4, 64, 64), "uint8"), ((64, 64), "uint8")])
def test_zarr_python_refuses_jpeg_for_other_arrays(tmp_path: Path, shape: tuple[int, ...], dtype: str) -> None:
    with pytest.raises(ValueError, match="jpeg stores uint8"):
        zarr.create_array(
            tmp_path / "a.zarr", shape=shape, dtype=dtype, serializer={"name": "jpeg", "configuration": {}}
        )


@pytest.mark.parametrize("where", ["", "0"])
def test_ome_zarr_py_opens_the_slide_and_its_image(slide: SlideStore, where: str) -> None:
    io = pytest.importorskip("ome_zarr.io", reason="ome-zarr is not installed (extra `readers`)")
    reader = pytest.importorskip("ome_zarr.reader")
    (node,) = reader.Reader(io.parse_url(str(slide.path / where)))()
    assert len(node.data) == len(slide.levels)
    for level, data in enumerate(node.data):
        np.testing.assert_array_equal(np.asarray(data), pixels(slide, level), strict=True)
    scale, translation = node.metadata["coordinateTransformations"][1]
    assert (scale["scale"], translation["translation"]) == ([1.0, 1.0, 1.0], [0.0, 250.25, 1000.25])


def test_ome_zarr_models_finds_nothing_wrong(slide: SlideStore) -> None:
    v05 = pytest.importorskip("ome_zarr_models.v05", reason="ome-zarr-models is not installed (extra `readers`)")
    root = zarr.open_group(slide.path, mode="r")
    assert v05.BioFormats2Raw.from_zarr(root).ome_attributes.version == "0.5"
    for group in (root, root["0"]):
        image = v05.Image.from_zarr(group)
        assert len(image.ome_attributes.multiscales[0].datasets) == len(slide.levels)
        assert len(image.ome_attributes.omero["channels"]) == slide.channels


@pytest.mark.parametrize("where", ["", "0"])
def test_ngff_zarr_validates_and_places_every_level(slide: SlideStore, where: str) -> None:
    ngff = pytest.importorskip("ngff_zarr", reason="ngff-zarr is not installed (extra `readers`)")
    pytest.importorskip("jsonschema", reason="ngff-zarr[validate] is not installed (extra `readers`)")
    if slide.codec.name == "jpeg":
        with pytest.raises(Exception, match="jpeg is not supported"):
            ngff.from_ngff_zarr(str(slide.path / where), validate=True, version="0.5")
        return
    images = ngff.from_ngff_zarr(str(slide.path / where), validate=True, version="0.5").images
    assert len(images) == len(slide.levels)
    for level, image in enumerate(images):
        scale, shift = 0.5 * 2**level, (2**level - 1) / 2 * 0.5
        assert image.scale == {"c": 1.0, "y": scale, "x": scale}
        assert image.translation == {"c": 0.0, "y": 250.0 + shift, "x": 1000.0 + shift}
        np.testing.assert_array_equal(np.asarray(image.data), pixels(slide, level), strict=True)


@pytest.mark.parametrize("where", ["", "0"])
def test_bioio_reads_the_image_and_refuses_the_collection(slide: SlideStore, where: str) -> None:
    bioio = pytest.importorskip("bioio", reason="bioio is not installed (extra `readers`)")
    plugin = pytest.importorskip("bioio_ome_zarr", reason="bioio-ome-zarr is not installed (extra `readers`)")
    if where == "":
        with pytest.raises(Exception, match="does not support"):
            bioio.BioImage(str(slide.path), reader=plugin.Reader)
        return
    image = bioio.BioImage(str(slide.path / where), reader=plugin.Reader)
    assert len(image.resolution_levels) == len(slide.levels)
    assert (image.physical_pixel_sizes.Y, image.physical_pixel_sizes.X) == (0.5, 0.5)
    np.testing.assert_array_equal(image.data[0, :, 0], pixels(slide, 0), strict=True)

"""The network that ships, and what `segment` does at a coarser level, with probabilities, and with glass skipped."""

import json

import numpy as np
import pytest
import zarr
from typer.testing import CliRunner

from edge_scanner import store as stores
from edge_scanner.cli.app import build
from edge_scanner.errors import UsageError
from edge_scanner.seamless.segment import segment
from edge_scanner.seamless.tissue import find_tissue
from models.tissue.scenes import CLASSES, make_scene, paint, texture

pytest.importorskip("onnx", reason="onnx writes the networks")
pytest.importorskip("onnxruntime", reason="onnxruntime runs them")
from fuse_scenes import picture
from seamless_scenes import expected, write_network, write_slide


@pytest.fixture(scope="module")
def scenes():
    """Six scenes of tissue that was never trained on, 160 px each, side by side, and their truth."""
    kept = texture("kept apart", paint(501, 3.0))
    rng = np.random.default_rng(3)
    made = [make_scene([kept], 160, rng) for _ in range(6)]
    return np.concatenate([p for p, _ in made], axis=1), np.concatenate([t for _, t in made], axis=1)


def test_the_shipped_network_tells_tissue_from_glass_and_pen(tmp_path, scenes, monkeypatch):
    (tmp_path / "tissue").mkdir()  # a folder of that name is not the network's file
    monkeypatch.chdir(tmp_path)
    image, truth = scenes
    slide = write_slide(tmp_path / "s.ome.zarr", np.repeat(np.repeat(image, 2, 0), 2, 1), 128, 4.0)
    words = ["segment", str(slide), "tissue", str(tmp_path / "o.ome.zarr"), "--json"]
    done = CliRunner().invoke(build(["segment"]), words)
    assert done.exit_code == 0, done.output
    assert set(json.loads(done.stdout)["classes"]) == set(CLASSES)
    found = zarr.open_group(tmp_path / "o.ome.zarr", mode="r")["labels/segmentation/0"][:]
    assert found.shape == truth.shape  # the level of 8 um, not the finest
    for number, name in enumerate(CLASSES):
        here, there = found == number, truth == number
        assert (here & there).sum() / (here | there).sum() > 0.75, name
    again = find_tissue(stores.open(slide))  # by other tiles, whose borders fade elsewhere
    assert (again == (found == 1)).mean() > 0.99


def test_a_network_works_at_the_level_of_its_pixels(tmp_path):
    slide = write_slide(tmp_path / "s.ome.zarr", picture(300, 210))
    model = write_network(tmp_path / "m.onnx", metadata={"pixel_size_um": "1.1"})
    segment(slide, model, tmp_path / "o.ome.zarr", tile_px=96, overlap_px=24)
    store = stores.open(slide)
    level = store.levels[1]
    truth = expected(zarr.open_group(slide, mode="r")["0/1"][:].transpose(1, 2, 0))
    root = zarr.open_group(tmp_path / "o.ome.zarr", mode="r")
    got = root["labels/segmentation/0"][:]
    assert got.shape == (level.height_px, level.width_px)
    clear = np.abs(truth[..., 0] - truth[..., 1]) > 1e-4
    assert np.array_equal(got[clear], truth.argmax(axis=-1)[clear])
    told = root["labels/segmentation"].attrs["ome"]["multiscales"][0]["datasets"][0]["coordinateTransformations"]
    assert told == [{"type": "scale", "scale": [1.0, 1.0]}, {"type": "translation", "translation": [50.25, 100.25]}]
    with pytest.raises(UsageError, match="no level 9"):
        segment(slide, model, tmp_path / "p.ome.zarr", level=9)


@pytest.mark.parametrize("shape", [(300, 210), (150, 333)])
def test_probabilities_are_an_image_with_a_channel_a_class(tmp_path, shape):
    image = picture(*shape)
    slide = write_slide(tmp_path / "s.ome.zarr", image)
    model = write_network(tmp_path / "m.onnx", metadata={"classes": json.dumps(["glass", "tissue"])})
    segment(slide, model, tmp_path / "o.ome.zarr", tile_px=96, overlap_px=24, probabilities=True)
    raised = np.exp(expected(image).astype(np.float64))
    truth = np.moveaxis(raised / raised.sum(axis=-1, keepdims=True), -1, 0)
    root = zarr.open_group(tmp_path / "o.ome.zarr", mode="r")
    ome = root.attrs["ome"]
    assert [axis["name"] for axis in ome["multiscales"][0]["axes"]] == ["c", "y", "x"]
    assert [channel["label"] for channel in ome["omero"]["channels"]] == ["glass", "tissue"]
    got = root[ome["multiscales"][0]["datasets"][0]["path"]][:]
    assert np.abs(got / 255 - truth).max() < 0.51 / 255 + 1e-4
    assert np.array_equal(root[ome["multiscales"][0]["datasets"][1]["path"]][:], got[:, ::2, ::2])


def test_glass_is_skipped_where_asked(tmp_path, scenes):
    image = np.full((640, 1600, 3), 240, np.uint8)
    image[:160, :960] = scenes[0]
    slide = write_slide(tmp_path / "s.ome.zarr", image, 128, 8.0)
    model = write_network(tmp_path / "m.onnx", kernel=np.zeros((1, 3, 1, 1), np.float32), metadata={})
    whole = segment(slide, model, tmp_path / "w.ome.zarr", tile_px=128, overlap_px=32)
    part = segment(slide, model, tmp_path / "p.ome.zarr", tile_px=128, overlap_px=32, tissue_only=True)
    assert 0 < part.tiles < whole.tiles / 2
    assert part.classes == whole.classes == {"class 0": 1.0, "class 1": 0.0}

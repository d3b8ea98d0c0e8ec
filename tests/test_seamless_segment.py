"""A slide through small networks: labels as the whole image would give them, readable by others, or one sentence."""

import json
from itertools import pairwise

import numpy as np
import pytest
import zarr
from fuse_scenes import picture
from scipy import ndimage
from typer.testing import CliRunner

from edge_scanner import store as stores
from edge_scanner.cli.app import build
from edge_scanner.errors import ScannerError, UsageError
from edge_scanner.seamless.segment import segment

pytest.importorskip("onnx", reason="onnx writes the networks")
pytest.importorskip("onnxruntime", reason="onnxruntime runs them")
from seamless_scenes import KERNEL, expected, write_network, write_slide


@pytest.mark.parametrize("shape", [(300, 210), (150, 333), (40, 50)])
@pytest.mark.parametrize("last, size", [(False, None), (True, None), (False, (64, 64))])
def test_labels_are_those_of_the_whole_image(tmp_path, shape, last, size):
    image = picture(*shape)
    slide = write_slide(tmp_path / "s.ome.zarr", image)
    model = write_network(tmp_path / "m.onnx", last=last, size=size, batch=1 if size else None)
    fits = size is None or min(shape) >= 64
    report = segment(slide, model, tmp_path / "o.ome.zarr", tile_px=None if size else 96, overlap_px=24)
    root = zarr.open_group(tmp_path / "o.ome.zarr", mode="r")
    got = root["labels/segmentation/0"][:]
    truth = expected(image)
    clear = np.abs(truth[..., 0] - truth[..., 1]) > 1e-4
    if not fits:  # the tile was grown to the network's size by repeating the edge: the rim differs
        clear &= ndimage.binary_erosion(np.ones(shape, bool), iterations=2)
    assert clear.mean() > 0.8
    assert np.array_equal(got[clear], truth.argmax(axis=-1)[clear])
    assert report.classes["class 1"] == pytest.approx(got.mean(), abs=1e-5)
    assert not (tmp_path / "o.ome.zarr.partial").exists()


def test_the_label_image_says_what_it_is(tmp_path):
    image = picture(300, 210)
    slide = write_slide(tmp_path / "s.ome.zarr", image)
    model = write_network(tmp_path / "m.onnx", metadata={"classes": json.dumps(["glass", "tissue"])})
    segment(slide, model, tmp_path / "o.ome.zarr")
    root = zarr.open_group(tmp_path / "o.ome.zarr", mode="r")
    assert root["labels"].attrs["ome"]["labels"] == ["segmentation"]
    told = root["labels/segmentation"].attrs["ome"]
    assert [c["label-value"] for c in told["image-label"]["colors"]] == [0, 1]
    assert told["image-label"]["properties"][1] == {"label-value": 1, "class": "tissue"}
    levels = [root[f"labels/segmentation/{d['path']}"][:] for d in told["multiscales"][0]["datasets"]]
    assert [level.shape for level in levels] == [(v.height_px, v.width_px) for v in stores.open(slide).levels]
    for finer, coarser in pairwise(levels):
        assert np.array_equal(finer[::2, ::2], coarser)
    assert told["multiscales"][0]["datasets"][1]["coordinateTransformations"] == [
        {"type": "scale", "scale": [1.0, 1.0]}, {"type": "translation", "translation": [50.25, 100.25]},
    ]  # fmt: skip
    shown = root.attrs["ome"]["multiscales"][0]["datasets"][0]["path"]
    assert np.array_equal(root[shown][:], levels[0])


@pytest.mark.parametrize("output, threshold", [("probabilities", 0.5), ("", 0.0)])
def test_one_output_is_cut_at_its_threshold(tmp_path, output, threshold):
    image = picture(100, 90)
    slide = write_slide(tmp_path / "s.ome.zarr", image)
    kernel = np.zeros((1, 3, 1, 1), np.float32)
    kernel[0, :, 0, 0] = (1, 1, -1)
    model = write_network(tmp_path / "m.onnx", kernel=kernel, metadata={"output": output})
    segment(slide, model, tmp_path / "o.ome.zarr")
    value = expected(image, kernel)[..., 0]
    clear = np.abs(value - threshold) > 1e-4
    got = zarr.open_group(tmp_path / "o.ome.zarr", mode="r")["labels/segmentation/0"][:]
    assert np.array_equal(got[clear], (value > threshold)[clear])
    assert 0 < got.mean() < 1


def test_networks_that_do_not_fit_leave_nothing(tmp_path):
    slide = write_slide(tmp_path / "s.ome.zarr", picture(100, 90))
    grey = write_network(tmp_path / "grey.onnx", kernel=KERNEL[:, :1])
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a network")
    half = write_network(tmp_path / "half.onnx", stride=2)
    cases = [
        (grey, "channels"),
        (broken, "not an ONNX"),
        (half, "Sizes must agree"),
        (tmp_path / "none.onnx", "cannot be read"),
    ]
    for model, says in cases:
        with pytest.raises(ScannerError, match=says):
            segment(slide, model, tmp_path / "o.ome.zarr")
    fixed = write_network(tmp_path / "fixed.onnx", size=(64, 64))
    with pytest.raises(ScannerError, match="takes tiles of"):
        segment(slide, fixed, tmp_path / "o.ome.zarr", tile_px=80)
    with pytest.raises(UsageError):
        segment(slide, fixed, tmp_path / "o.ome.zarr", overlap_px=64)
    assert not list(tmp_path.glob("o.*"))


def test_the_command_keeps_what_exists(tmp_path):
    slide = write_slide(tmp_path / "s.ome.zarr", picture(100, 90))
    model = write_network(tmp_path / "m.onnx")
    words = [
        "segment",
        str(slide),
        str(model),
        str(tmp_path / "o.ome.zarr"),
        "--tile",
        "64",
        "--overlap",
        "16",
        "--json",
    ]
    done = CliRunner().invoke(build(["segment"]), words)
    assert done.exit_code == 0
    assert json.loads(done.stdout)["tiles"] == 4
    again = CliRunner().invoke(build(["segment"]), words)
    assert isinstance(again.exception, UsageError)
    assert CliRunner().invoke(build(["segment"]), [*words, "--overwrite"]).exit_code == 0

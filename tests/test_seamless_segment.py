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
from edge_scanner.pyramid import Pyramid
from edge_scanner.seamless.segment import segment
from edge_scanner.store.codec import Gzip
from edge_scanner.tile import Chunk

onnx = pytest.importorskip("onnx", reason="onnx writes the networks")
pytest.importorskip("onnxruntime", reason="onnxruntime runs them")

KERNEL = np.random.default_rng(7).normal(size=(2, 3, 3, 3)).astype(np.float32)


def write_slide(path, image, chunk_px=64):
    metadata = stores.SlideMetadata("s", 0.5, (stores.Channel("Brightfield"),), origin_x_um=100.0, origin_y_um=50.0)
    height, width, channels = image.shape
    kind = {"channels": channels, "dtype": image.dtype}
    with stores.create(path, height_px=height, width_px=width, codec=Gzip(), fill_value=255, metadata=metadata,
                       chunk_px=chunk_px, **kind) as store:  # fmt: skip
        shapes = [(level.height_px, level.width_px) for level in store.levels]
        pyramid = Pyramid(shapes, fill=255, chunk_px=chunk_px, **kind)
        level = store.levels[0]
        chunks = (
            Chunk(0, r, c, image[r * chunk_px : (r + 1) * chunk_px, c * chunk_px : (c + 1) * chunk_px].copy())
            for r in range(level.rows)
            for c in range(level.cols)
        )
        for chunk in pyramid.cascade(chunks):
            store.append(store.encode(chunk))
    return path


def write_network(path, *, kernel=KERNEL, last=False, size=None, batch=None, metadata=None, stride=1):
    """One convolution with zero padding; `last` puts channels last."""
    outputs, inputs, side, _ = kernel.shape
    n, h, w = batch or "n", *(size or ("h", "w"))
    first = {"x": [n, inputs, h, w], "y": [n, outputs, h, w]}
    first["y"][2:] = [None, None]
    shapes = {k: [v[0], v[2], v[3], v[1]] for k, v in first.items()} if last else first
    pads = [side // 2] * 4
    conv = onnx.helper.make_node("Conv", ["a", "k"], ["b"], pads=pads, strides=[stride, stride])
    nodes = [
        onnx.helper.make_node(
            "Transpose" if last else "Identity", ["x"], ["a"], **({"perm": [0, 3, 1, 2]} if last else {})
        ),
        conv,
        onnx.helper.make_node(
            "Transpose" if last else "Identity", ["b"], ["y"], **({"perm": [0, 2, 3, 1]} if last else {})
        ),
    ]
    values = [onnx.helper.make_tensor_value_info(k, onnx.TensorProto.FLOAT, shapes[k]) for k in "xy"]
    graph = onnx.helper.make_graph(nodes, "g", values[:1], values[1:], [onnx.numpy_helper.from_array(kernel, "k")])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.helper.set_model_props(model, metadata or {})
    onnx.save(model, path)
    return path


def expected(image, kernel=KERNEL):
    pixels = image.astype(np.float64) / 255
    maps = [
        sum(ndimage.correlate(pixels[..., c], kernel[k, c], mode="constant") for c in range(kernel.shape[1]))
        for k in range(len(kernel))
    ]
    return np.stack(maps, axis=-1)


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

"""Small slides, and networks of one convolution whose answer is known."""

from __future__ import annotations

import numpy as np
import onnx
from scipy import ndimage

from edge_scanner import store as stores
from edge_scanner.pyramid import Pyramid
from edge_scanner.store.codec import Gzip
from edge_scanner.tile import Chunk

KERNEL = np.random.default_rng(7).normal(size=(2, 3, 3, 3)).astype(np.float32)


def write_slide(path, image, chunk_px=64, pixel_size_um=0.5):
    metadata = stores.SlideMetadata(
        "s", pixel_size_um, (stores.Channel("Brightfield"),), origin_x_um=100.0, origin_y_um=50.0
    )
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

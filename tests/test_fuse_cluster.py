"""On a cluster of processes the pixels are those of threads, and a killed worker loses nothing."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import zarr
from fuse_scenes import cut, grid, listed, picture

from edge_scanner.fuse import fuse
from edge_scanner.fuse.slide import fuse_slide
from edge_scanner.fuse.sources import open_source
from edge_scanner.geometry import Box
from edge_scanner.seamless import plan, run
from edge_scanner.seamless.segment import segment
from edge_scanner.store import SlideStore

distributed = pytest.importorskip("distributed", reason="the extra [distributed] is not installed")

IMAGE = picture(500, 420)
PLACES = grid(500, 420, 120, 100)


@pytest.fixture(scope="module")
def client():
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiles")
    listed(folder, cut(folder, IMAGE, PLACES, 120), PLACES)
    return folder


def test_the_slide_is_that_of_threads(client, folder, tmp_path):
    report = fuse_slide(open_source(folder), tmp_path / "o.ome.zarr", chunk_px=64, client=client)
    store = SlideStore.open(tmp_path / "o.ome.zarr")
    assert np.array_equal(store.read(0, Box(0, 0, 500, 420)), IMAGE)
    assert report.loads_per_tile is None


def test_a_killed_worker_loses_nothing(client, folder):
    names = [folder / f"t{k:03d}.tif" for k in range(len(PLACES))]
    lazy = fuse(names, [[[1, 0.02, x], [-0.02, 1, y], [0, 0, 1]] for y, x in PLACES], chunk=64)
    by_threads = lazy.compute(scheduler="threads")
    assert by_threads.std() > 5
    workers = client.run(os.getpid)
    waiting = client.compute(lazy)
    next(iter(distributed.as_completed(client.compute([lazy.blocks[0, 0, 0]]))))
    os.kill(next(iter(workers.values())), signal.SIGKILL)
    assert np.array_equal(waiting.result(), by_threads)


def test_a_model_may_answer_with_futures(client):
    image = np.random.default_rng(0).random((200, 150, 1)).astype(np.float32)
    out = np.zeros_like(image)

    def write(y0, x0, block):
        out[y0 : y0 + block.shape[0], x0 : x0 + block.shape[1]] = block

    laid = plan(image.shape[:2], 64, 16)
    run(
        laid,
        lambda t: client.submit(np.sqrt, t),
        lambda y0, y1, x0, x1: image[y0:y1, x0:x1],
        write,
        batch=2,
        prefetch=6,
    )
    np.testing.assert_allclose(out, np.sqrt(image), atol=1e-6)


@pytest.mark.parametrize("name", ["m.onnx", "tissue"])
def test_labels_are_those_of_this_process(client, tmp_path, name):
    pytest.importorskip("onnx", reason="onnx writes the network")
    pytest.importorskip("onnxruntime", reason="onnxruntime runs it")
    from seamless_scenes import write_network, write_slide

    slide = write_slide(tmp_path / "s.ome.zarr", IMAGE)
    model = Path(name) if name == "tissue" else write_network(tmp_path / name)
    sizes = {"tile_px": 96, "overlap_px": 24, "level": 0}
    here = segment(slide, model, tmp_path / "here.ome.zarr", **sizes)
    there = segment(slide, model, tmp_path / "there.ome.zarr", client=client, **sizes)
    assert here.classes == there.classes
    a, b = (
        zarr.open_group(tmp_path / n, mode="r")["labels/segmentation/0"][:] for n in ("here.ome.zarr", "there.ome.zarr")
    )
    assert np.array_equal(a, b)
    assert np.unique(a).size > 1


def test_every_worker_may_be_killed_while_labels_are_made(client, tmp_path):
    pytest.importorskip("onnxruntime", reason="onnxruntime runs the network")
    pytest.importorskip("onnx", reason="the scene's module imports it")
    from seamless_scenes import write_slide

    slide, sizes = write_slide(tmp_path / "s.ome.zarr", IMAGE), {"tile_px": 64, "overlap_px": 16, "level": 0}
    alive = list(client.run(os.getpid).values())

    def progress(share):
        if alive and share > 0.6 - 0.2 * len(alive):
            os.kill(alive.pop(), signal.SIGKILL)

    here = segment(slide, Path("tissue"), tmp_path / "here.ome.zarr", **sizes)
    there = segment(slide, Path("tissue"), tmp_path / "there.ome.zarr", client=client, progress=progress, **sizes)
    assert not alive
    assert here.classes == there.classes

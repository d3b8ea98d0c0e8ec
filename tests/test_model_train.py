"""Training in small: rendered, trained, resumed, exported, and the same in ONNX Runtime."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs the extra [train]")
pytest.importorskip("onnx", reason="training needs the extra [train]")

from edge_scanner.config import load  # noqa: E402
from edge_scanner.errors import UsageError  # noqa: E402
from edge_scanner.focus.model import BATCH, ModelFile, OnnxFocusModel  # noqa: E402
from models import dataset, fields, recipe  # noqa: E402
from models.export import difference  # noqa: E402
from models.leaves import leaves  # noqa: E402
from models.net import BACKBONES  # noqa: E402
from models.spectrum import FLOOR, WINDOW_PX, Spectrum  # noqa: E402

SHARE = 0.002


def silent(share: float, text: str) -> None:
    del share, text


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """A folder with a tiny data set in it, rendered once."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("work")
    dataset.make(folder, folder / "none", 1, SHARE)
    return folder


def run(work: Path, out: Path, epochs: int, backbone: str = "spectral") -> dict[str, object]:
    return recipe.run(out, None, None, work, backbone=backbone, epochs=epochs, share=SHARE, seed=1, show=silent)


def test_trains_exports_and_runs_as_a_focus_model(work, tmp_path):
    about = run(work, tmp_path / "tiny.onnx", 2)
    card = json.loads((tmp_path / "tiny.json").read_text())
    assert card["sha256"] == ModelFile.open(str(tmp_path / "tiny.onnx")).sha256
    assert card["patches"] == about["patches"] > 50
    model = OnnxFocusModel(load(None, [f"focus.model={tmp_path / 'tiny.onnx'}", 'focus.providers=["cpu"]']))
    assert np.isfinite(model(np.random.default_rng(1).random((3, 3, 256, 256), np.float32))).all()
    assert (work / "spectral-1" / "learning_curve.png").stat().st_size > 1000


def test_a_run_that_was_stopped_ends_as_one_that_was_not(work, tmp_path):
    for name in ("last.pt", "best.pt"):
        (work / "spectral-1" / name).unlink(missing_ok=True)
    run(work, tmp_path / "a.onnx", 1)
    run(work, tmp_path / "a.onnx", 2)
    for name in ("last.pt", "best.pt"):
        (work / "spectral-1" / name).unlink()
    run(work, tmp_path / "b.onnx", 2)
    a, b = (ModelFile.open(str(tmp_path / name)).sha256 for name in ("a.onnx", "b.onnx"))
    assert a == b


@pytest.mark.parametrize("backbone", sorted(BACKBONES))
def test_every_backbone_is_the_same_in_onnx(tmp_path, backbone):
    from models.export import export

    torch.manual_seed(3)
    net = BACKBONES[backbone]().eval()
    assert export(net, tmp_path / "x.onnx", {}) <= 1e-4
    patches = torch.rand((BATCH, 3, 256, 256), generator=torch.Generator().manual_seed(4))
    assert difference(net, tmp_path / "x.onnx", patches) <= 1e-4


def test_unknown_backbone_names_the_known_ones(work, tmp_path):
    with pytest.raises(UsageError, match="resnet, spectral"):
        run(work, tmp_path / "x.onnx", 1, "transformer")


def test_the_front_is_the_fourier_transform():
    """The power of a pure wave lies in its ring and is what numpy's own transform gives."""
    n = WINDOW_PX
    x = np.arange(256)
    wave = 0.5 + 0.1 * np.cos(2 * np.pi * 12 / n * x)[None, :] * np.ones((256, 1))
    features = Spectrum()(torch.from_numpy(np.stack([wave] * 3)[None]).float())[0]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(n) + 0.5) / n)
    tile = (wave[:n, :n] / 0.5 - 1) * np.outer(hann, hann)
    power = np.abs(np.fft.rfft2(tile)) ** 2 / n**2
    finest = features[: 6 * 11].reshape(6, 11)
    assert int(finest[0].argmax()) == 1  # rings of the finest scale are 10, 12, 14 ...
    bins = Spectrum().bins1.numpy()
    np.testing.assert_allclose(np.exp(finest[0].numpy()), power.ravel() @ bins + FLOOR, rtol=2e-3, atol=1e-6)
    np.testing.assert_allclose(finest[3, :3], 2.0, atol=1e-3)  # the same picture in all colours is coherent


def test_fields_are_a_function_of_the_seed():
    source = fields.synthetic_sources([3])[0]
    one, other = (fields.render(np.random.default_rng(8), source, fields.nominal(), -2.0) for _ in range(2))
    np.testing.assert_array_equal(one, other)
    assert one.shape == (fields.FIELD_PX, fields.FIELD_PX, 3)


def test_splits_share_no_slide():
    names = [dataset.TRAIN_SLIDES, dataset.VALIDATION_SLIDES, dataset.HELD_OUT_SLIDES]
    assert len({name for group in names for name in group}) == sum(map(len, names))


def test_axial_colour_never_changes_its_sign():
    rng = np.random.default_rng(0)
    assert min(fields.draw_optics(rng, kind).axial_um for kind in list(fields.APERTURES) * 100) > 0


def test_leaves_are_a_function_of_their_seed_and_hold_every_size():
    one, same, other = (leaves(seed, 256) for seed in (5, 5, 6))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
    steps = np.abs(np.diff(one.astype(int), axis=1)).max(axis=2) > 8
    assert 0.02 < steps.mean() < 0.5


def test_a_plan_is_rendered_once_and_another_again(tmp_path):
    slides, wide, narrow = dataset.Slides(tmp_path, (), (3,)), fields.nominal("20x"), fields.nominal("10x")
    dataset.write(tmp_path, slides, [(wide, 1)], 1)
    first = dataset.read(tmp_path).patches[:]
    np.lib.format.open_memmap(tmp_path / "patches.npy", "r+")[0] = 7
    dataset.write(tmp_path, slides, [(wide, 1)], 1)
    assert (dataset.read(tmp_path).patches[0] == 7).all(), "the same plan was rendered again"
    dataset.write(tmp_path, slides, [(narrow, 1), (wide, 1)], 1)
    again = dataset.read(tmp_path).patches[:]
    assert len(again) == 2 * len(first)
    assert (again[0] != 7).any()

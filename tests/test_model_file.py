"""The network's file and session: what is not trusted is refused in one sentence, what runs is told."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from edge_scanner.config import Config, load
from edge_scanner.errors import ConfigError
from edge_scanner.focus import make_focus
from edge_scanner.focus.model import BATCH, SHIPPED, ModelFile, Objective, OnnxFocusModel

pytest.importorskip("onnxruntime", reason="learned focus needs the extra [cpu]")


def config(*overrides: str) -> Config:
    return load(None, ["focus.mode=model", *overrides])


def test_shipped_model_is_the_one_its_card_describes_and_small():
    file = ModelFile.open("")
    assert json.loads(SHIPPED.with_suffix(".json").read_text())["sha256"] == file.sha256
    assert len(file.data) <= 8 << 20
    assert 0.3 < file.sigma_scale < 3


def test_a_changed_byte_is_refused(tmp_path):
    data = bytearray(SHIPPED.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "focus.onnx").write_bytes(data)
    (tmp_path / "focus.json").write_text(SHIPPED.with_suffix(".json").read_text())
    with pytest.raises(ConfigError, match="checksum"):
        make_focus(config(f"focus.model={tmp_path / 'focus.onnx'}"))


@pytest.mark.parametrize(
    "card", ["{", "[]", "{}", '{"sha256": "x", "sigma_scale": "wide"}', "null", '{"sha256": "x", "objectives": [{}]}']
)
def test_a_card_that_says_nothing_is_refused(tmp_path, card):
    (tmp_path / "focus.onnx").write_bytes(SHIPPED.read_bytes())
    (tmp_path / "focus.json").write_text(card)
    with pytest.raises(ConfigError, match="card"):
        make_focus(config(f"focus.model={tmp_path / 'focus.onnx'}"))


def test_the_refusal_of_an_objective_names_those_that_were_measured_with():
    file = ModelFile(b"", "", objectives=(Objective(0.7, 0.8, 1.0), Objective(0.2, 0.3, 1.0), Objective(0.3, 0.4, 1.0)))
    with pytest.raises(ConfigError, match=r"of 0\.2 to 0\.4 and 0\.7 to 0\.8; this objective has 0\.5,"):
        file.require(config("optics.numerical_aperture=0.5").optics)
    file.require(config("optics.numerical_aperture=0.3").optics)


@pytest.mark.parametrize("data", [b"", b"not a network", SHIPPED.read_bytes()[:5000]])
def test_a_corrupt_file_is_refused(tmp_path, data):
    (tmp_path / "own.onnx").write_bytes(data)
    with pytest.raises(ConfigError, match="cannot be loaded"):
        make_focus(config(f"focus.model={tmp_path / 'own.onnx'}"))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        make_focus(config(f"focus.model={tmp_path / 'none.onnx'}"))


def test_a_network_for_something_else_is_refused(tmp_path):
    onnx = pytest.importorskip("onnx", reason="a foreign network is made with onnx, of the extra [train]")
    value = onnx.helper.make_tensor_value_info
    float32 = onnx.TensorProto.FLOAT
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "g", [value("x", float32, [1, 4])], [value("y", float32, [1, 4])])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "other.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ConfigError, match="not a focus model"):
        make_focus(config(f"focus.model={tmp_path / 'other.onnx'}"))


def test_without_onnxruntime_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"\[cpu\]"):
        make_focus(config())


def test_a_provider_that_is_not_there_is_told_or_refused():
    model = OnnxFocusModel(config('focus.providers=["cuda","cpu"]'))
    if "cuda" in model.providers.actual:
        pytest.skip("this machine has CUDA")
    assert model.providers.requested == ("cuda", "cpu")
    assert model.providers.actual == ("cpu",)
    assert model.providers.degraded
    with pytest.raises(ConfigError, match="cuda"):
        OnnxFocusModel(config('focus.providers=["cuda","cpu"]', "focus.strict_providers=true"))


def test_strict_is_content_with_what_was_asked_for():
    model = OnnxFocusModel(config('focus.providers=["cpu"]', "focus.strict_providers=true"))
    assert not model.providers.degraded


@pytest.mark.parametrize("n", [0, 1, BATCH - 1, BATCH, BATCH + 1, 2 * BATCH + 3])
def test_each_patch_is_judged_for_itself(n):
    model = OnnxFocusModel(config('focus.providers=["cpu"]'))
    patches = np.random.default_rng(5).random((n, 3, 256, 256), np.float32)
    dz_um, sigma_um = model(patches)
    assert dz_um.shape == sigma_um.shape == (n,)
    assert np.isfinite(dz_um).all()
    assert (sigma_um > 0).all()
    if n:
        alone = model(patches[-1:])
        np.testing.assert_allclose((dz_um[-1], sigma_um[-1]), (alone[0][0], alone[1][0]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("override", "why"), [("camera.channels=1", "RGB"), ("camera.height_px=128", "at least 256 x 256 px")]
)
def test_a_camera_that_does_not_suit_is_refused(override, why):
    codec = "mosaic.codec=gzip"
    with pytest.raises(ConfigError, match=why):
        make_focus(config(override, codec))


def test_the_daemon_never_imports_torch():
    code = (
        "import sys\n"
        "from edge_scanner.config import load\n"
        "import edge_scanner.cli.app, edge_scanner.service\n"
        "from edge_scanner.focus import make_focus\n"
        "make_focus(load(None, ['focus.mode=model']))\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0

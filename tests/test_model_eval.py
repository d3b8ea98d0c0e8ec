"""Evaluation: the figures by hand, labelled folders, and the commands."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from focus_scene import tissue

from edge_scanner.errors import SourceError
from edge_scanner.focus.consensus import Consensus
from edge_scanner.focus.evaluate import Answer, answers, sigma_scale, summary
from edge_scanner.focus.labelled import LabelledFrame, labelled_frames, read_image

KEYS = {
    "n", "mae_um", "within_dof", "within_2um", "wrong_direction", "refused_share", "refusal_precision",
    "sigma_coverage_68", "p95_ms", "provider",
}  # fmt: skip


def answer(z_um: float, dz_um: float | None, sigma_um: float | None = 0.2, *, blank: bool = False) -> Answer:
    return Answer("s", z_um, blank, dz_um, sigma_um if dz_um is not None else None, 10.0)


def test_figures_by_hand():
    found = [
        answer(0.5, -0.1),  # 0.6 off; too near to have a direction
        answer(4.0, -4.0),  # 8 off, wrong direction
        answer(-5.0, -6.0),  # 1 off
        answer(2.0, 2.1),  # 0.1 off, within sigma
        answer(3.0, None),
        answer(9.0, None, blank=True),
    ]
    figures = summary(found, 0.8)
    assert figures["n"] == 5
    assert figures["mae_um"] == pytest.approx((0.6 + 8 + 1 + 0.1) / 4)
    assert figures["worst_um"] == pytest.approx(8)
    assert figures["within_dof"] == pytest.approx(2 / 4)
    assert figures["within_2um"] == pytest.approx(3 / 4)
    assert figures["wrong_direction"] == pytest.approx(1 / 3)
    assert figures["refused_share"] == pytest.approx(1 / 5)
    assert figures["refusal_precision"] == pytest.approx(1 / 2)
    assert figures["sigma_coverage_68"] == pytest.approx(1 / 4)


def test_nothing_measured_is_none_not_zero():
    figures = summary([answer(3.0, None)], 0.8)
    assert figures["mae_um"] is figures["wrong_direction"] is figures["sigma_coverage_68"] is None
    assert figures["refused_share"] == 1


def test_sigma_scale_makes_sigma_cover_two_thirds():
    rng = np.random.default_rng(2)
    found = [answer(0.0, float(e), 0.1) for e in rng.normal(0, 0.25, 2000)]
    assert sigma_scale(found) == pytest.approx(2.5, rel=0.08)


@pytest.mark.parametrize(("sigma_um", "refused"), [(0.1, False), (5.0, True)])
def test_what_is_not_sure_is_a_refusal(sigma_um, refused):
    frame = LabelledFrame("s", np.zeros((4, 4, 3), np.uint8), 1.0)
    (found,) = answers(lambda _: Consensus(1.0, sigma_um, 1.0, 8), [frame])
    assert (found.dz_um is None) == refused


def labelled(folder: Path, table: str | None = None) -> Path:
    folder.mkdir()
    for name in ("z+01.50um.png", "z-00.25um.png", "notes.png"):
        cv2.imwrite(str(folder / name), tissue(64, 64)[..., ::-1])
    if table is not None:
        (folder / "positions.csv").write_text(table)
    return folder


def test_z_is_read_from_names_and_colours_are_rgb(tmp_path):
    frames = sorted(labelled_frames(labelled(tmp_path / "a")), key=lambda f: f.z_um)
    assert [f.z_um for f in frames] == [-0.25, 1.5]
    assert {f.slide for f in frames} == {"a"}
    np.testing.assert_array_equal(frames[0].pixels, tissue(64, 64))


def test_a_table_overrules_names(tmp_path):
    folder = labelled(tmp_path / "a", "file,z_offset_um\nnotes.png,-7.5\n")
    assert [f.z_um for f in labelled_frames(folder)] == [-7.5]


BAD_TABLES = ("file,z_um\n../x.png,1\n", "file,z_um\nnotes.png,nan\n", "a,b\n1,2\n", "file,z_um\nnotes.png,far\n")


@pytest.mark.parametrize("table", BAD_TABLES)
def test_bad_tables_are_refused(tmp_path, table):
    with pytest.raises(SourceError):
        list(labelled_frames(labelled(tmp_path / "a", table)))


def test_folders_without_labels_are_refused(tmp_path):
    with pytest.raises(SourceError, match="tells its z"):
        list(labelled_frames(tmp_path))
    with pytest.raises(SourceError, match="no folder"):
        list(labelled_frames(tmp_path / "none"))


@pytest.mark.parametrize("data", [b"", b"text", tissue(40, 40).tobytes()])
def test_what_is_no_image_is_refused(tmp_path, data):
    (tmp_path / "x.png").write_bytes(data)
    with pytest.raises(SourceError, match="not an image"):
        read_image(tmp_path / "x.png")


def focus(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edge_scanner", "focus", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=180)


def test_eval_on_a_slide_prints_what_the_contract_names(tmp_path):
    pytest.importorskip("onnxruntime", reason="learned focus needs the extra [cpu]")
    cv2.imwrite(str(tmp_path / "slide.png"), tissue(700, 700))
    camera = ["--set", "camera.width_px=512", "--set", "camera.height_px=512"]
    done = focus("eval", "--slide", str(tmp_path / "slide.png"), "--count", "5", *camera, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert set(told) >= KEYS
    assert told["provider"] == "cpu"
    assert told["slides"]["slide"]["n"] == told["n"] <= 5


def test_predict_tells_each_image(tmp_path):
    pytest.importorskip("onnxruntime", reason="learned focus needs the extra [cpu]")
    cv2.imwrite(str(tmp_path / "a.png"), tissue(300, 300)[..., ::-1])
    cv2.imwrite(str(tmp_path / "glass.png"), np.full((300, 300, 3), 240, np.uint8))
    done = focus("predict", str(tmp_path / "a.png"), str(tmp_path / "glass.png"), "--json")
    assert done.returncode == 0, done.stderr
    one, other = json.loads(done.stdout)
    assert one["patches"] == 1
    assert other["dz_um"] is None
    assert not other["sure"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["eval"], 2),
        (["eval", "--slide", "a.png", "--data", "b"], 2),
        (["eval", "--data", "no-such-folder"], 1),
        (["eval", "--slide", "no-such.png", "--count", "1"], 1),
        (["predict", "no-such.png"], 1),
        (["train", "--out", "pyproject.toml"], 2),
    ],
)
def test_bad_input_is_one_sentence(arguments, code):
    done = focus(*arguments)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.strip()

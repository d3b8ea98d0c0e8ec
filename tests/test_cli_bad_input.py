"""Bad input: exit 1 or 2, one sentence, no traceback, existing outputs untouched."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from export_slides import slide
from typer.testing import CliRunner

from edge_scanner.cli.app import build
from edge_scanner.errors import UsageError
from edge_scanner.store.codec import Gzip


def run(*words):
    command = [sys.executable, "-m", "edge_scanner", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def truncated_tiff(folder: Path) -> Path:
    whole = folder / "whole.tif"
    tifffile.imwrite(whole, np.zeros((600, 600, 3), np.uint8), tile=(256, 256), photometric="rgb")
    cut = folder / "cut.tif"
    cut.write_bytes(whole.read_bytes()[:-300_000])
    return cut


def headless_tiff(folder: Path) -> Path:
    """Write the first bytes of a TIFF whose directory lay behind its pixels, as programs that stream write it."""
    cut = folder / "cut.tif"
    cut.write_bytes(b"II*\0" + (1_000_000).to_bytes(4, "little") + bytes(1000))
    return cut


def text_file(folder: Path) -> Path:
    path = folder / "notes.tif"
    path.write_text("this is no image")
    return path


def bad_toml(folder: Path) -> Path:
    path = folder / "bad.toml"
    path.write_text("[scan\noverlap = ")
    return path


def unknown_key(folder: Path) -> Path:
    path = folder / "unknown.toml"
    path.write_text("[scan]\noverlp = 0.1\n")
    return path


CASES = {
    "missing slide": (1, lambda d: ("demo", "--out", d / "o", "--slide", d / "none.tif"), "none.tif"),
    "truncated TIFF": (1, lambda d: ("demo", "--out", d / "o", "--slide", truncated_tiff(d)), "cut.tif"),
    "no image": (1, lambda d: ("demo", "--out", d / "o", "--slide", text_file(d)), "notes.tif"),
    "folder as slide": (1, lambda d: ("demo", "--out", d / "o", "--slide", d), ""),
    "zero-size region": (2, lambda d: ("demo", "--out", d / "o", "--width-mm", 0, "--height-mm", 1), "0 x 1 mm"),
    "NaN region": (2, lambda d: ("demo", "--out", d / "o", "--width-mm", "nan", "--height-mm", 1), "finite"),
    "region outside": (None, lambda d: ("demo", "--out", d / "o", "--width-mm", 900, "--height-mm", 1), "allows"),
    "unwritable output": (1, lambda d: ("demo", "--out", Path("/dev/null/out")), "/dev/null/out"),
    "bad TOML": (2, lambda d: ("run", "--config", bad_toml(d)), "bad.toml"),
    "unknown key": (2, lambda d: ("run", "--config", unknown_key(d)), "scan.overlap"),
    "missing config": (2, lambda d: ("run", "--config", d / "none.toml"), "none.toml"),
    "wrong value": (2, lambda d: ("run", "--set", "camera.width_px=-3"), "camera.width_px"),
    "no daemon": (1, lambda d: ("ctl", "--endpoint", f"ipc://{d}/none", "--timeout-s", "0.3", "status"), "No daemon"),
    "half a region": (2, lambda d: ("ctl", "scan", "--x-mm", 1), "--width-mm"),
    "unknown command": (2, lambda d: ("scna",), "scna"),
    "audit of a truncated TIFF": (1, lambda d: ("audit", headless_tiff(d)), "cut.tif"),
    "export of nothing": (1, lambda d: ("export", d / "none.ome.zarr", d / "o.tif"), "none.ome.zarr"),
}


@pytest.mark.parametrize("case", CASES)
def test_one_sentence_and_the_right_exit_code(case, tmp_path):
    code, words, names = CASES[case]
    done = run(*words(tmp_path))
    assert done.returncode in ((1, 2) if code is None else (code,)), done.stderr
    assert "Traceback" not in done.stderr
    assert names in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("edge-scanner:")]
    assert len(lines) == 1 or case == "unknown command", done.stderr
    assert done.stdout == ""


def test_an_existing_output_is_refused_and_untouched(tmp_path):
    out = tmp_path / "out.ome.tif"
    out.write_bytes(b"precious")
    done = run("export", tmp_path / "none.ome.zarr", out)
    assert done.returncode in (1, 2)
    assert out.read_bytes() == b"precious"


def test_check_reports_and_fails_on_a_missing_driver(tmp_path):
    good = run("check", "--devices", "--json", "--set", f"storage.root={tmp_path}", "--set", "storage.reserve_mb=0")
    assert good.returncode == 0, good.stdout + good.stderr
    findings = json.loads(good.stdout)["findings"]
    assert {"configuration", "disk space", "stage", "camera"} <= {f["what"] for f in findings}
    bad = run("check", "--json", "--set", f"storage.root={tmp_path}", "--set", "stage.driver=nosuch")
    assert bad.returncode == 1
    assert any("nosuch" in f["detail"] and not f["ok"] for f in json.loads(bad.stdout)["findings"])


@pytest.mark.parametrize(
    "words", [("rechunk", "SRC", "OUT", "--chunk", "256"), ("segment", "SRC", "tissue", "OUT"), ("fuse", "SRC", "OUT")]
)
@pytest.mark.parametrize("out", [".", "slide.ome.zarr", "photographs"])
def test_overwrite_takes_neither_the_source_nor_a_folder_of_something_else(words, out, tmp_path):
    slide, folder = tmp_path / "slide.ome.zarr", tmp_path / out
    slide.mkdir()
    (slide / "zarr.json").write_text("{}")
    folder.mkdir(exist_ok=True)
    (folder / "precious").write_text("one of a kind")
    asked = [{"SRC": str(slide), "OUT": str(folder)}.get(word, word) for word in words]
    assert CliRunner().invoke(build([words[0]]), [*asked, "--overwrite"]).exception.code == "bad_argument"
    assert (folder / "precious").read_text() == "one of a kind"


@pytest.mark.parametrize(
    "words",
    [
        ("export", "SRC", "OUT"),
        ("rechunk", "SRC", "OUT", "--chunk", "256"),
        ("segment", "SRC", "tissue", "OUT"),
        ("audit", "SRC", "--fix", "OUT"),
    ],
)
def test_an_output_within_its_source_is_refused(words, tmp_path):
    slide(tmp_path / "slide.ome.zarr", Gzip())
    (tmp_path / "link").symlink_to(tmp_path / "slide.ome.zarr" / "0")
    before = everything(tmp_path)
    for place in ("slide.ome.zarr/out", "slide.ome.zarr/0/0/out", "link/out"):
        asked = [{"SRC": f"{tmp_path}/slide.ome.zarr", "OUT": f"{tmp_path}/{place}"}.get(word, word) for word in words]
        refused = CliRunner().invoke(build([words[0]]), asked).exception
        assert isinstance(refused, UsageError), place
        assert "lies within the source" in str(refused)
    assert everything(tmp_path) == before


@pytest.mark.parametrize("words", [("rechunk", "SRC", "OUT", "--chunk", "256"), ("segment", "SRC", "tissue", "OUT")])
def test_a_partial_store_is_not_taken_for_ones_own(words, tmp_path):
    slide(tmp_path / "slide.ome.zarr.partial", Gzip())
    before = everything(tmp_path)
    places = {"SRC": f"{tmp_path}/slide.ome.zarr.partial", "OUT": f"{tmp_path}/slide.ome.zarr"}
    refused = CliRunner().invoke(build([words[0]]), [places.get(word, word) for word in words]).exception
    assert isinstance(refused, UsageError)
    assert everything(tmp_path) == before


def everything(path: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}

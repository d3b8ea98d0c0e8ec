"""The audit: a fresh slide is clean, each planted fault is found, and the cleaned copy keeps the pixels."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from export_slides import LABEL, METADATA, contents, level, make, slide

from edge_scanner.audit import Finding, audit, fix
from edge_scanner.errors import SourceError, UsageError
from edge_scanner.export import to_ome_tiff
from edge_scanner.store import Channel, SlideMetadata, SlideStore
from edge_scanner.store.codec import Gzip

PERSONAL = {
    "personal.email": "ask jane.doe@clinic.example",
    "personal.path": "/home/jane/scans/7",
    "personal.path ": "C:\\Users\\jane\\scan",
    "personal.path  ": "\\\\server\\share",
    "personal.date_of_birth": "12.03.1956",
    "personal.name": "Dr. Jane Doe",
    "personal.name ": "patient: seven",
    "personal.name  ": "DOE^JANE" + " Doe^Jane",
    "personal.id": "S21-12345",
    "personal.id ": "078-05-1120",
    "personal.barcode": "4006381333931",
}
HARMLESS = (
    "tcp://127.0.0.1:5555",
    "ipc:///run/edge-scanner/control.ipc",
    "/dev/ttyUSB0",
    "scans/20260131-120000-ab12",
    "20260131120000",
    "2026-01-31T12:00:00Z",
    "0.1234567890123",
    "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "https://ngff.openmicroscopy.org/0.5",
    "CC BY-SA 4.0",
    "image/jpeg",
    "-20 / 0.75",
)


def codes(findings: list[Finding]) -> set[str]:
    return {finding.code for finding in findings}


def made(folder: Path, metadata: SlideMetadata = METADATA) -> Path:
    """Return a scan folder with a store, its export and the two documents."""
    folder.mkdir()
    store = slide(folder / "slide.ome.zarr", Gzip(), metadata=metadata, height_px=100, width_px=130)
    to_ome_tiff(store.path, folder / "slide.ome.tif")
    (folder / "scan.json").write_text(json.dumps({"config": dict(metadata.settings), "versions": {"zarr": "3.1.6"}}))
    (folder / "report.json").write_text(json.dumps({"outcome": "completed", "paths": {"store": "slide.ome.zarr"}}))
    (folder / "report.html").write_text("<html></html>")
    return folder


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("audit") / "20260131-120000")


@pytest.mark.parametrize("part", [".", "slide.ome.zarr", "slide.ome.tif"])
def test_a_fresh_scan_is_clean(scan: Path, part: str) -> None:
    assert audit(scan / part) == []


@pytest.mark.parametrize("kind", ["jpeg", "uint16 channels"])
def test_every_kind_of_slide_is_clean(kind: str, tmp_path: Path) -> None:
    store = make(kind, tmp_path / "s.ome.zarr")
    to_ome_tiff(store.path, tmp_path / "s.ome.tif")
    assert audit(store.path) == audit(tmp_path / "s.ome.tif") == []


def test_harmless_texts_are_left_alone(tmp_path: Path) -> None:
    settings = {f"setting {k}": text for k, text in enumerate(HARMLESS)}
    assert audit(made(tmp_path / "scan", replace(METADATA, settings=settings))) == []


def test_personal_texts_are_found_everywhere_and_gone_from_the_cleaned_copy(tmp_path: Path) -> None:
    settings = {f"setting {k}": text for k, text in enumerate(PERSONAL.values())} | {"operator": "jd"}
    scan = made(tmp_path / "scan", replace(METADATA, settings=settings, name="Jane Doe"))
    before = contents(scan)
    expected = {code.strip() for code in PERSONAL} | {"personal.field"}
    found = audit(scan)
    for part in ("scan.json", "slide.ome.zarr/0/zarr.json", "slide.ome.zarr/OME/METADATA.ome.xml", "slide.ome.tif"):
        assert expected <= codes([f for f in found if f"/{part}" in f.where]), part
    assert not any(text in str(found) for text in PERSONAL.values()), "findings must not repeat what they found"
    assert fix(scan, tmp_path / "clean") == []
    assert contents(scan) == before
    everything = b"".join(contents(tmp_path / "clean").values())
    for text in (*PERSONAL.values(), "Jane"):
        assert text.encode() not in everything
    for name in ("slide.ome.zarr", "slide.ome.tif"):
        assert audit(tmp_path / "clean" / name) == []
    was, now = SlideStore.open(scan / "slide.ome.zarr"), SlideStore.open(tmp_path / "clean" / "slide.ome.zarr")
    np.testing.assert_array_equal(level(now, 0), level(was, 0))
    with tifffile.TiffFile(tmp_path / "clean" / "slide.ome.tif") as tiff:
        np.testing.assert_array_equal(tiff.series[0].levels[1].asarray(), level(was, 1))


def test_people_and_tags_of_a_foreign_file(tmp_path: Path) -> None:
    path = tmp_path / "foreign.ome.tif"
    xml = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
        '<Experimenter ID="Experimenter:0" LastName="Doe"/><Image ID="Image:0"><ExperimenterRef ID="Experimenter:0"/>'
        '<Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="64" SizeY="64" SizeZ="1" SizeC="1" SizeT="1">'
        '<Channel ID="Channel:0:0"/><TiffData IFD="0"/></Pixels></Image></OME>'
    )
    pixels = np.arange(4096, dtype=np.uint8).reshape(64, 64)
    tifffile.imwrite(path, pixels, description=xml, metadata=None, extratags=[(315, "s", 0, "Jane Doe", True)])
    found = audit(path)
    assert {"missing.physical_size", "missing.acquisition_date", "missing.magnification"} <= codes(found)
    assert sum(f.code == "personal.field" for f in found) == 3
    left = fix(path, tmp_path / "clean.ome.tif")
    assert not [f for f in left if f.code.startswith("personal")]
    data = (tmp_path / "clean.ome.tif").read_bytes()
    assert b"Doe" not in data
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "clean.ome.tif"), pixels)


def test_a_label_is_reported_and_made_white(tmp_path: Path) -> None:
    store = make("jpeg", tmp_path / "s.ome.zarr")
    to_ome_tiff(store.path, tmp_path / "s.ome.tif", label=LABEL)
    assert codes(audit(tmp_path / "s.ome.tif")) == {"personal.image"}
    assert fix(tmp_path / "s.ome.tif", tmp_path / "clean.ome.tif") == []
    with tifffile.TiffFile(tmp_path / "clean.ome.tif") as tiff:
        assert (tiff.series[1].asarray() == 255).all()
        np.testing.assert_array_equal(tiff.series[0].asarray(), level(store, 0))


def edit(name: str, change: Callable[[dict], None]) -> Callable[[Path], None]:
    def apply(store: Path) -> None:
        document = json.loads((store / name).read_text())
        change(document)
        (store / name).write_text(json.dumps(document))

    return apply


def multiscale(document: dict) -> dict:
    return document["attributes"]["ome"]["multiscales"][0]


def rescale(document: dict, number: int, scale: list[float]) -> None:
    multiscale(document)["datasets"][number]["coordinateTransformations"][0]["scale"] = scale


FAULTS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "no metadata": ("missing.multiscales", edit("0/zarr.json", lambda d: d["attributes"]["ome"].pop("multiscales"))),
    "no version": ("missing.version", edit("0/zarr.json", lambda d: d["attributes"]["ome"].pop("version"))),
    "a pixel of 1 mm": ("wrong.physical_size", edit("0/zarr.json", lambda d: rescale(d, 0, [1, 1000.0, 1000.0]))),
    "an oblong pixel": ("wrong.physical_size", edit("0/zarr.json", lambda d: rescale(d, 0, [1, 0.25, 0.3]))),
    "a wrong scale": ("levels.scale", edit("0/zarr.json", lambda d: rescale(d, 1, [1, 0.75, 0.75]))),
    "a level gone": ("levels.missing", lambda store: shutil.rmtree(store / "0" / "1")),
    "a level too big": ("levels.size", edit("0/1/zarr.json", lambda d: d.update(shape=[3, 50, 75]))),
    "levels of two types": ("levels.dtype", edit("0/1/zarr.json", lambda d: d.update(data_type="uint16"))),
    "no OME-XML": ("missing.ome_xml", lambda store: (store / "OME" / "METADATA.ome.xml").unlink()),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_a_store(fault: str, scan: Path, tmp_path: Path) -> None:
    store = tmp_path / "s.ome.zarr"
    shutil.copytree(scan / "slide.ome.zarr", store)
    code, plant = FAULTS[fault]
    plant(store)
    assert code in codes(audit(store))


def test_a_slide_that_says_little(tmp_path: Path) -> None:
    store = slide(tmp_path / "s.ome.zarr", Gzip(), metadata=SlideMetadata("scan-1", 40.0, (Channel("Brightfield"),)))
    to_ome_tiff(store.path, tmp_path / "s.ome.tif")
    found = {f.code: f.severity for f in audit(tmp_path / "s.ome.tif")}
    assert found == {
        "wrong.physical_size": "error",
        "missing.acquisition_date": "error",
        "missing.magnification": "warning",
        "missing.numerical_aperture": "warning",
        "missing.exposure": "warning",
    }


def test_resolution_tags_that_contradict_ome_xml(scan: Path, tmp_path: Path) -> None:
    path = tmp_path / "s.ome.tif"
    shutil.copyfile(scan / "slide.ome.tif", path)
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tiff.pages[0].tags["XResolution"].overwrite((20000, 1))
    assert codes(audit(path)) == {"wrong.resolution"}


def test_what_cannot_be_audited(scan: Path, tmp_path: Path) -> None:
    (tmp_path / "text.tif").write_text("no tiff")
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.zarr").mkdir()
    (tmp_path / "bad.zarr" / "zarr.json").write_text("{")
    for name in ("text.tif", "empty", "nowhere", "bad.zarr"):
        with pytest.raises(SourceError):
            audit(tmp_path / name)
    with pytest.raises(UsageError, match="exists"):
        fix(scan, tmp_path / "empty")
    assert not list((tmp_path / "empty").iterdir())

"""Audit of an OME-Zarr 0.5 and of a scan folder; and the parts of a cleaned copy that are text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from edge_scanner.audit.finding import Finding
from edge_scanner.audit.ome import check_document, check_levels, check_pixel_size
from edge_scanner.audit.personal import clean_json, clean_xml, in_json, in_xml, plain_xml
from edge_scanner.errors import SourceError

_UNITS_UM = {"micrometer": 1.0, "nanometer": 1e-3, "millimeter": 1e3, "angstrom": 1e-4, "meter": 1e6}
_SCAN_DOCUMENTS = ("scan.json", "report.json")


def audit_zarr(path: Path, where: str) -> Iterator[Finding]:
    """Yield the findings of one store: a `bioformats2raw.layout` root or a multiscale group.

    Raises
    ------
    SourceError
        A document that is no JSON or XML.
    """
    for file in _documents(path):
        yield from in_json(f"{where}/{file.relative_to(path)}", _json(file))
    xml = path / "OME" / "METADATA.ome.xml"
    if xml.exists():
        place = f"{where}/OME/METADATA.ome.xml"
        yield from check_document(place, _xml(xml))
        yield from in_xml(place, _xml(xml))
    else:
        yield Finding("error", "missing.ome_xml", where, "The store has no OME/METADATA.ome.xml.")
    image = path / "0" if (path / "0" / "0" / "zarr.json").exists() else path
    yield from _check_image(image, where)


def audit_scan(path: Path, where: str) -> Iterator[Finding]:
    """Yield the personal data in the JSON documents of a scan folder."""
    for name in _SCAN_DOCUMENTS:
        if (path / name).exists():
            yield from in_json(f"{where}/{name}", _json(path / name))
    if not (path / "scan.json").exists():
        yield Finding("error", "missing.scan_json", where, "The scan folder has no scan.json.")


def clean_documents(folder: Path) -> None:
    """Empty the personal texts of every JSON and OME-XML document below a folder, in place."""
    for file in [*_documents(folder), *(folder / name for name in _SCAN_DOCUMENTS if (folder / name).exists())]:
        file.write_text(json.dumps(clean_json(_json(file)), indent=2) + "\n", encoding="utf-8")
    for file in folder.rglob("METADATA.ome.xml"):
        root = _xml(file)
        clean_xml(root)
        file.write_bytes(plain_xml(root))


def _check_image(image: Path, where: str) -> Iterator[Finding]:
    try:
        ome = _json(image / "zarr.json")["attributes"]["ome"]
        multiscale = ome["multiscales"][0]
        axes = [axis["name"] for axis in multiscale["axes"]]
        units = [_UNITS_UM.get(axis.get("unit", ""), 0.0) for axis in multiscale["axes"]]
        datasets = multiscale["datasets"]
        scales = [_scale(dataset) for dataset in datasets]
        y, x = axes.index("y"), axes.index("x")
    except (KeyError, IndexError, TypeError, ValueError, SourceError):
        yield Finding("error", "missing.multiscales", where, "The store has no readable multiscales metadata.")
        return
    if ome.get("version") is None:
        yield Finding("error", "missing.version", where, "The OME-Zarr version is missing.")
    yield from check_pixel_size(where, (scales[0][x] * units[x]) or None, (scales[0][y] * units[y]) or None)
    arrays = []
    for dataset in datasets:
        if not (image / dataset["path"] / "zarr.json").exists():
            yield Finding("error", "levels.missing", where, f"Level {dataset['path']} is not there.")
            return
        arrays.append(_json(image / dataset["path"] / "zarr.json"))
    sizes = [(int(array["shape"][y]), int(array["shape"][x])) for array in arrays]
    yield from check_levels(where, sizes)
    if len({array["data_type"] for array in arrays}) > 1:
        yield Finding("error", "levels.dtype", where, "The levels differ in their data type.")
    for number, ((height, _), scale) in enumerate(zip(sizes, scales, strict=True)):
        stated, found = scale[y] / scales[0][y], sizes[0][0] / height
        if abs(sizes[0][0] / stated - height) >= 1:
            message = f"Level {number} is scaled by {stated:g} but its pixels say {found:g}."
            yield Finding("error", "levels.scale", where, message)


def _scale(dataset: Any) -> list[float]:
    transforms = dataset["coordinateTransformations"]
    return [float(value) for value in next(t["scale"] for t in transforms if t["type"] == "scale")]


def _documents(folder: Path) -> list[Path]:
    """Return the `zarr.json` of every group and array, without walking the chunks."""
    patterns = ("zarr.json", "*/zarr.json", "*/*/zarr.json", "*/*/*/zarr.json")
    return sorted(file for pattern in patterns for file in folder.glob(pattern))


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SourceError(f"{file.name} in {file.parent.name} cannot be read ({error}).") from error


def _xml(file: Path) -> ET.Element:
    try:
        return ET.fromstring(file.read_bytes())
    except (OSError, ET.ParseError) as error:
        raise SourceError(f"{file.name} in {file.parent.name} cannot be read ({error}).") from error

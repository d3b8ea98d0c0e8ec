"""OME-TIFF with stage positions, one image a field: Micro-Manager's files among them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import tifffile

from edge_scanner.errors import SourceError
from edge_scanner.fuse.sources.tile_set import TileSet, inside, number, shifted_um
from edge_scanner.fuse.tiles import DAMAGE, TileFile

_UM = {"µm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6, "reference frame": 1.0}
_PAGES_MOST = 1_000_000


@dataclass(frozen=True, slots=True)
class _Field:
    tile: TileFile
    x_um: float
    y_um: float
    pixel_size_um: float | None


def read(paths: Sequence[Path], pixel_size_um: float | None) -> TileSet:
    """Read the fields that the OME-XML of some files describes: all channels, the middle z, the first point in time.

    Raises
    ------
    SourceError
        No OME-XML, or a field without a stage position.
    """
    fields: dict[tuple[tuple[str, int], ...], _Field] = {}
    for path in paths:
        for field in _fields(path):
            fields.setdefault(field.tile.pages, field)
    found = list(fields.values())
    size = pixel_size_um or next((f.pixel_size_um for f in found if f.pixel_size_um), None)
    transforms = tuple(shifted_um(f.x_um, f.y_um, size, paths[0]) for f in found)
    return TileSet(tuple(f.tile for f in found), transforms, size, paths[0])


def _fields(path: Path) -> Iterator[_Field]:
    try:
        with tifffile.TiffFile(path) as tiff:
            text = tiff.ome_metadata or ""
            root = ET.fromstring(text) if text.strip().startswith("<") else None
    except (*DAMAGE, ET.ParseError) as error:
        raise SourceError(f"{path.name} cannot be read ({error}).", "Check the file.") from error
    if root is None:
        raise SourceError(
            f"{path.name} has no OME-XML.", "It needs stage positions; list the tiles in tiles.csv instead."
        )
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    if root.find("BinaryOnly") is not None:
        return
    for image in root.findall("Image"):
        pixels = image.find("Pixels")
        if pixels is not None:
            yield _field(path, image, pixels)


def _field(path: Path, image: ET.Element, pixels: ET.Element) -> _Field:
    name = image.get("Name") or image.get("ID") or path.name
    pages = _pages(path, pixels)
    planes = max(1, len(pixels.findall("Channel")))
    z = int(pixels.get("SizeZ", "1")) // 2
    try:
        chosen = tuple(pages[c, z, 0] for c in range(planes))
    except KeyError as error:
        raise SourceError(f"{path.name} does not say where the pixels of {name} lie.") from error
    x_um, y_um = _position(pixels, image) or _micro_manager(chosen[0], name)
    size = pixels.get("PhysicalSizeX")
    um = float(size) * _unit(pixels.get("PhysicalSizeXUnit", "µm")) if size else None
    return _Field(TileFile(name, chosen), x_um, y_um, um)


def _pages(path: Path, pixels: ET.Element) -> dict[tuple[int, int, int], tuple[str, int]]:
    """Return the (file, page) of every (c, z, t), by the TiffData elements."""
    planes = max(1, len(pixels.findall("Channel")))
    sizes = {"C": planes, "Z": int(pixels.get("SizeZ", "1")), "T": int(pixels.get("SizeT", "1"))}
    count = sizes["C"] * sizes["Z"] * sizes["T"]
    if not 0 < count <= _PAGES_MOST:
        raise SourceError(f"{path.name} describes {count} pages in one image.")
    order = pixels.get("DimensionOrder", "XYCZT")[2:]
    slow_first = list(product(*(range(sizes[axis]) for axis in reversed(order))))
    places = [tuple(dict(zip(reversed(order), at, strict=True))[axis] for axis in "CZT") for at in slow_first]
    found: dict[tuple[int, int, int], tuple[str, int]] = {}
    for data in pixels.findall("TiffData"):
        first = tuple(int(data.get(key, "0")) for key in ("FirstC", "FirstZ", "FirstT"))
        default = "1" if data.get("IFD") is not None else str(count)
        begin, ifd = places.index(first), int(data.get("IFD", "0"))
        uuid = data.find("UUID")
        name = uuid.get("FileName") if uuid is not None else None
        file = inside(path.parent, name) if name else path
        if not file.exists() and path.name.startswith(file.name.split(".ome")[0]):
            file = path  # renamed after it was written
        for step, (c, z, t) in enumerate(places[begin : begin + int(data.get("PlaneCount", default))]):
            found[c, z, t] = (str(file), ifd + step)
    return found


def _position(pixels: ET.Element, image: ET.Element) -> tuple[float, float] | None:
    for plane in pixels.findall("Plane"):
        if plane.get("PositionX") is not None and plane.get("PositionY") is not None:
            return _um(plane.attrib, "PositionX"), _um(plane.attrib, "PositionY")
    label = image.find("StageLabel")
    if label is not None and label.get("X") is not None and label.get("Y") is not None:
        return _um(label.attrib, "X"), _um(label.attrib, "Y")
    return None


def _um(attributes: Mapping[str, str], key: str) -> float:
    return number(attributes, key, "OME-XML") * _unit(attributes.get(f"{key}Unit", "reference frame"))


def _unit(name: str) -> float:
    if name not in _UM:
        raise SourceError(f"The OME-XML gives positions in {name!r}.", "Known units are um, nm, mm, cm and m.")
    return _UM[name]


def _micro_manager(page: tuple[str, int], name: str) -> tuple[float, float]:
    """Return the stage position from the tag that Micro-Manager writes to each page."""
    told: Any = None
    try:
        with tifffile.TiffFile(page[0]) as tiff:
            tag = tiff.pages[page[1]].tags.get("MicroManagerMetadata")
            told = tag.value if tag is not None else None
    except DAMAGE:
        told = None
    if isinstance(told, dict) and "XPositionUm" in told and "YPositionUm" in told:
        return float(told["XPositionUm"]), float(told["YPositionUm"])
    raise SourceError(f"The image {name} has no stage position.", "List the tiles in tiles.csv instead.")

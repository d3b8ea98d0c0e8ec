"""Checks of OME-XML and of pyramids that OME-TIFF and OME-Zarr share."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from xml.etree import ElementTree as ET

from edge_scanner.audit.finding import Finding, Severity

_UNITS_UM = {"µm": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6, "Å": 1e-4, "pm": 1e-6}
_PLAUSIBLE_UM = 0.01, 25.0
_PYRAMID_PX = 4096
_REQUIRED = {"channel", "acquisition_date"}


def check_document(where: str, root: ET.Element) -> Iterator[Finding]:
    """Yield what is missing or implausible in an OME-XML document; the first Image is the slide."""
    if _name(root) != "OME":
        yield Finding("error", "wrong.xml", where, f"The document's root is {_name(root)}, not OME.")
        return
    image = _child(root, "Image")
    pixels = None if image is None else _child(image, "Pixels")
    if image is None or pixels is None:
        yield Finding("error", "missing.pixels", where, "OME-XML has no Image with Pixels.")
        return
    yield from check_pixel_size(where, pixel_size_um(pixels, "X"), pixel_size_um(pixels, "Y"))
    expected = {
        "channel": _child(pixels, "Channel") is not None,
        "acquisition_date": _child(image, "AcquisitionDate") is not None,
        "magnification": _has(root, "Objective", "NominalMagnification"),
        "numerical_aperture": _has(root, "Objective", "LensNA"),
        "position": _has(pixels, "Plane", "PositionX") and _has(pixels, "Plane", "PositionY"),
        "exposure": _has(pixels, "Plane", "ExposureTime"),
    }
    for field, there in expected.items():
        if not there:
            severity: Severity = "error" if field in _REQUIRED else "warning"
            yield Finding(severity, f"missing.{field}", where, f"OME-XML lacks the {field.replace('_', ' ')}.")


def pixel_size_um(pixels: ET.Element, axis: str) -> float | None:
    """Return the physical size along X or Y in micrometres; None where it is missing, NaN where it is no length."""
    text = pixels.get(f"PhysicalSize{axis}")
    if text is None:
        return None
    try:
        return float(text) * _UNITS_UM.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"), math.nan)
    except ValueError:
        return math.nan


def check_pixel_size(where: str, x_um: float | None, y_um: float | None) -> Iterator[Finding]:
    """Yield a finding when the pixel size is missing, not that of a microscope, or not square."""
    if x_um is None or y_um is None:
        yield Finding("error", "missing.physical_size", where, "The physical size of a pixel is missing.")
        return
    low, high = _PLAUSIBLE_UM
    if not (low <= x_um <= high and low <= y_um <= high):
        message = f"A pixel of {x_um:g} x {y_um:g} um is not that of a microscope."
        yield Finding("error", "wrong.physical_size", where, message)
    elif abs(x_um / y_um - 1) > 0.01:
        yield Finding("warning", "wrong.physical_size", where, f"The pixel is not square: {x_um:g} x {y_um:g} um.")


def check_levels(where: str, sizes: Sequence[tuple[int, int]]) -> Iterator[Finding]:
    """Yield a finding for each level whose (height, width) is not level 0 reduced by one whole factor."""
    height, width = sizes[0]
    if len(sizes) == 1 and max(height, width) > _PYRAMID_PX:
        yield Finding("warning", "levels.none", where, f"{width} x {height} px without a pyramid.")
    for number, (h, w) in enumerate(sizes[1:], 1):
        previous = sizes[number - 1]
        if not (0 < h <= previous[0] and 0 < w <= previous[1]) or (h, w) == previous:
            yield Finding("error", "levels.order", where, f"Level {number} is not smaller than the one before.")
            continue
        if not _one_factor((height, width), (h, w)):
            message = f"Level {number}, {w} x {h} px, is not level 0 reduced by a whole number along both axes."
            yield Finding("error", "levels.size", where, message)


def ome_images(root: ET.Element) -> Iterator[tuple[str, int]]:
    """Yield the name and the first IFD of every image."""
    for image in root:
        if _name(image) == "Image":
            data = next((element for element in image.iter() if _name(element) == "TiffData"), None)
            yield image.get("Name", ""), int(data.get("IFD", "0")) if data is not None else 0


def _one_factor(full: tuple[int, int], reduced: tuple[int, int]) -> bool:
    """Tell whether both sides are divided by the same whole number, rounded up or down."""
    longest = full.index(max(full))
    near = round(full[longest] / reduced[longest])
    return any(
        all(abs(a / factor - b) < 1 for a, b in zip(full, reduced, strict=True))
        for factor in (near - 1, near, near + 1)
        if factor > 0
    )


def _name(element: ET.Element) -> str:
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def _child(parent: ET.Element, name: str) -> ET.Element | None:
    return next((child for child in parent if _name(child) == name), None)


def _has(root: ET.Element, name: str, attribute: str) -> bool:
    return any(_name(element) == name and element.get(attribute) for element in root.iter())

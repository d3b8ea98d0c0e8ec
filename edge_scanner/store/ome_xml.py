"""OME-XML 2016-06: what a slide's files say about it, the same text for OME-TIFF and OME-Zarr."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from xml.etree import ElementTree as ET

import numpy as np
from numpy.typing import DTypeLike

from edge_scanner.store.metadata import Channel, SlideMetadata

NAMESPACE = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
SETTINGS_NAMESPACE = "edge_scanner/settings"
_IMMERSION = {"air": "Air", "water": "Water", "oil": "Oil"}
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True, slots=True)
class ExtraImage:
    """A further RGB uint8 image of the same file: label, macro or thumbnail.

    Parameters
    ----------
    name : str
    height_px, width_px : int
    ifd : int
        Its place in the main chain of IFDs.
    pixel_size_um : float or None
        Where it is known.
    """

    name: str
    height_px: int
    width_px: int
    ifd: int
    pixel_size_um: float | None = None


def build_ome_xml(
    metadata: SlideMetadata,
    *,
    height_px: int,
    width_px: int,
    channels: int,
    dtype: DTypeLike,
    kind: Literal["tiff", "zarr"],
    big_endian: bool = False,
    extra: Sequence[ExtraImage] = (),
) -> str:
    """Return the OME-XML document of a slide.

    Parameters
    ----------
    metadata : SlideMetadata
    height_px, width_px : int
        Level 0.
    channels : int
        Samples a pixel; three with a single metadata channel is RGB, else one plane a channel.
    dtype : uint8 or uint16
    kind : str
        `tiff` writes TiffData (plane c is IFD c of the main chain), `zarr` MetadataOnly.
    big_endian : bool
        Byte order of the pixels.
    extra : sequence of ExtraImage
        Images beside the slide.

    Returns
    -------
    str
        With an XML declaration, UTF-8.
    """
    root = ET.Element(
        "OME",
        {
            "xmlns": NAMESPACE,
            "xmlns:xsi": "http://www.w3.org/2001/XMLSchema-instance",
            "xsi:schemaLocation": f"{NAMESPACE} {NAMESPACE}/ome.xsd",
        }
        | ({"Creator": _text(metadata.software)} if metadata.software else {}),
    )
    objective = _instrument(root, metadata)
    image = ET.SubElement(root, "Image", ID="Image:0", Name=_text(metadata.name))
    if metadata.acquired:
        ET.SubElement(image, "AcquisitionDate").text = metadata.acquired
    if objective:
        ET.SubElement(image, "InstrumentRef", ID="Instrument:0")
        ET.SubElement(image, "ObjectiveSettings", ID="Objective:0", Medium=_IMMERSION.get(metadata.immersion, "Other"))
    pixels = _pixels(image, 0, height_px, width_px, channels, np.dtype(dtype).name, big_endian, metadata.pixel_size_um)
    planes = _channels(pixels, metadata.channels, channels)
    if kind == "tiff":
        for c in range(planes):
            _tiff_data(pixels, c, c)
    else:
        ET.SubElement(pixels, "MetadataOnly")
    for c in range(planes):
        _plane(pixels, c, metadata)
    if metadata.settings:
        ET.SubElement(image, "AnnotationRef", ID="Annotation:0")
    for number, item in enumerate(extra, 1):
        _extra(root, number, item)
    _settings(root, metadata)
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode")


def _text(value: object) -> str:
    return _NOT_XML.sub("", str(value))


def _instrument(root: ET.Element, metadata: SlideMetadata) -> bool:
    attributes = {"ID": "Objective:0", "Immersion": _IMMERSION.get(metadata.immersion, "Other")}
    if metadata.magnification is not None:
        attributes["NominalMagnification"] = repr(float(metadata.magnification))
    if metadata.numerical_aperture is not None:
        attributes["LensNA"] = repr(float(metadata.numerical_aperture))
    if len(attributes) == 2:
        return False
    ET.SubElement(ET.SubElement(root, "Instrument", ID="Instrument:0"), "Objective", attributes)
    return True


def _pixels(
    image: ET.Element,
    number: int,
    height_px: int,
    width_px: int,
    channels: int,
    dtype: str,
    big: bool,
    um: float | None,
) -> ET.Element:
    pixels = ET.SubElement(
        image,
        "Pixels",
        ID=f"Pixels:{number}",
        DimensionOrder="XYCZT",
        Type=dtype,
        BigEndian=str(big).lower(),
        SizeX=str(width_px),
        SizeY=str(height_px),
        SizeZ="1",
        SizeC=str(channels),
        SizeT="1",
    )
    if um is not None and um > 0:
        for axis in "XY":
            pixels.set(f"PhysicalSize{axis}", repr(float(um)))
            pixels.set(f"PhysicalSize{axis}Unit", "µm")
    return pixels


def _channels(pixels: ET.Element, channels: Sequence[Channel], samples: int) -> int:
    """Add the Channel elements and return the number of planes."""
    per_channel = samples // len(channels)
    pixels.set("Interleaved", str(per_channel > 1).lower())
    for c, channel in enumerate(channels):
        rgba = (int(channel.colour, 16) << 8) | 0xFF
        colour = rgba - (1 << 32) if rgba >= 1 << 31 else rgba
        element = ET.SubElement(
            pixels, "Channel", ID=f"Channel:0:{c}", Name=_text(channel.name), SamplesPerPixel=str(per_channel)
        )
        element.set("Color", str(colour))
        if channel.emission_nm is not None:
            element.set("EmissionWavelength", repr(float(channel.emission_nm)))
            element.set("EmissionWavelengthUnit", "nm")
    return len(channels)


def _tiff_data(pixels: ET.Element, c: int, ifd: int) -> None:
    ET.SubElement(pixels, "TiffData", IFD=str(ifd), FirstZ="0", FirstT="0", FirstC=str(c), PlaneCount="1")


def _plane(pixels: ET.Element, c: int, metadata: SlideMetadata) -> None:
    plane = ET.SubElement(pixels, "Plane", TheZ="0", TheT="0", TheC=str(c))
    exposure_ms = metadata.channels[c].exposure_ms
    if exposure_ms is not None:
        plane.set("ExposureTime", repr(float(exposure_ms)))
        plane.set("ExposureTimeUnit", "ms")
    for axis, value in (("X", metadata.origin_x_um), ("Y", metadata.origin_y_um), ("Z", metadata.z_um)):
        plane.set(f"Position{axis}", repr(float(value)))
        plane.set(f"Position{axis}Unit", "µm")


def _extra(root: ET.Element, number: int, item: ExtraImage) -> None:
    image = ET.SubElement(root, "Image", ID=f"Image:{number}", Name=item.name)
    pixels = _pixels(image, number, item.height_px, item.width_px, 3, "uint8", False, item.pixel_size_um)
    pixels.set("Interleaved", "true")
    ET.SubElement(pixels, "Channel", ID=f"Channel:{number}:0", SamplesPerPixel="3")
    _tiff_data(pixels, 0, item.ifd)


def _settings(root: ET.Element, metadata: SlideMetadata) -> None:
    if not metadata.settings:
        return
    annotation = ET.SubElement(
        ET.SubElement(root, "StructuredAnnotations"),
        "MapAnnotation",
        ID="Annotation:0",
        Namespace=SETTINGS_NAMESPACE,
    )
    value = ET.SubElement(annotation, "Value")
    for key, text in metadata.settings.items():
        ET.SubElement(value, "M", K=_text(key)).text = _text(text)

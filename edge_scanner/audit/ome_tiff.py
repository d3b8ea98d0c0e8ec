"""Audit of an OME-TIFF: its OME-XML, its pyramid, its tags; and a cleaned copy."""

from __future__ import annotations

import contextlib
import os
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import tifffile

from edge_scanner.audit.finding import Finding
from edge_scanner.audit.ome import check_document, check_levels, ome_images, pixel_size_um
from edge_scanner.audit.personal import clean_xml, in_xml, personal, plain_xml
from edge_scanner.errors import SourceError
from edge_scanner.export.whole_file import whole_file

_DESCRIPTION, _ICC = 270, 34675
_PRIVATE_IMAGES = {"label", "macro", "overview"}
_DEFLATE = (8, 32946)


def audit_tiff(path: Path, where: str) -> Iterator[Finding]:
    """Yield the findings of one file.

    Raises
    ------
    SourceError
        Not a TIFF that can be read.
    """
    with _opened(path) as tiff:
        root = _ome(tiff)
        if root is None:
            yield Finding("error", "missing.ome_xml", where, "The file holds no OME-XML.")
        else:
            yield from check_document(f"{where}: OME-XML", root)
            yield from in_xml(f"{where}: OME-XML", root)
            yield from _check_images(where, tiff, root)
            yield from _check_resolution(where, tiff, root)
        levels = [(int(level.imagelength), int(level.imagewidth)) for level in _levels(tiff.pages[0])]
        yield from check_levels(where, levels)
        for place, name, text in _texts(tiff):
            if not (root is not None and place == (0, _DESCRIPTION)) and (
                finding := personal(f"{where}: IFD {place[0]} {name}", name, text)
            ):
                yield finding


def clean_tiff(path: Path, out: Path) -> None:
    """Write a copy with personal texts emptied and label and macro images made white, in their place.

    Raises
    ------
    SourceError
        Not a TIFF, or a label whose compression cannot be rewritten.
    """
    with _opened(path) as tiff:
        patches = list(_patches(tiff, path))
    with whole_file(out) as fd:
        with path.open("rb") as source, os.fdopen(os.dup(fd), "wb") as copy:
            shutil.copyfileobj(source, copy, 4 << 20)
        for offset, data in patches:
            os.pwrite(fd, data, offset)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a file whose directories are read as they are asked for: what is broken in them is told as well."""
    try:
        with tifffile.TiffFile(path) as tiff:
            if not len(tiff.pages):  # the directories of a file that was cut off are missing: they lie at its end
                raise SourceError(f"{path.name} holds no image.", "It may have been cut off; copy it again.")
            yield tiff
    except (OSError, ValueError, IndexError, tifffile.TiffFileError) as error:
        raise SourceError(f"{path.name} cannot be read as a TIFF ({error}).", "Check the file.") from error


def _ome(tiff: Any) -> ET.Element | None:
    text = tiff.pages[0].description
    try:
        root = ET.fromstring(text)
    except ET.ParseError:
        return None
    return root if root.tag.endswith("}OME") else None


def _levels(page: Any) -> list[Any]:
    return [page, *(page.pages or [])]


def _directories(tiff: Any) -> list[Any]:
    return [tiff.pages[k].aspage() for k in range(len(tiff.pages))]


def _texts(tiff: Any) -> Iterator[tuple[tuple[int, int], str, str]]:
    """Yield ((directory, tag code), tag name, text) of every ASCII tag of the main chain."""
    for number, page in enumerate(_directories(tiff)):
        for tag in page.tags:
            if isinstance(tag.value, str):
                yield (number, tag.code), tag.name, tag.value


def _check_images(where: str, tiff: Any, root: ET.Element) -> Iterator[Finding]:
    for name, ifd in ome_images(root):
        if name.lower() in _PRIVATE_IMAGES and not (ifd < len(tiff.pages) and _blank(tiff.pages[ifd])):
            message = f"The image {name} may show a label with names or barcodes."
            yield Finding("warning", "personal.image", f"{where}: image {name}", message)


def _blank(page: Any) -> bool:
    pixels = page.asarray()
    return bool((pixels == pixels.flat[0]).all())


def _check_resolution(where: str, tiff: Any, root: ET.Element) -> Iterator[Finding]:
    page = tiff.pages[0]
    pixels = next((element for element in root.iter() if element.tag.endswith("}Pixels")), None)
    stated = None if pixels is None else pixel_size_um(pixels, "X")
    unit_um = {2: 25_400.0, 3: 10_000.0}.get(int(page.resolutionunit or 1))
    if stated and unit_um and "XResolution" in page.tags:
        resolution = page.get_resolution()[0]
        if resolution and abs(unit_um / resolution / stated - 1) > 0.01:
            message = f"XResolution says {unit_um / resolution:g} um a pixel, OME-XML {stated:g} um."
            yield Finding("error", "wrong.resolution", where, message)


def _patches(tiff: Any, path: Path) -> Iterator[tuple[int, bytes]]:
    root = _ome(tiff)
    pages = _directories(tiff)
    if root is not None:
        private = {ifd for name, ifd in ome_images(root) if name.lower() in _PRIVATE_IMAGES}
        for ifd in private & set(range(len(pages))):
            yield from _whitened(pages[ifd], path)
        clean_xml(root)
    for number, page in enumerate(pages):
        for tag in page.tags:
            if not isinstance(tag.value, str):
                continue
            if root is not None and (number, tag.code) == (0, _DESCRIPTION):
                text = _same_length(root, tag.valuebytecount - 1)
                yield tag.valueoffset, text + b"\0"
            elif personal("", tag.name, tag.value):
                yield tag.valueoffset, bytes(tag.valuebytecount)


def _same_length(root: ET.Element, length: int) -> bytes:
    text = plain_xml(root)
    if len(text) > length:
        raise SourceError("The cleaned OME-XML does not fit into its place.", "Export the slide anew.")
    return text.ljust(length)


def _whitened(page: Any, path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield white segments, padded to the length of those that they overwrite."""
    rows = int(page.tilelength if page.is_tiled else min(page.rowsperstrip, page.imagelength))
    cols = int(page.tilewidth if page.is_tiled else page.imagewidth)
    raw = b"\xff" * (rows * cols * int(page.samplesperpixel) * int(page.bitspersample) // 8)
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        white = raw[:count] if page.compression == 1 else zlib.compress(raw, 9)
        if page.compression not in (1, *_DEFLATE) or len(white) > count:
            raise SourceError(f"A label image of {path.name} cannot be made white.", "Export the slide without labels.")
        yield offset, white.ljust(count, b"\0")

"""Export of a store to one pyramidal OME-TIFF that every reader sees whole, by copying encoded bytes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edge_scanner.errors import AbortedError, UsageError
from edge_scanner.export.bigtiff import Compression, Directory, Tag, TiffWriter
from edge_scanner.export.icc import srgb_profile
from edge_scanner.export.tile_codec import TileCodec, make_tile_codec
from edge_scanner.export.tiles import TileGrid, write_tiles
from edge_scanner.export.whole_file import refuse_existing, whole_file
from edge_scanner.memory import peak_rss_mib
from edge_scanner.store import SlideStore
from edge_scanner.store.codec import Gzip, gzip_to_zlib
from edge_scanner.store.ome_xml import ExtraImage, build_ome_xml
from edge_scanner.store.output import refuse_inside
from edge_scanner.tile import Pixels

_THUMBNAIL_PX = 1024
_REDUCED, _EXTRA, _MACRO = 1, 3, 9
"""NewSubfileType: bit 0 is a reduced image, bit 1 a page. Cucim refuses a second 0, Bio-Formats cannot show a 1."""


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What an export did.

    Parameters
    ----------
    bytes : int
        Size of the file.
    levels : int
    wall_s : float
    copied_tiles, encoded_tiles : int
        Tiles whose bytes are the stored chunk's, and tiles encoded anew; the shared background tile is neither.
    peak_rss_mib : float
        Of this process since it began.
    """

    bytes: int
    levels: int
    wall_s: float
    copied_tiles: int
    encoded_tiles: int
    peak_rss_mib: float


def to_ome_tiff(
    src: Path | str,
    out: Path | str,
    *,
    compression: str = "keep",
    quality: int | None = None,
    overwrite: bool = False,
    progress: Callable[[float], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
    label: Pixels | None = None,
    macro: Pixels | None = None,
) -> ExportReport:
    """Write a store as a pyramidal OME-TIFF.

    Memory bound: one shard's index, one 4 MiB buffer and the offsets of all tiles, 16 bytes each.

    Parameters
    ----------
    src : path
        OME-Zarr store of this project; read only.
    out : path
        File to write; appears whole or not at all.
    compression : str
        `keep` copies the encoded chunks; `jpeg`, `zlib`, `zstd` and `none` encode chunk by chunk.
    quality : int, optional
        1 to 100, of `jpeg`; 90 when omitted.
    overwrite : bool
        Replace an existing file.
    progress : callable, optional
        Called with the share done, 0 to 1.
    cancelled : callable, optional
        Polled; when it returns True the export ends.
    label, macro : ndarray, (y, x, 3), uint8, optional
        Further images of the slide. A label may identify a patient: none is looked for by itself. Cucim takes
        them for levels.

    Returns
    -------
    ExportReport

    Raises
    ------
    UsageError
        `out` is there, a directory or within `src`, or the compression cannot be had.
    StoreError
        The store is damaged, or `out` cannot be written.
    DiskLowError
        The disk became full.
    AbortedError
        `cancelled` returned True.
    """
    started = time.perf_counter()
    refuse_existing(Path(out), overwrite)
    refuse_inside(Path(out), Path(src))
    source = SlideStore.open(Path(src))
    if source.chunk_px % 16:
        raise UsageError(f"Chunks of {source.chunk_px} px cannot be TIFF tiles, whose side is a multiple of 16.")
    codec = make_tile_codec(source.codec, source.layout.part_shape, source.dtype, compression, quality)
    extra = _extra_images(label, macro)
    total = source.layout.planes * sum(level.rows * level.cols for level in source.levels)

    def tick(done: int) -> None:
        if cancelled is not None and cancelled():
            raise AbortedError("The export was cancelled.")
        if progress is not None:
            progress(done / total)

    with whole_file(Path(out), overwrite=overwrite) as fd:
        writer = TiffWriter(fd)
        grids, written = write_tiles(source, codec, writer, tick)
        writer.finish(_chain(source, codec, grids, extra, writer))
        size = writer.size
    copied = written if codec.copies else 0
    peak_mib = peak_rss_mib()
    wall_s = time.perf_counter() - started
    return ExportReport(size, len(source.levels), wall_s, copied, written - copied, peak_mib)


def _chain(
    source: SlideStore, codec: TileCodec, grids: Sequence[TileGrid], extra: Mapping[str, Pixels], writer: TiffWriter
) -> list[Directory]:
    """Return the main chain: full planes with SubIFDs, the levels of a single plane once more, further images.

    OpenSlide and cucim look for levels in the main chain only, in any order; everybody else in the SubIFDs. The
    thumbnail is one of those levels: cucim takes every directory for a level, so none is added without need. What
    OME-XML speaks of comes first: Bio-Formats does not count plain reduced images.
    """
    pyramids = [_pyramid(source, codec, grids, plane) for plane in range(source.layout.planes)]
    full = [replace(pyramid[0], levels=pyramid[1:]) for pyramid in pyramids]
    levels = pyramids[0][1:] if len(pyramids) == 1 else []
    images = {name: _strip(pixels, _MACRO if name == "macro" else _EXTRA, writer) for name, pixels in extra.items()}
    if levels and source.layout.rgb and source.dtype == np.uint8:
        levels.sort(key=lambda level: max(level.height_px, level.width_px) > _THUMBNAIL_PX)
        images["thumbnail"] = replace(levels.pop(0), subfile_type=_EXTRA)
    described = [
        ExtraImage(name, image.height_px, image.width_px, ifd, image.pixel_size_um)
        for ifd, (name, image) in enumerate(images.items(), len(full))
    ]
    return [replace(full[0], texts=_texts(source, described)), *full[1:], *images.values(), *levels]


def _pyramid(source: SlideStore, codec: TileCodec, grids: Sequence[TileGrid], plane: int) -> list[Directory]:
    return [
        Directory(
            level.height_px,
            level.width_px,
            3 if source.layout.rgb else 1,
            source.dtype,
            codec.compression,
            grid.offsets[plane],
            grid.counts[plane],
            tile_px=source.chunk_px,
            subsampling=codec.subsampling,
            pixel_size_um=source.metadata.pixel_size_um * level.downsample,
            subfile_type=_REDUCED if level.downsample > 1 else 0,
            plain_grey=source.layout.planes == 1 and source.dtype == np.uint8,
        )
        for level, grid in zip(source.levels, grids, strict=True)
    ]


def _strip(pixels: Pixels, subfile_type: int, writer: TiffWriter) -> Directory:
    data = gzip_to_zlib(Gzip().encode(np.ascontiguousarray(pixels)))
    place = np.array([writer.append(data)], np.uint64), np.array([len(data)], np.uint64)
    height, width, samples = pixels.shape
    return Directory(height, width, samples, pixels.dtype, Compression.DEFLATE, *place, subfile_type=subfile_type)


def _texts(source: SlideStore, extra: Sequence[ExtraImage]) -> dict[Tag, str | bytes]:
    metadata = source.metadata
    xml = build_ome_xml(
        metadata,
        height_px=source.levels[0].height_px,
        width_px=source.levels[0].width_px,
        channels=source.channels,
        dtype=source.dtype,
        kind="tiff",
        extra=extra,
    )
    texts: dict[Tag, str | bytes] = {Tag.IMAGE_DESCRIPTION: xml}
    if metadata.software:
        texts[Tag.SOFTWARE] = metadata.software
    if metadata.acquired:
        texts[Tag.DATE_TIME] = metadata.acquired[:19].replace("-", ":").replace("T", " ")
    if source.layout.rgb and source.dtype == np.uint8:
        texts[Tag.ICC_PROFILE] = srgb_profile()
    return texts


def _extra_images(label: Pixels | None, macro: Pixels | None) -> dict[str, Pixels]:
    images = {name: pixels for name, pixels in (("label", label), ("macro", macro)) if pixels is not None}
    for name, pixels in images.items():
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise UsageError(f"The {name} image is {pixels.dtype} of shape {pixels.shape}.", "Give (y, x, 3) uint8.")
    return images

"""The specimen under the simulated objective: an image file, a slide, or synthetic tissue; read by region."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from edge_scanner.config import SimConfig
from edge_scanner.errors import SourceError
from edge_scanner.sim.picture import PictureSpecimen, ResampledSpecimen, RgbImage, Specimen
from edge_scanner.sim.pixels import rgb8
from edge_scanner.sim.slide import SlideSpecimen
from edge_scanner.sim.tissue import TissueSpecimen

__all__ = ["Specimen", "open_specimen"]

_PNG_END = b"IEND\xaeB`\x82"
_JPEG_END = b"\xff\xd9"


def open_specimen(sim: SimConfig, pixel_size_um: float) -> Specimen:
    """Open the configured specimen on the camera's pixel grid.

    Parameters
    ----------
    sim : SimConfig
        `slide` names the file; empty gives synthetic tissue. `slide_pixel_size_um` of 0 makes one specimen pixel
        one camera pixel; otherwise the specimen is resampled.
    pixel_size_um : float
        The camera's, on the specimen.

    Raises
    ------
    SourceError
        Missing, truncated or not an image.
    """
    own_um = sim.slide_pixel_size_um or pixel_size_um
    source = _open_file(Path(sim.slide), own_um) if sim.slide else _synthetic(sim, own_um)
    return source if own_um == pixel_size_um else ResampledSpecimen(source, pixel_size_um)


def _synthetic(sim: SimConfig, pixel_size_um: float) -> Specimen:
    return TissueSpecimen(sim.seed, sim.tissue_height_mm * 1000, sim.tissue_width_mm * 1000, pixel_size_um)


def _open_file(path: Path, pixel_size_um: float) -> Specimen:
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except FileNotFoundError as error:
        raise SourceError(f"There is no specimen file {path}.", "Check sim.slide.") from error
    except OSError as error:
        raise SourceError(f"The specimen {path} cannot be read ({error.strerror}).", "Check sim.slide.") from error
    if magic[:2] in (b"II", b"MM"):
        return SlideSpecimen(path, pixel_size_um)
    return PictureSpecimen(_decode(path), pixel_size_um)


def _decode(path: Path) -> RgbImage:
    data = path.read_bytes()
    cut = (data.startswith(b"\x89PNG") and _PNG_END not in data[-4096:]) or (
        data.startswith(b"\xff\xd8") and _JPEG_END not in data[-65536:]
    )
    if cut:
        raise SourceError(f"The image {path} is truncated.", "Copy it again.")
    try:
        raw = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
    except cv2.error as error:
        raise SourceError(f"The image {path} cannot be decoded ({error.err}).") from error
    if raw is None:
        raise SourceError(f"{path} is not an image.", "Give a PNG, JPEG, TIFF or a pyramidal slide.")
    if raw.ndim == 3:
        raw = cv2.cvtColor(raw, cv2.COLOR_BGRA2RGBA if raw.shape[2] == 4 else cv2.COLOR_BGR2RGB)
    return rgb8(raw if raw.ndim == 3 else raw[..., None], path)

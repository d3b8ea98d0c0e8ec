"""Flat-field correction and white point: what clean glass looks like, kept in a file and applied to every frame.

A frame is corrected as `(frame - dark) * gain`. Gains are multiples of 2^-15, so the product of an 8-bit pixel and a
gain below two is exact in the float32 that OpenCV multiplies in, and is rounded once, half to even: fixed-point
arithmetic without a table, the same on every machine.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_scanner.config import Config
from edge_scanner.errors import SourceError
from edge_scanner.store.shard import disk_errors
from edge_scanner.tile import Pixels

CELL_PX = 16
DEGREE = 4
"""Of the polynomial that carries the profile to the rim; what it leaves is smoothed and added."""
SMOOTH_CELLS = 2.0
SATURATED_SHARE = 0.005
"""Cells with more pixels at full scale than this tell nothing about the profile, where enough others do."""
WHITE = 0.97
"""Share of full scale that corrected glass stays below, unless it is brighter than that by itself."""
GAIN_STEP = 2.0**-15
INDISTINGUISHABLE = 0.002
"""A correction that changes nothing by more than this share is not applied: half a grey level of 255."""
BAND_PX = 64
"""Rows corrected at a time, so that what lies between stays in the cache."""
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Setting:
    """What a flat field was measured with; it serves no other."""

    width_px: int
    height_px: int
    channels: int
    bits: int
    exposure_ms: float
    gain: float
    level: float
    brightfield: bool
    magnification: float
    numerical_aperture: float

    @classmethod
    def of(cls, config: Config) -> Setting:
        """Return the setting of a configuration."""
        camera, light, optics = config.camera, config.illumination, config.optics
        return cls(
            camera.width_px, camera.height_px, camera.channels, camera.bits, camera.exposure_ms, camera.gain,
            light.level, light.brightfield, optics.magnification, optics.numerical_aperture,
        )  # fmt: skip

    def difference(self, other: Setting) -> str:
        """Return a clause that names the first difference; empty where there is none."""
        for f in fields(self):
            own, others = getattr(self, f.name), getattr(other, f.name)
            if own != others:
                return f"its {f.name} was {own}, now it is {others}"
        return ""


DAMAGE = (
    OSError, ValueError, LookupError, TypeError, AttributeError, EOFError, RuntimeError, struct.error, zlib.error,
    zipfile.BadZipFile,
)  # fmt: skip
"""What reading a damaged file raises; an unknown compression is a RuntimeError."""


@dataclass(frozen=True, slots=True)
class FlatField:
    """A smooth profile of clean glass.

    Parameters
    ----------
    setting : Setting
    measured : str
        ISO 8601 UTC.
    dark, glass : tuple of float, one a channel
        Mean grey level with the light off, and of glass above that.
    coefficients : ndarray, (k, c), float64
        Of the polynomial in (y, x), relative to `glass`.
    residual : ndarray, (rows, cols, c), float32
        What the polynomial leaves, on cells of 16 px.
    """

    setting: Setting
    measured: str
    dark: tuple[float, ...]
    glass: tuple[float, ...]
    coefficients: NDArray[np.float64]
    residual: NDArray[np.float32]

    def profile(self) -> NDArray[np.float32]:
        """Return the flat field (y, x, c), mean 1 in every channel."""
        shape = (self.setting.height_px, self.setting.width_px)
        field = np.empty((*shape, self.setting.channels), np.float32)
        for c in range(self.setting.channels):
            rest = cv2.resize(self.residual[..., c], shape[::-1], interpolation=cv2.INTER_LINEAR)
            field[..., c] = _surface(self.coefficients[:, c], *shape) + rest
            field[..., c] /= field[..., c].mean(dtype=np.float64)
        return field

    def checksum(self) -> str:
        """Return the SHA-256 of everything in it."""
        digest = hashlib.sha256(json.dumps([asdict(self.setting), self.measured, self.dark, self.glass]).encode())
        for array in (self.coefficients, self.residual):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Write the file whole or not at all.

        Raises
        ------
        DiskLowError, StoreError
        """
        about = {"format": FORMAT, "setting": asdict(self.setting), "measured": self.measured}
        about |= {"dark": self.dark, "glass": self.glass, "sha256": self.checksum()}
        partial = path.with_name(path.name + ".partial")
        try:
            with disk_errors(path), partial.open("wb") as file:
                np.savez(file, about=json.dumps(about), coefficients=self.coefficients, residual=self.residual)
                file.flush()
                os.fsync(file.fileno())
                partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise

    @classmethod
    def load(cls, path: Path) -> FlatField:
        """Read a file.

        Raises
        ------
        SourceError
            When it is missing, damaged or of another kind.
        """
        advice = "Measure it with `edge-scanner calibrate flat-field`."
        try:
            with np.load(path, allow_pickle=False) as data:
                about = json.loads(str(data["about"]))
                flat = cls(
                    Setting(**about["setting"]), about["measured"], tuple(about["dark"]), tuple(about["glass"]),
                    data["coefficients"], data["residual"],
                )  # fmt: skip
        except FileNotFoundError as error:
            raise SourceError(f"There is no flat field {path}.", advice) from error
        except DAMAGE as error:
            raise SourceError(f"The file {path} is no flat field, or a damaged one.", advice) from error
        if about.get("format") != FORMAT or about.get("sha256") != flat.checksum():
            raise SourceError(f"The flat field {path} is damaged: its checksum does not fit.", advice)
        return flat

    def require(self, setting: Setting, path: Path) -> None:
        """Refuse to serve another setting than the one it was measured with.

        Raises
        ------
        SourceError
        """
        if difference := self.setting.difference(setting):
            raise SourceError(
                f"The flat field {path} is for another setting: {difference}.",
                "Measure it again with `edge-scanner calibrate flat-field`.",
            )


def flat_field(glass: Sequence[Pixels], dark: Pixels | None, setting: Setting, measured: str) -> FlatField:
    """Return the flat field that frames of clean glass show.

    Parameters
    ----------
    glass : sequence of ndarray, (y, x, c)
        At least one frame, best of different places, so that dust averages out.
    dark : ndarray or None
        A frame with the light off; one that is not dark is left out of account.
    """
    shown = [cells(frame) for frame in glass]
    means = np.mean([mean for mean, _ in shown], axis=0)
    saturated = np.max([share for _, share in shown], axis=0) > SATURATED_SHARE
    offset = np.zeros(setting.channels) if dark is None else dark.mean(axis=(0, 1), dtype=np.float64)
    if (offset > 0.5 * means.mean(axis=(0, 1))).any():
        offset = np.zeros(setting.channels)
    means = means - offset
    basis = _basis(*means.shape[:2])
    coefficients, residual = [], np.zeros(means.shape, np.float32)
    for c in range(setting.channels):
        usable = ~saturated[..., c] if saturated[..., c].mean() < 0.5 else np.ones(means.shape[:2], bool)
        found, *_ = np.linalg.lstsq(basis[usable.ravel()], means[..., c][usable], rcond=None)
        rest = np.where(usable, means[..., c] - (basis @ found).reshape(means.shape[:2]), 0.0)
        residual[..., c] = cv2.GaussianBlur(rest, (0, 0), SMOOTH_CELLS, borderType=cv2.BORDER_REFLECT)
        coefficients.append(found)
    fitted = np.stack(coefficients, axis=1)
    level = np.maximum((basis @ fitted).mean(axis=0) + residual.mean(axis=(0, 1)), 1e-6)
    dark_levels, glass_levels = (tuple(float(v) for v in values) for values in (offset, level))
    return FlatField(
        setting, measured, dark_levels, glass_levels, fitted / level, (residual / level).astype(np.float32)
    )


class Correction:
    """Applies a flat field; bound: the gains, four bytes a pixel and channel.

    Parameters
    ----------
    gain : ndarray, (y, x, c)
        Taken over and rounded in place where it is float32.
    dark : sequence of float, one a channel
        Grey levels, taken off first.
    """

    def __init__(self, gain: NDArray[Any], dark: Sequence[float]) -> None:
        self.gain = np.asarray(gain, np.float32)
        self.gain /= GAIN_STEP
        np.rint(self.gain, out=self.gain)
        self.gain *= GAIN_STEP
        self.dark = (*dark, 0.0, 0.0, 0.0)[:4] if any(dark) else None

    def apply(self, pixels: Pixels) -> Pixels:
        """Return the corrected frame, same shape and dtype; what exceeds full scale is full scale."""
        depth = cv2.CV_8U if pixels.dtype == np.uint8 else cv2.CV_16U
        corrected = np.empty_like(pixels)
        for top in range(0, len(pixels), BAND_PX):
            band = pixels[top : top + BAND_PX]
            above = band if self.dark is None else cv2.subtract(band, self.dark, dtype=cv2.CV_32F).reshape(band.shape)
            cv2.multiply(above, self.gain[top : top + BAND_PX], dst=corrected[top : top + BAND_PX], dtype=depth)
        return corrected


def correction(flat: FlatField, *, balance: bool) -> Correction | None:
    """Return what turns glass into one even, and if wanted neutral, level; None where there is nothing to correct.

    Glass comes out at the brightest level that it has in the field, kept within 97 % of full scale so that nothing
    above it clips, but never below its own mean.

    Parameters
    ----------
    flat : FlatField
    balance : bool
        Bring all channels to the level of the brightest; left out where that would clip.
    """
    field = flat.profile()
    full = 255 if flat.setting.bits == 8 else 65535
    glass, ceiling = np.array(flat.glass), WHITE * full
    level = np.clip(glass * field.max(axis=(0, 1)), glass, np.maximum(glass, ceiling))
    if balance and level.max() <= ceiling:
        level[:] = level.max()
    np.divide((level / glass).astype(np.float32), field, out=field)
    dark = [value if value >= INDISTINGUISHABLE / 2 * full else 0.0 for value in flat.dark]
    if not any(dark) and max(field.max() - 1, 1 - field.min()) < INDISTINGUISHABLE:
        return None
    return Correction(field, dark)


def cells(frame: Pixels, every: int = 1) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return (rows, cols, c) cell means, and the share of pixels at full scale, as one in so many rows tells them."""
    height, width, channels = frame.shape
    frame = frame[every // 2 :: every]
    size = (max(1, width // CELL_PX), max(1, height // CELL_PX))
    top = np.iinfo(frame.dtype).max

    def shrunk(picture: NDArray[Any]) -> NDArray[np.float32]:
        small: NDArray[np.float32] = cv2.resize(picture.astype(np.float32), size, interpolation=cv2.INTER_AREA)
        return small.reshape(size[1], size[0], channels)

    return shrunk(frame), shrunk(frame == top)


def _powers() -> list[tuple[int, int]]:
    return [(i, j) for i in range(DEGREE + 1) for j in range(DEGREE + 1 - i)]


def _axis(n: int) -> NDArray[np.float64]:
    """Return the centres of n equal steps from -1 to 1."""
    return (2 * np.arange(n) + 1) / n - 1


def _basis(rows: int, cols: int) -> NDArray[np.float64]:
    y, x = np.meshgrid(_axis(rows), _axis(cols), indexing="ij")
    return np.stack([(y**i * x**j).ravel() for i, j in _powers()], axis=1)


def _surface(coefficients: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    table = np.zeros((DEGREE + 1, DEGREE + 1))
    for value, (i, j) in zip(coefficients, _powers(), strict=True):
        table[i, j] = value
    exponents = np.arange(DEGREE + 1)
    surface: NDArray[np.float64] = (_axis(height)[:, None] ** exponents) @ table @ (_axis(width) ** exponents[:, None])
    return surface

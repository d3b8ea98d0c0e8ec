"""Specimens as pictures: the contract, a picture in memory, and a picture on another pixel grid."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_scanner.geometry import Box

RgbImage = NDArray[np.uint8]
"""(y, x, 3) uint8."""


class Specimen(ABC):
    """An RGB picture of known pixel size, surrounded by glass without end.

    Parameters
    ----------
    height_px, width_px : int
    pixel_size_um : float
    glass : int
        Grey level of the glass around it.
    """

    def __init__(self, height_px: int, width_px: int, pixel_size_um: float, glass: int = 255) -> None:
        self.height_px = height_px
        self.width_px = width_px
        self.pixel_size_um = pixel_size_um
        self.glass = glass

    @abstractmethod
    def _inside(self, box: Box) -> RgbImage:
        """Return a box that lies inside the bounds and is not empty."""

    def read(self, y0: int, x0: int, h: int, w: int) -> RgbImage:
        """Return any box, glass where it leaves the specimen.

        Parameters
        ----------
        y0, x0 : int
            Top-left pixel; may be negative or beyond the specimen.
        h, w : int

        Returns
        -------
        ndarray, (h, w, 3), uint8
            The caller's own.

        Raises
        ------
        SourceError
            When the file cannot be decoded there.
        """
        wanted = Box(y0, x0, y0 + h, x0 + w)
        inside = wanted.intersect(Box(0, 0, self.height_px, self.width_px))
        if inside == wanted:
            return self._inside(inside)
        out = np.full((h, w, 3), self.glass, np.uint8)
        if not inside.empty:
            at = inside.shifted(-y0, -x0)
            out[at.y0 : at.y1, at.x0 : at.x1] = self._inside(inside)
        return out


class PictureSpecimen(Specimen):
    """A picture held in memory; the whole picture is the bound."""

    def __init__(self, picture: RgbImage, pixel_size_um: float) -> None:
        super().__init__(picture.shape[0], picture.shape[1], pixel_size_um)
        self._picture = picture

    def _inside(self, box: Box) -> RgbImage:
        return self._picture[box.y0 : box.y1, box.x0 : box.x1].copy()


class ResampledSpecimen(Specimen):
    """Another specimen on a pixel grid of another size: area means when coarser, cubic when finer."""

    def __init__(self, source: Specimen, pixel_size_um: float) -> None:
        self._step = pixel_size_um / source.pixel_size_um
        height, width = (max(1, round(n / self._step)) for n in (source.height_px, source.width_px))
        super().__init__(height, width, pixel_size_um, source.glass)
        self._source = source

    def _inside(self, box: Box) -> RgbImage:
        return self._coarser(box) if self._step > 1 else self._finer(box)

    def _coarser(self, box: Box) -> RgbImage:
        edges_y = np.arange(box.y0, box.y1 + 1) * self._step
        edges_x = np.arange(box.x0, box.x1 + 1) * self._step
        y0, x0 = int(edges_y[0]), int(edges_x[0])
        patch = self._source.read(y0, x0, int(edges_y[-1]) + 2 - y0, int(edges_x[-1]) + 2 - x0)
        sums = cv2.integral(patch, sdepth=cv2.CV_64F)
        sums = _between(_between(sums, edges_y - y0, 0), edges_x - x0, 1)
        means = np.diff(np.diff(sums, axis=0), axis=1) / self._step**2
        return np.floor(means + (0.5 + 1e-6)).astype(np.uint8)

    def _finer(self, box: Box) -> RgbImage:
        at_y = (np.arange(box.y0, box.y1) + 0.5) * self._step - 0.5
        at_x = (np.arange(box.x0, box.x1) + 0.5) * self._step - 0.5
        y0, x0 = int(np.floor(at_y[0])) - 2, int(np.floor(at_x[0])) - 2
        patch = self._source.read(y0, x0, int(at_y[-1]) + 5 - y0, int(at_x[-1]) + 5 - x0)
        map_x, map_y = np.meshgrid((at_x - x0).astype(np.float32), (at_y - y0).astype(np.float32))
        fine: RgbImage = cv2.remap(patch, map_x, map_y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        return fine


def _between(sums: NDArray[Any], at: NDArray[Any], axis: int) -> NDArray[Any]:
    """Interpolate running sums linearly at fractional pixel edges along one axis."""
    low = at.astype(np.intp)
    share = (at - low).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
    a, b = np.take(sums, low, axis), np.take(sums, low + 1, axis)
    return np.asarray(a + (b - a) * share)

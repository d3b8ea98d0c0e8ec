"""Fallen leaves: pictures of shapes over shapes, whose sharpness owes nothing to what tissue looks like.

Discs, blocks and strokes of all sizes cover each other, as in the dead leaves model of natural images (Lee, Mumford
and Huang, Int. J. Computer Vision 41, 2001). A network that has to judge these as well learns the optics, and meets
the straight edges of wafers and print, which no tissue has.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

SMALLEST_PX, LARGEST_PX = 1.5, 120.0
COVERAGE = 3.0
"""How often the shapes cover the picture, on average."""

SHIFT = 4
"""Coordinates are told to OpenCV in sixteenths of a pixel."""


def leaves(seed: int, side_px: int) -> NDArray[Any]:
    """Return a picture, (side_px, side_px, 3) uint8, RGB; sizes are distributed as 1 / size^3 in area."""
    rng = np.random.default_rng([seed, 0x1EAF])
    greys, tint = rng.uniform(30, 250, (int(rng.integers(3, 9)), 1)), rng.uniform(3, 35)
    few_colours = np.clip(greys + rng.normal(0, tint, (len(greys), 3)), 5, 255)
    picture = np.empty((side_px, side_px, 3), np.uint8)
    picture[:] = few_colours[0]
    covered = 0.0
    sizes = []
    while covered < COVERAGE * side_px**2:
        share = rng.random()
        size = (SMALLEST_PX**-1 * (1 - share) + LARGEST_PX**-1 * share) ** -1
        covered += 3 * size * size
        sizes.append(size)
    for size in sorted(sizes, reverse=True) if rng.random() < 0.5 else sizes:
        colour = few_colours[rng.integers(len(few_colours))] + rng.normal(0, 8) + rng.normal(0, 3, 3)
        _fallen(rng, picture, size, np.clip(colour, 5, 255).tolist())
    return picture


def _fallen(rng: np.random.Generator, picture: NDArray[Any], size: float, colour: list[float]) -> None:
    """Draw one shape, anywhere."""
    centre = rng.uniform(0, picture.shape[0], 2)
    kind, turn = rng.random(), rng.uniform(0, np.pi) if rng.random() < 0.5 else 0.0
    if kind < 0.4:
        axes = size * rng.uniform(0.4, 1.0, 2)
        around = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        corners = np.stack([axes[0] * np.cos(around), axes[1] * np.sin(around)], axis=1)
    else:
        half = size * (np.array([1.0, rng.uniform(0.3, 1.0)]) if kind < 0.7 else np.array([2.0, 0.15]))
        corners = half * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    there = np.rint((corners @ rotation + centre) * (1 << SHIFT)).astype(np.int32)
    cv2.fillPoly(picture, [there], colour, cv2.LINE_AA, SHIFT)

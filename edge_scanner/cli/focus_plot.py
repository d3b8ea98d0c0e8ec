"""Error of the focus model against the true defocus, as a picture."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_scanner.errors import SourceError

HEIGHT, WIDTH, MARGIN = 480, 720, 50
COLOURS = ((180, 120, 30), (40, 60, 200), (60, 150, 60), (160, 60, 160), (30, 140, 200))
GREY, DARK = (200, 200, 200), (60, 60, 60)


def error_plot(points: Sequence[tuple[str, float, float]]) -> bytes:
    """Return a PNG of (slide, z_um, error_um); one colour a slide, errors beyond 3 um drawn at the edge."""
    picture = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    reach = max((abs(z_um) for _, z_um, _ in points), default=1.0) * 1.05
    for tick_um in range(-3, 4):
        y = _y(tick_um)
        cv2.line(picture, (MARGIN, y), (WIDTH - MARGIN, y), GREY, 1)
        _write(picture, f"{tick_um:+d} um", (4, y + 4), DARK)
    names = list(dict.fromkeys(name for name, _, _ in points))
    for name, z_um, error_um in points:
        x = round(WIDTH / 2 + (WIDTH / 2 - MARGIN) * z_um / reach)
        at = (x, _y(min(max(error_um, -3.0), 3.0)))
        cv2.circle(picture, at, 2, COLOURS[names.index(name) % len(COLOURS)], -1, cv2.LINE_AA)
    for number, name in enumerate(names):
        _write(picture, name, (MARGIN + 8, MARGIN + 16 * number), COLOURS[number % len(COLOURS)])
    _write(picture, f"error against z, -{reach:.1f} to {reach:.1f} um", (WIDTH // 2 - 110, HEIGHT - 16), DARK)
    ok, data = cv2.imencode(".png", picture)
    if not ok:
        raise SourceError("The plot could not be encoded.")
    return bytes(data)


def _y(error_um: float) -> int:
    return round(HEIGHT / 2 - (HEIGHT / 2 - MARGIN) * error_um / 3)


def _write(picture: NDArray[np.uint8], text: str, at: tuple[int, int], colour: tuple[int, int, int]) -> None:
    cv2.putText(picture, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.42, colour, 1, cv2.LINE_AA)

"""The learning curve as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

HEIGHT, WIDTH, MARGIN = 400, 640, 50
COLOURS = ((180, 120, 30), (40, 60, 200))


def draw(path: Path, losses: Sequence[tuple[float, float]]) -> None:
    """Draw the loss trained on (blue) and on unseen slides (red) against the epoch."""
    values = np.array(losses)
    low, high = float(values.min()), float(np.percentile(values, 98)) + 1e-6
    picture = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    x = MARGIN + (WIDTH - 2 * MARGIN) * np.arange(len(values)) / max(1, len(values) - 1)
    for column, colour, name in zip(values.T, COLOURS, ("trained", "unseen slides"), strict=True):
        y = HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * np.clip((column - low) / (high - low), 0, 1)
        cv2.polylines(picture, [np.stack([x, y], 1).astype(np.int32)], False, colour, 2, cv2.LINE_AA)
        at = (WIDTH - 190, MARGIN + 20 * COLOURS.index(colour))
        cv2.putText(picture, f"{name} {column[-1]:.3f}", at, cv2.FONT_HERSHEY_SIMPLEX, 0.45, colour, 1, cv2.LINE_AA)
    cv2.rectangle(picture, (MARGIN, MARGIN), (WIDTH - MARGIN, HEIGHT - MARGIN), (120, 120, 120), 1)
    for text, at in (
        (f"{high:.2f}", (4, MARGIN + 5)),
        (f"{low:.2f}", (4, HEIGHT - MARGIN)),
        (f"loss against epoch, 1 to {len(values)}", (WIDTH // 2 - 100, HEIGHT - 18)),
    ):
        cv2.putText(picture, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.45, (60, 60, 60), 1, cv2.LINE_AA)
    cv2.imwrite(str(path), picture)

"""The rendered patches as files that training can map: one folder a split, written once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_scanner.focus.samples import PATCH_PX
from models.fields import (
    Optics,
    Source,
    draw_optics,
    nominal,
    patches,
    real_sources,
    render_all,
    synthetic_sources,
)

TRAIN_SLIDES = (
    "duodenum_HE_40x_region.tif",
    "ectopic_pancreas_HE_region.tif",
    "plant_seed_HE_whole_slide.tif",
    "BS9_biopsies_HE_whole_slide_quarter_res.tif",
)
HELD_OUT_SLIDES = ("CMU-1-Small-Region.svs", "duodenum_IHC_chromogranin_40x_region.tif", "skimage_ihc_colon.png")
"""Never trained on: H&E of another laboratory and scanner, and two DAB stains, of which training has none."""


@dataclass(frozen=True, slots=True)
class Split:
    """Patches with their labels.

    Parameters
    ----------
    patches : ndarray, (n, 256, 256, 3), uint8
    z_um : ndarray, (n,), float32
        Reference micrometres above focus.
    source : ndarray, (n,), int32
        Index of the slide.
    """

    patches: NDArray[Any]
    z_um: NDArray[np.float32]
    source: NDArray[np.int32]


def write(folder: Path, sources: Sequence[Source], plan: Sequence[tuple[Optics, int]], seed: int) -> None:
    """Render `plan`, fields of each instrument, into a folder; what is there already is kept."""
    if (folder / "labels.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    total = 4 * sum(count for _, count in plan)
    shape = (total, PATCH_PX, PATCH_PX, 3)
    store = np.lib.format.open_memmap(folder / "patches.npy", "w+", np.uint8, shape)
    labels: list[tuple[float, int]] = []
    for number, (optics, count) in enumerate(plan):
        rng = np.random.default_rng([seed, number])
        for field, z_um, source in render_all(rng, sources, optics, count):
            store[len(labels) : len(labels) + 4] = patches(field)
            labels += [(z_um, source)] * 4
    store.flush()
    about = {"labels": labels, "sources": [s.name for s in sources], "seed": seed}
    (folder / "labels.json").write_text(json.dumps(about))


def read(folder: Path) -> Split:
    """Map a folder that `write` made."""
    labels = np.array(json.loads((folder / "labels.json").read_text())["labels"])
    patches_ = np.load(folder / "patches.npy", mmap_mode="r")
    return Split(patches_, labels[:, 0].astype(np.float32), labels[:, 1].astype(np.int32))


def training_plan(seed: int, share: float) -> list[tuple[Optics, int]]:
    """Return the instruments that training sees: a third the nominal one, the others drawn about it, 10x and 40x."""
    rng = np.random.default_rng([seed, 0x0B71C5])
    kinds = ["20x"] * 9 + ["10x"] * 3 + ["40x"] * 3
    drawn = [(draw_optics(rng, kind), round(180 * share)) for kind in kinds]
    return [(nominal(), round(1400 * share)), *drawn]


def make(cache: Path, slides: Path, seed: int, share: float = 1.0) -> tuple[Split, Split]:
    """Return the training and the held-out split, rendered on first use."""
    synthetic = synthetic_sources(range(seed + 100, seed + 103))
    write(cache / "held_out", real_sources(slides, HELD_OUT_SLIDES), [(nominal(), round(250 * share))], seed + 1)
    write(cache / "train", [*real_sources(slides, TRAIN_SLIDES), *synthetic], training_plan(seed, share), seed)
    return read(cache / "train"), read(cache / "held_out")

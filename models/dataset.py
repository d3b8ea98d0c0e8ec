"""The rendered patches as files that training can map: one folder a split, written once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_scanner.config import OpticsConfig
from edge_scanner.errors import SourceError
from edge_scanner.focus.labelled import labelled_frames
from edge_scanner.focus.samples import PATCH_PX, camera_side_px, choose, cut, reference_unit
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
VALIDATION_SLIDES = ("skimage_ihc_colon.png",)
"""With a synthetic slide of its own: what the learning rate and the best epoch are decided by."""

HELD_OUT_SLIDES = ("CMU-1-Small-Region.svs", "duodenum_IHC_chromogranin_40x_region.tif")
"""Never seen here; `edge-scanner focus eval` is for them: another laboratory's H&E, and a stain without H&E."""


MOST_PATCHES = 64
"""Patches cut from one labelled image."""

NOMINAL_FIELDS = 1400
INSTRUMENTS = (("20x", 9, 180), ("10x", 3, 180), ("40x", 3, 180), ("10x", 8, 150), ("40x", 4, 150))
"""Kind, how many are drawn, fields of each."""


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
    """Return the instruments that training sees, and how many fields of each.

    A quarter is the nominal one; the others are drawn about it, and of 10x/0.3, whose defocus shows least, and
    40x/0.95.
    """
    rng = np.random.default_rng([seed, 0x0B71C5])
    drawn = [
        (draw_optics(rng, kind), max(1, round(fields * share)))
        for kind, instruments, fields in INSTRUMENTS
        for _ in range(instruments)
    ]
    return [(nominal(), max(1, round(NOMINAL_FIELDS * share))), *drawn]


def make(cache: Path, slides: Path, seed: int, share: float = 1.0) -> tuple[Split, Split]:
    """Return the training and the validation split, which share no slide; rendered on first use.

    Parameters
    ----------
    cache : Path
        Where the patches go: 3.3 GB for a share of 1.
    slides : Path
        Folder that holds `TRAIN_SLIDES` and `VALIDATION_SLIDES`; where it holds none, synthetic tissue must do.
    seed : int
    share : float
        Of the full number of fields.

    Raises
    ------
    SourceError
        When a slide that is there cannot be read.
    """
    seen = [*real_sources(slides, TRAIN_SLIDES), *synthetic_sources(range(seed + 100, seed + 103))]
    unseen = [*real_sources(slides, VALIDATION_SLIDES), *synthetic_sources([seed + 200])]
    write(cache / "validation", unseen, [(nominal(), max(1, round(120 * share)))], seed + 1)
    write(cache / "train", seen, training_plan(seed, share), seed)
    return read(cache / "train"), read(cache / "validation")


def labelled(folder: Path, optics: OpticsConfig) -> Split:
    """Return the patches of a folder of labelled RGB images, each folder in it a slide; see `labelled_frames`."""
    side = camera_side_px(optics)
    pixels: list[NDArray[Any]] = []
    z_um: list[float] = []
    source: list[int] = []
    names: list[str] = []
    for frame in labelled_frames(folder):
        if frame.pixels.shape[2] != 3:
            raise SourceError(f"The images of {frame.slide} are not RGB.", "Learned focus needs the colours.")
        names += [frame.slide] if frame.slide not in names else []
        cut_out = cut(frame.pixels, choose(frame.pixels, side, MOST_PATCHES), side)
        pixels.append(np.rint(cut_out.transpose(0, 2, 3, 1) * 255).astype(np.uint8))
        z_um += [frame.z_um * reference_unit(optics)] * len(cut_out)
        source += [names.index(frame.slide)] * len(cut_out)
    return Split(np.concatenate(pixels), np.array(z_um, np.float32), np.array(source, np.int32))


def joined(a: Split, b: Split) -> Split:
    """Return two splits as one, in memory."""
    source = np.concatenate([a.source, b.source + a.source.max() + 1])
    return Split(np.concatenate([a.patches, b.patches]), np.concatenate([a.z_um, b.z_um]), source)

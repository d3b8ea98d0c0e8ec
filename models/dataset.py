"""The rendered patches as files that training can map: one folder a split, written once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple, dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
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
    leaf_sources,
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

PATCHES = 4
"""Patches cut from one rendered field."""

FIELDS = 200
"""Fields that are rendered of one instrument."""

INSTRUMENTS = (("20x", 10, 10), ("10x", 4, 9), ("20x/0.5", 2, 6), ("40x", 9, 9))
"""Kind, how many times its nominal instrument is rendered, how many others are drawn."""


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


@dataclass(frozen=True, slots=True)
class Slides:
    """What fields are cut from: those of `names` that are in a folder, and seeded synthetic tissue and leaves."""

    folder: Path
    names: tuple[str, ...]
    tissue_seeds: tuple[int, ...]
    leaf_seeds: tuple[int, ...] = ()

    def open(self) -> list[Source]:
        """Open them.

        Raises
        ------
        SourceError
            When one that is there cannot be read.
        """
        real = real_sources(self.folder, self.names)
        return [*real, *synthetic_sources(self.tissue_seeds), *leaf_sources(self.leaf_seeds)]


Plan = Sequence[tuple[Optics, int]]
"""Instruments, and how many fields are rendered of each."""


def write(folder: Path, slides: Slides, plan: Plan, seed: int) -> None:
    """Render a plan into a folder, on every core; what is there already of the same plan is kept."""
    about = {"seed": seed, "plan": [[*astuple(optics), count] for optics, count in plan]}
    if (folder / "labels.json").exists():
        kept = json.loads((folder / "labels.json").read_text())
        if {name: kept.get(name) for name in about} == about:
            return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "labels.json").unlink(missing_ok=True)
    names = [source.name for source in slides.open()]
    counts = np.array([count for _, count in plan]) * PATCHES
    store = folder / "patches.npy"
    np.lib.format.open_memmap(store, "w+", np.uint8, (int(counts.sum()), PATCH_PX, PATCH_PX, 3)).flush()
    parts = [
        (store, int(first), slides, optics, count, (seed, number))
        for number, ((optics, count), first) in enumerate(zip(plan, np.cumsum(counts) - counts, strict=True))
    ]
    with ProcessPoolExecutor(mp_context=get_context("spawn"), initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        labels = [label for part in pool.map(_render, parts) for label in part]
    (folder / "labels.json").write_text(json.dumps({"labels": labels, "sources": names, **about}))


def _render(part: tuple[Path, int, Slides, Optics, int, tuple[int, int]]) -> list[tuple[float, int]]:
    """Render the fields of one instrument from a row of the store on, and return the label of every patch."""
    path, row, slides, optics, count, seed = part
    store = np.load(path, mmap_mode="r+")
    labels: list[tuple[float, int]] = []
    for field, z_um, source in render_all(np.random.default_rng(seed), _opened(slides), optics, count):
        store[row : row + PATCHES] = patches(field)
        row += PATCHES
        labels += [(z_um, source)] * PATCHES
    store.flush()
    return labels


@lru_cache(maxsize=2)
def _opened(slides: Slides) -> list[Source]:
    return slides.open()


def read(folder: Path) -> Split:
    """Map a folder that `write` made."""
    labels = np.array(json.loads((folder / "labels.json").read_text())["labels"])
    patches_ = np.load(folder / "patches.npy", mmap_mode="r")
    return Split(patches_, labels[:, 0].astype(np.float32), labels[:, 1].astype(np.int32))


def training_plan(seed: int, share: float) -> Plan:
    """Return the instruments that training sees, and how many fields of each."""
    rng = np.random.default_rng([seed, 0x0B71C5])
    fields = max(1, round(FIELDS * share))
    plan: list[tuple[Optics, int]] = []
    for kind, times, others in INSTRUMENTS:
        plan += [(nominal(kind), fields)] * times
        plan += [(draw_optics(rng, kind), fields) for _ in range(others)]
    return plan


def validation_plan(seed: int, share: float) -> Plan:
    """Return the same for the slides that decide: one nominal instrument of each kind, and one drawn."""
    rng = np.random.default_rng([seed, 0x0A11DA])
    fields = max(1, round(FIELDS * share / 2))
    return [(made, fields) for kind, _, _ in INSTRUMENTS for made in (nominal(kind), draw_optics(rng, kind))]


def make(cache: Path, slides: Path, seed: int, share: float = 1.0) -> tuple[Split, Split]:
    """Return the training and the validation split, which share no slide; rendered on first use.

    Parameters
    ----------
    cache : Path
        Where the patches go: 9.3 GB for a share of 1.
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
    seen = Slides(slides, TRAIN_SLIDES, tuple(range(seed + 100, seed + 103)), (seed, seed + 1))
    unseen = Slides(slides, VALIDATION_SLIDES, (seed + 200,))
    write(cache / "validation", unseen, validation_plan(seed, share), seed + 1)
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

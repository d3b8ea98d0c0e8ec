"""Training data: small fields of real and synthetic tissue, defocused by the simulator's optics, with their z.

A field is 512 x 512 px on the network's grid and is cut into four patches, so that rendering costs little a patch.
Everything is a pure function of the seed and the slides. Defocus is told in micrometres of an objective of NA 0.75
(`defocus_unit`), and frames are resampled to `0.375 / NA` micrometres a pixel, where every objective blurs alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_scanner.config import SimConfig
from edge_scanner.focus.samples import PATCH_PX, REFERENCE_NA, REFERENCE_PIXEL_UM, defocus_unit
from edge_scanner.sim.optics import RGB_WAVELENGTHS_UM, blur
from edge_scanner.sim.picture import PictureSpecimen
from edge_scanner.sim.psf import Pupil
from edge_scanner.sim.specimen import Specimen, open_specimen
from models.leaves import leaves

FIELD_PX = 2 * PATCH_PX
LEAVES_PX = 1024
RANGE_UM = 11.0
"""How far from focus frames are rendered, reference micrometres: 10 % beyond +-10 um at NA 0.75."""

LONG_RANGE_UM = 14.0
"""The same at the highest apertures: +-7 um at NA 0.95."""

NEAREST = 0.05
"""Share of the range within which focus is sought at its finest."""

APERTURES = {"10x": (0.25, 0.36), "20x/0.5": (0.38, 0.66), "20x": (0.68, 0.82), "40x": (0.85, 0.95)}
ZOOMS = {"10x": (0.6, 1.1), "20x/0.5": (0.6, 1.1), "20x": (0.8, 1.1), "40x": (0.5, 0.8)}
"""Kinds of objectives: their numerical apertures, and how many pixels of the network's grid a camera pixel is."""

Image = NDArray[Any]
Rng = np.random.Generator


@dataclass(frozen=True, slots=True)
class Optics:
    """One simulated instrument; `axial_um` is how far red focuses above green."""

    numerical_aperture: float
    pixel_size_um: float
    axial_um: float
    spherical_waves: float

    @property
    def unit(self) -> float:
        """Micrometres of the reference objective that one of this one's is worth."""
        return defocus_unit(self.numerical_aperture)

    @property
    def zoom(self) -> float:
        """Pixels of the network's grid that one camera pixel is worth."""
        return self.pixel_size_um * self.numerical_aperture / (REFERENCE_PIXEL_UM * REFERENCE_NA)

    @property
    def range_um(self) -> float:
        """How far the stage goes from focus."""
        return (LONG_RANGE_UM if self.numerical_aperture > APERTURES["20x"][1] else RANGE_UM) / self.unit


@dataclass(frozen=True, slots=True)
class Source:
    """A slide to cut tissue from, and by how much it may be reduced: 1 is its own pixels."""

    name: str
    specimen: Specimen
    least: float
    most: float


def nominal(kind: str = "20x") -> Optics:
    """Return an instrument of a kind in `APERTURES` as the simulator has it by default."""
    sim = SimConfig()
    na, pixel_um = {"10x": (0.3, 1.0), "20x/0.5": (0.5, 0.5), "20x": (0.75, 0.5), "40x": (0.95, 0.25)}[kind]
    return Optics(na, pixel_um, sim.axial_colour_um * (REFERENCE_NA / na) ** 2, sim.spherical_waves)


def draw_optics(rng: Rng, kind: str) -> Optics:
    """Return an instrument of a kind in `APERTURES`; the sign of the axial colour is never drawn.

    Objectives are corrected for colour in proportion to their depth of field, so that is how it is drawn: 0.3 to
    0.65 um at NA 0.75.
    """
    na = rng.uniform(*APERTURES[kind])
    pixel_um = rng.uniform(*ZOOMS[kind]) * REFERENCE_PIXEL_UM * REFERENCE_NA / na
    axial = rng.uniform(0.3, 0.65) * (REFERENCE_NA / na) ** 2
    return Optics(na, pixel_um, axial, rng.uniform(0.05, 0.11))


def real_sources(folder: Path, names: Sequence[str]) -> list[Source]:
    """Open those slides that are in a folder; the finest are reduced up to 2.2 times, others hardly.

    Raises
    ------
    SourceError
        When one cannot be read.
    """
    made = []
    for name in (name for name in names if (folder / name).exists()):
        specimen = open_specimen(SimConfig(slide=str(folder / name)), REFERENCE_PIXEL_UM)
        fine = "40x" in name or "plant" in name or "pancreas" in name
        made.append(Source(Path(name).stem, specimen, 1.0, 2.2 if fine else 1.3))
    return made


def synthetic_sources(seeds: Sequence[int]) -> list[Source]:
    """Return seeded synthetic tissue, drawn at the network's pixel size."""
    sims = [SimConfig(seed=seed, tissue_width_mm=3.0, tissue_height_mm=3.0) for seed in seeds]
    return [Source(f"synthetic {s.seed}", open_specimen(s, REFERENCE_PIXEL_UM), 1.0, 1.2) for s in sims]


def leaf_sources(seeds: Sequence[int]) -> list[Source]:
    """Return seeded pictures of fallen leaves, each a sheet of sixteen of other colours."""
    sheets = []
    for seed in seeds:
        rows = [np.hstack([leaves(16 * seed + 4 * row + col, LEAVES_PX) for col in range(4)]) for row in range(4)]
        sheets.append(Source(f"leaves {seed}", PictureSpecimen(np.vstack(rows), REFERENCE_PIXEL_UM), 1.0, 3.0))
    return sheets


def render(rng: Rng, source: Source, optics: Optics, z_um: float) -> Image:
    """Return one field, (512, 512, 3) uint8, seen `z_um` above focus."""
    reach = (abs(z_um) + optics.axial_um) * Pupil(optics.numerical_aperture, 1.0, 0.53, 0.0).slope * 1.1
    margin = int(min(reach / optics.pixel_size_um + 8, 256)) // 8 * 8 + 8
    side = round(FIELD_PX / optics.zoom)
    tissue = _soften(rng, _restain(rng, _cut(rng, source, side + 2 * margin)))
    planes = []
    for c, line in enumerate(RGB_WAVELENGTHS_UM):
        pupil = Pupil(optics.numerical_aperture, 1.0, line, optics.spherical_waves)
        seen = blur(np.ascontiguousarray(tissue[..., c]), pupil, optics.pixel_size_um, z_um - (1 - c) * optics.axial_um)
        planes.append(seen[margin : margin + side, margin : margin + side])
    return _to_grid(_expose(rng, np.stack(planes, axis=2)))


def render_all(rng: Rng, sources: Sequence[Source], optics: Optics, count: int) -> Iterator[tuple[Image, float, int]]:
    """Yield fields of one instrument, their z in reference micrometres and the index of their source.

    Half of them are spread evenly over the range, the others gather about focus, where most tiles of a scan lie and
    the tenth of a micrometre counts.
    """
    for _ in range(count):
        reach_um = optics.range_um * (1.0 if rng.random() < 0.5 else NEAREST ** rng.random())
        z_um = rng.uniform(-reach_um, reach_um)
        chosen = int(rng.integers(len(sources)))
        yield render(rng, sources[chosen], optics, z_um), z_um * optics.unit, chosen


def patches(field: Image) -> Image:
    """Cut a field into its four patches, (4, 256, 256, 3)."""
    n = PATCH_PX
    return np.stack([field[y : y + n, x : x + n] for y in (0, n) for x in (0, n)])


def _cut(rng: Rng, source: Source, side: int) -> Image:
    """Return a square of tissue, float32 grey levels; of some places the first that is not nearly empty.

    One in four is taken as it comes: faint places and the edges of tissue have to be judged as well.
    """
    scale = float(np.exp(rng.uniform(np.log(source.least), np.log(source.most))))
    wanted = int(side * scale) + 1
    specimen = source.specimen
    for _ in range(1 if rng.random() < 0.25 else 4):
        y0 = int(rng.integers(0, max(1, specimen.height_px - wanted)))
        x0 = int(rng.integers(0, max(1, specimen.width_px - wanted)))
        pixels = specimen.read(y0, x0, min(wanted, specimen.height_px), min(wanted, specimen.width_px))
        if pixels[::8, ::8, 1].std() > 8:
            break
    if min(pixels.shape[:2]) < wanted:
        short = (max(0, wanted - n) for n in pixels.shape[:2])
        pixels = np.pad(pixels, [*((0, n) for n in short), (0, 0)], mode="symmetric")
    turned = np.rot90(pixels, int(rng.integers(4)))
    return np.asarray(cv2.resize(np.ascontiguousarray(turned), (side, side), interpolation=cv2.INTER_AREA), np.float32)


def _restain(rng: Rng, tissue: Image) -> Image:
    """Exchange and mix the optical densities of the channels and scale them: another stain, thicker or thinner."""
    density = -np.log10(np.clip(tissue, 1, 255) / 255)
    if rng.random() < 0.5:
        density = density[..., rng.permutation(3)]
    share = rng.uniform(0, 0.6) if rng.random() < 0.7 else 0.0
    mix = rng.uniform(0.05, 1.0, (3, 3))
    mix = (1 - share) * np.eye(3) + share * mix / mix.sum(axis=0)
    density = density @ mix.astype(np.float32) * np.float32(rng.uniform(0.5, 1.4))
    return np.asarray(rng.uniform(225, 255) * 10.0**-density, np.float32)


def _soften(rng: Rng, tissue: Image) -> Image:
    """Take half of the pictures as less sharp than pixels can be, their colours unlike, as another scanner's are."""
    if rng.random() < 0.5:
        return tissue
    sigma_px = rng.uniform(0, 0.6) + rng.uniform(0, 0.35, 3)
    return np.stack([cv2.GaussianBlur(tissue[..., c], (0, 0), max(s, 0.1)) for c, s in enumerate(sigma_px)], axis=2)


def _expose(rng: Rng, planes: Image) -> Image:
    """Return what the camera makes of it: a share of light, vignetting, shot and read noise, 8 bits."""
    h, w = planes.shape[:2]
    y, x = np.ogrid[0:h, 0:w]
    cy, cx = rng.uniform(-h, 2 * h), rng.uniform(-w, 2 * w)
    shade = 1 - rng.uniform(0, 0.15) * ((y - cy) ** 2 + (x - cx) ** 2) / (3 * (h * h + w * w))
    light = planes * (rng.uniform(0.75, 1.0) * shade[..., None]).astype(np.float32)
    electrons = rng.uniform(6_000, 20_000) / 255
    sigma = np.sqrt(np.maximum(light, 0) / electrons + (rng.uniform(3, 8) / electrons) ** 2)
    light += sigma * rng.standard_normal(light.shape, np.float32)
    return np.asarray(np.clip(np.rint(light), 0, 255), np.uint8)


def _to_grid(frame: Image) -> Image:
    if frame.shape[0] != FIELD_PX:
        coarser = frame.shape[0] > FIELD_PX
        how = cv2.INTER_AREA if coarser else cv2.INTER_LINEAR
        frame = cv2.resize(frame, (FIELD_PX, FIELD_PX), interpolation=how)
    return frame

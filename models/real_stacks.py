"""What the shipped network makes of real through-focus images: a table, whatever it is. Nothing is tuned on them.

Usage: python -m models.real_stacks FOLDER, the folder `focus_stacks` with `wafer_L1_y000`, `wafer_L1_y001`,
`fluor_microtubules` and `yeast_brightfield_5z`; prints Markdown.

Aperture (and for two of three the pixel) is unknown, so each set is put on the network's grid by an assumption that is
printed. `Line.through` is the calibration that `edge-scanner calibrate focus` fits; it is fitted on one half and judged
on the other.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_scanner.config import OpticsConfig, load
from edge_scanner.focus.autofocus import Estimator
from edge_scanner.focus.calibration import Line
from edge_scanner.focus.labelled import LabelledFrame, labelled_frames, read_image
from edge_scanner.focus.samples import PATCH_PX, REFERENCE_NA, REFERENCE_PIXEL_UM
from edge_scanner.focus.score import sharpness
from edge_scanner.tile import Pixels

Numbers = NDArray[np.float64]

WAFER_NA, WAFER_PIXEL_UM = 0.45, 0.286
WAFER_REACH_UM = 17.0
"""How far from focus frames are judged; some stacks go on to 100 um."""
NEAR_UM = 7.0
SECTIONS = 5


def estimator(pixels: Pixels, na: float, pixel_um: float) -> Estimator:
    """Return the shipped network for a camera that took such frames."""
    height, width = pixels.shape[:2]
    optics = [f"optics.numerical_aperture={na}", f"optics.pixel_size_um={pixel_um}"]
    camera = [f"camera.width_px={width}", f"camera.height_px={height}"]
    return Estimator(load(None, ["focus.mode=model", 'focus.providers=["cpu"]', *optics, *camera]))


def readings(frames: Sequence[Pixels], na: float, pixel_um: float, *, swapped: bool = False) -> Numbers:
    """Return what the network says of frames, sure or not, (n,); not a number where it says nothing."""
    network = estimator(frames[0], na, pixel_um)
    seen = (network.read(as_rgb(pixels), swapped=swapped) for pixels in frames)
    return np.array([np.nan if s is None else s.dz_um for s in seen])


def as_rgb(pixels: Pixels) -> Pixels:
    """Return three equal colours of a mono frame; the side of focus cannot be seen in them."""
    return pixels if pixels.shape[2] == 3 else np.repeat(pixels, 3, axis=2)


def crossed(one: tuple[Numbers, Numbers], other: tuple[Numbers, Numbers], reach_um: float) -> str:
    """Return a row of figures of the second set after calibration on the first; each is (reading, z)."""
    line = Line.through(*(v[np.abs(one[1]) <= reach_um] for v in one))
    inside = np.abs(other[1]) <= reach_um
    read_um, z_um = (v[inside] for v in other)
    dz_um = line.gain * read_um + line.offset_um
    far = np.abs(z_um) > 1.0
    side = f"{np.mean(np.sign(dz_um[far]) == np.sign(z_um[far])):.0%}" if far.any() else "-"
    near = np.argsort(z_um[np.abs(z_um) <= NEAR_UM])
    steps = np.diff(dz_um[np.abs(z_um) <= NEAR_UM][near])
    monotone = "-" if len(steps) == 0 else "yes" if (steps > 0).all() else "no"
    unsigned_um = np.mean(np.abs(np.abs(read_um) - np.abs(z_um)))
    return (
        f"{len(z_um)} | {line.gain:+.2f} | {line.offset_um:+.2f} | {line.residual_um:.1f} | "
        f"{np.mean(np.abs(dz_um - z_um)):.2f} | {side} | "
        f"{monotone} | {unsigned_um:.2f}"
    )


HEAD = "calibrated on | judged on | colours | frames | gain | offset um | residual um | MAE um | right side | "
HEAD += "monotone near focus | MAE of the distance, side ignored, uncalibrated"


def wafer(folder: Path) -> Iterable[str]:
    """Yield the table of each wafer field after calibration on the other, either order of colours."""
    yield f"### Wafer, reflected light (taken as NA {WAFER_NA}; within {WAFER_REACH_UM:g} um of focus)\n"
    depth_um = OpticsConfig(numerical_aperture=WAFER_NA).depth_of_field_um
    yield f"`calibrate focus` refuses a residual beyond the depth of field, {depth_um:.1f} um here.\n"
    yield from _head(HEAD)
    names = "wafer_L1_y000", "wafer_L1_y001"
    fields = {name: _ordered(labelled_frames(folder / name)) for name in names}
    for swapped in (False, True):
        sets = {}
        for name, frames in fields.items():
            read_um = readings([f.pixels for f in frames], WAFER_NA, WAFER_PIXEL_UM, swapped=swapped)
            sets[name] = read_um, np.array([f.z_um for f in frames])
        for one, other in (names, names[::-1]):
            colours = "exchanged" if swapped else "as they are"
            yield f"| {one} | {other} | {colours} | {crossed(sets[one], sets[other], WAFER_REACH_UM)} |"


def fluorescence(folder: Path) -> Iterable[str]:
    """Yield the table of one half of the field after calibration on the other."""
    yield "\n### Fluorescence, split by spatial crop: left and right half of one field\n"
    yield "Mono, so there is no side to see; a pixel is taken as one of the network's grid.\n"
    yield from _head(HEAD + " | MAE of always saying the mean")
    frames = _ordered(labelled_frames(folder / "fluor_microtubules"))
    z_um = np.array([f.z_um for f in frames])
    half = frames[0].pixels.shape[1] // 2
    crops = {"left": [f.pixels[:, :half] for f in frames], "right": [f.pixels[:, half:] for f in frames]}
    sets = {name: (readings(c, REFERENCE_NA, REFERENCE_PIXEL_UM), z_um) for name, c in crops.items()}
    trivial = np.mean(np.abs(z_um - z_um.mean()))
    for one, other in (("left", "right"), ("right", "left")):
        yield f"| {one} | {other} | mono | {crossed(sets[one], sets[other], 1.0)} | {trivial:.2f} |"
    for name, crop in crops.items():
        best = z_um[int(np.argmax([sharpness(pixels) for pixels in crop]))]
        yield f"\nThe sharpness test is highest at {best:+.2f} um on the {name} half."


def yeast(folder: Path) -> Iterable[str]:
    """Yield how well readings and sharpness order the sections, whose step is not known."""
    yield f"\n### Yeast: ordering of {SECTIONS} sections only, the step is unknown (mono, 81 px stretched to a patch)\n"
    rho = []
    for path in sorted((folder / "yeast_brightfield_5z").glob("*.png")):
        sections = np.split(read_image(path), SECTIONS, axis=1)
        side = sections[0].shape[0]
        read_um = readings(sections, REFERENCE_NA, REFERENCE_PIXEL_UM * PATCH_PX / side)
        sharp = np.array([sharpness(section) for section in sections])
        rho.append([_rank(read_um), _rank(np.abs(read_um)), _rank(sharp)])
    table = np.array(rho)
    yield from _head("images | rank correlation with the section: reading, median | its distance | sharpness | "
                     "reading monotone in")  # fmt: skip
    whole = np.mean(np.abs(table[:, 0]) > 0.999)
    yield f"| {len(table)} | " + " | ".join(f"{v:+.2f}" for v in np.nanmedian(table, axis=0)) + f" | {whole:.0%} |"


def _rank(values: Numbers) -> float:
    order = np.argsort(np.argsort(values))
    return float(np.corrcoef(order, np.arange(len(values)))[0, 1])


def _ordered(frames: Iterable[LabelledFrame]) -> list[LabelledFrame]:
    return sorted(frames, key=lambda frame: frame.z_um)


def _head(columns: str) -> Iterable[str]:
    yield f"| {columns} |"
    yield "|" + "---|" * (columns.count("|") + 1)


def main() -> None:
    """Print the tables."""
    folder = Path(sys.argv[1])
    for part in (wafer, fluorescence, yeast):
        for line in part(folder):
            sys.stdout.write(line + "\n")


if __name__ == "__main__":
    main()

"""The whole way from slides to a file that can be shipped: render, train, export, calibrate, card."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from edge_scanner.cli.focus_frames import simulated_frames
from edge_scanner.config import OpticsConfig, load
from edge_scanner.errors import UsageError
from edge_scanner.focus.autofocus import Estimator
from edge_scanner.focus.evaluate import Answer, answers, sigma_scale
from models.dataset import HELD_OUT_SLIDES, TRAIN_SLIDES, VALIDATION_SLIDES, joined, labelled, make
from models.export import export, write_card
from models.net import BACKBONES
from models.train import Inputs, Recipe, score, train

CALIBRATION_CAMERA = ("camera.width_px=512", "camera.height_px=512", 'focus.providers=["cpu"]')
CALIBRATION_FRAMES = 30
OBJECTIVES = (
    (0.7, 0.8, ()),
    (0.9, 0.95, ("optics.numerical_aperture=0.95", "optics.pixel_size_um=0.25", "camera.width_px=808",
                 "camera.height_px=808")),
)  # fmt: skip
"""Numerical apertures that the card may name, lowest and highest, and what they are calibrated with; 10x/0.3 is trained
on too, but its side of focus is told too badly."""


def run(
    out: Path,
    slides: Path | None,
    data: Path | None,
    work: Path,
    *,
    backbone: str,
    epochs: int,
    share: float,
    seed: int,
    show: Callable[[float, str], None],
) -> dict[str, Any]:
    """Train a network and write it with its card.

    Parameters
    ----------
    out : Path
        The ONNX file.
    slides : Path or None
        Folder of slides; None: synthetic tissue only.
    data : Path or None
        Folder of labelled images, trained on as well.
    work : Path
        Rendered patches and checkpoints; a run that was stopped goes on from there.
    backbone : str
        A name in `BACKBONES`.
    epochs : int
    share : float
        Of the full training set.
    seed : int
    show : callable
        Told of the progress.

    Returns
    -------
    dict
        What the card says.

    Raises
    ------
    UsageError
        Unknown backbone.
    SourceError
        A slide or labelled image that cannot be read.
    """
    if backbone not in BACKBONES:
        raise UsageError(f"There is no backbone {backbone!r}.", f"Known: {', '.join(sorted(BACKBONES))}.")
    show(0.0, "rendering")
    seen, unseen = make(work, slides or work / "none", seed, share)
    if data is not None:
        seen = joined(seen, labelled(data, OpticsConfig()))
    recipe = Recipe(backbone=backbone, epochs=epochs, seed=seed)
    net = train(seen, unseen, recipe, work / f"{backbone}-{seed}", show)
    _, mae_um = score(net, Inputs(net, unseen))
    about = {
        "backbone": backbone,
        "parameters": sum(p.numel() for p in net.parameters()),
        "seed": seed,
        "share": share,
        "patches": len(seen.z_um),
        "trained_on": [name for name in TRAIN_SLIDES if slides and (slides / name).exists()],
        "validated_on": [name for name in VALIDATION_SLIDES if slides and (slides / name).exists()],
        "held_out": list(HELD_OUT_SLIDES),
        "labelled": data.name if data else None,
        "mae_um": mae_um,
        "torch": torch.__version__,
        "sigma_scale": 1.0,
    }
    export(net, out, about)
    frames = max(4, round(CALIBRATION_FRAMES * share))
    objectives = [
        {"lowest_na": low, "highest_na": high, "sigma_scale": calibrated(out, slides, seed, frames, *optics)}
        for low, high, optics in OBJECTIVES
    ]
    about |= {"sigma_scale": objectives[0]["sigma_scale"], "objectives": objectives}
    write_card(out, out.with_suffix(".json"), about)
    return about


def calibrated(network: Path, slides: Path | None, seed: int, frames: int, *optics: str) -> float:
    """Return by how much the deviations that frames state are to be multiplied to cover 68 % of the errors.

    Measured on frames of the validation slides and of two slides trained on, which differ little in this.
    """
    found: list[Answer] = []
    names = (*VALIDATION_SLIDES, *TRAIN_SLIDES[:2])
    places = [str(slides / name) for name in names if slides and (slides / name).exists()]
    for slide in ["", *places]:
        settings = load(None, [f"focus.model={network}", f"sim.seed={seed + 200}", *CALIBRATION_CAMERA, *optics])
        found += answers(Estimator(settings).judge, simulated_frames(settings, slide, frames, 10.0, seed))
    return sigma_scale(found)

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
from edge_scanner.focus.samples import REFERENCE_NA
from models.dataset import HELD_OUT_SLIDES, TRAIN_SLIDES, VALIDATION_SLIDES, joined, labelled, make
from models.export import export, write_card
from models.fields import Optics, nominal
from models.net import BACKBONES
from models.train import Inputs, Recipe, score, train

CALIBRATION_FRAMES = 30
OBJECTIVES = (
    (0.25, 0.37, "10x", 640, 10.0),
    (0.37, 0.67, "20x/0.5", 512, 10.0),
    (0.67, 0.83, "20x", 512, 10.0),
    (0.83, 0.95, "40x", 808, 6.5),
)
"""Numerical apertures that the card names, lowest and highest, and what their deviations are calibrated with: the kind
of objective, the side of the frame in pixels, and how far from focus, um."""


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
    objectives = []
    for low, high, kind, side_px, range_um in OBJECTIVES:
        scale = calibrated(out, slides, seed, frames, nominal(kind), side_px, range_um)
        objectives.append({"lowest_na": low, "highest_na": high, "sigma_scale": scale})
        if low <= REFERENCE_NA <= high:
            about["sigma_scale"] = scale
    about["objectives"] = objectives
    write_card(out, out.with_suffix(".json"), about)
    return about


def calibrated(
    network: Path, slides: Path | None, seed: int, frames: int, optics: Optics, side_px: int, range_um: float
) -> float:
    """Return by how much the deviations that frames state are to be multiplied to cover 68 % of the errors.

    Measured on frames of the validation slides and of two slides trained on, which differ little in this.
    """
    found: list[Answer] = []
    names = (*VALIDATION_SLIDES, *TRAIN_SLIDES[:2])
    places = [str(slides / name) for name in names if slides and (slides / name).exists()]
    settings = load(
        None,
        [
            f"focus.model={network}",
            'focus.providers=["cpu"]',
            f"sim.seed={seed + 200}",
            f"camera.width_px={side_px}",
            f"camera.height_px={side_px}",
            f"optics.numerical_aperture={optics.numerical_aperture}",
            f"optics.pixel_size_um={optics.pixel_size_um}",
        ],
    )
    for slide in ["", *places]:
        found += answers(Estimator(settings).judge, simulated_frames(settings, slide, frames, range_um, seed))
    return sigma_scale(found)

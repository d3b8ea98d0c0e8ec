"""`edge-scanner focus`: train the focus model, evaluate it, ask it."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from edge_scanner.cli.focus_frames import simulated_frames
from edge_scanner.cli.focus_plot import error_plot
from edge_scanner.cli.output import print_json, progress
from edge_scanner.config import Config, load
from edge_scanner.errors import UsageError
from edge_scanner.focus.autofocus import Estimator
from edge_scanner.focus.evaluate import Answer, answers, summary
from edge_scanner.focus.labelled import LabelledFrame, labelled_frames, read_image
from edge_scanner.focus.model import ModelFile

app = typer.Typer(help="The focus model: train it, evaluate it, ask it.", no_args_is_help=True)

CONFIG = typer.Option(None, "--config", help="Configuration of optics, camera and simulator.")
SET = typer.Option([], "--set", help="section.key=value, overrides the configuration.")
MODEL = typer.Option(None, "--model", help="ONNX file; the one that ships when omitted.")
JSON = typer.Option(False, "--json", help="Print JSON.")


@app.command("eval")
def evaluate(
    slide: list[str] = typer.Option([], "--slide", help="Image or slide to see through simulated optics; repeatable."),
    data: Path | None = typer.Option(None, "--data", help="Folder of labelled images: positions.csv, or z in names."),
    model: Path | None = MODEL,
    count: int = typer.Option(200, "--count", min=1, help="Frames of each slide."),
    range_um: float = typer.Option(10.0, "--range-um", min=0.1, help="Furthest from focus."),
    seed: int = typer.Option(1, "--seed", min=0),
    plot: Path | None = typer.Option(None, "--plot", help="Write error against z as a PNG."),
    config: Path | None = CONFIG,
    overrides: list[str] = SET,
    json_wanted: bool = JSON,
) -> None:
    """Evaluate a model: on slides seen through the simulated optics, or on labelled images."""
    if bool(slide) == (data is not None):
        raise UsageError("Give either --slide or --data.", "See `edge-scanner focus eval --help`.")
    settings = _settings(config, overrides, model)
    found: list[Answer] = []
    provider = ""
    with progress("focus eval", wanted=not json_wanted) as show:
        if data is not None:
            for frame in labelled_frames(data):
                estimator = Estimator(_fitted(settings, frame))
                found += answers(estimator.judge, [frame])
                provider = estimator.model.providers.actual[0]
        else:
            estimator = Estimator(settings)
            provider = estimator.model.providers.actual[0]
            for number, name in enumerate(slide):
                for answer in answers(estimator.judge, simulated_frames(settings, name, count, range_um, seed)):
                    found.append(answer)
                    show(len(found) / (count * len(slide)), f"slide {number + 1} of {len(slide)}")
    if plot is not None:
        plot.write_bytes(error_plot([(a.slide, a.z_um, a.error_um) for a in found if a.dz_um is not None]))
    _print(found, settings, provider, json_wanted)


@app.command()
def predict(
    images: list[Path] = typer.Argument(..., help="Images of the configured camera."),
    model: Path | None = MODEL,
    config: Path | None = CONFIG,
    overrides: list[str] = SET,
    json_wanted: bool = JSON,
) -> None:
    """Tell how far images are from focus; positive: the stage is above focus."""
    settings = _settings(config, overrides, model)
    ModelFile.open(settings.focus.model).require(settings.optics)
    rows = []
    for path in images:
        frame = LabelledFrame(path.name, read_image(path), 0.0)
        seen = Estimator(_fitted(settings, frame)).judge(frame.pixels)
        rows.append({
            "file": str(path),
            "dz_um": seen.dz_um if seen else None,
            "sigma_um": seen.sigma_um if seen else None,
            "sure": bool(seen and seen.sure),
            "patches": seen.patches if seen else 0,
        })  # fmt: skip
    if json_wanted:
        print_json(rows)
        return
    table = Table("file", "dz um", "sigma um", "", box=None, title_justify="left")
    for row in rows:
        told = [f"{row[key]:+.2f}" if row[key] is not None else "-" for key in ("dz_um", "sigma_um")]
        table.add_row(str(row["file"]), *told, "" if row["sure"] else "refused")
    Console(highlight=False).print(table)


@app.command()
def train(
    out: Path = typer.Option(..., "--out", help="ONNX file to write; its card goes beside it."),
    slides: Path | None = typer.Option(None, "--slides", help="Folder of slides to render from."),
    data: Path | None = typer.Option(None, "--data", help="Folder of labelled images to train on as well."),
    work: Path = typer.Option(Path("focus-training"), "--work", help="Rendered patches and checkpoints; resumed from."),
    backbone: str = typer.Option("spectral", "--backbone"),
    epochs: int = typer.Option(150, "--epochs", min=1),
    share: float = typer.Option(1.0, "--share", min=0.001, help="Share of the full training set to render."),
    seed: int = typer.Option(1, "--seed", min=0),
    json_wanted: bool = JSON,
) -> None:
    """Train a model and write it as ONNX; needs the extra `train` and the `models` folder of the source tree."""
    if out.exists():
        raise UsageError(f"{out} exists already.", "Choose another --out.")
    try:
        recipe = importlib.import_module("models.recipe")
    except ImportError as error:
        raise UsageError(
            f"Training is not installed ({error}).", "Run it from the source tree with the extra [train] installed."
        ) from error
    with progress("focus train", wanted=not json_wanted) as show:
        told = recipe.run(out, slides, data, work, backbone=backbone, epochs=epochs, share=share, seed=seed, show=show)
    if json_wanted:
        print_json(told)
    else:
        Console(highlight=False).print(f"{out}: {told['mae_um']:.3f} um mean error on patches of unseen slides")


def _settings(config: Path | None, overrides: list[str], model: Path | None) -> Config:
    settings = load(config, overrides)
    if model is None:
        return settings
    return settings.model_copy(update={"focus": settings.focus.model_copy(update={"model": str(model)})})


def _fitted(settings: Config, frame: LabelledFrame) -> Config:
    """Return the configuration with the camera that took a frame."""
    height, width, channels = frame.pixels.shape
    camera = {"height_px": height, "width_px": width, "channels": channels}
    return settings.model_copy(update={"camera": settings.camera.model_copy(update=camera)})


def _print(found: list[Answer], settings: Config, provider: str, json_wanted: bool) -> None:
    depth_um = settings.optics.depth_of_field_um
    total = summary(found, depth_um) | {"provider": provider}
    names = list(dict.fromkeys(a.slide for a in found))
    slides = {name: summary([a for a in found if a.slide == name], depth_um) for name in names}
    if json_wanted:
        print_json(total | {"slides": slides})
        return
    table = Table("", *slides, "all", box=None)
    for key in (key for key in total if key != "provider"):
        table.add_row(key, *(_figure(figures[key]) for figures in [*slides.values(), total]))
    Console(highlight=False).print(table)


def _figure(value: Any) -> str:
    return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)

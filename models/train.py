"""Training: Laplace likelihood, a learning rate that falls on plateaus, checkpoints, and a curve as a picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from models.curve import draw
from models.dataset import Split
from models.net import BACKBONES, Regressor

Show = Callable[[float, str], None]

MEMORY = 0.995
"""Weights are averaged exponentially over about 200 steps."""

SETTLED = 100.0
"""Training ends when the learning rate has fallen so many times."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to train: a backbone by its name in `BACKBONES`, at most so many epochs, first learning rate, seed."""

    backbone: str = "spectral"
    epochs: int = 150
    batch: int = 256
    rate: float = 1e-3
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Epoch:
    """What one epoch came to: the loss trained on, loss and mean absolute error on slides it never saw, the rate."""

    trained: float
    unseen: float
    mae_um: float
    rate: float


class Inputs:
    """What the head is fed: a front's features, computed once and kept in `cache`, or patches batch by batch."""

    def __init__(self, net: Regressor, split: Split, cache: Path | None = None) -> None:
        self._front, self._split = net.front, split
        self.z_um = torch.from_numpy(split.z_um)
        self._features = self._all(cache) if hasattr(net.front, "features") else None

    def batch(self, rows: Tensor) -> Tensor:
        """Return the head's input of some samples."""
        return self._made(rows.numpy()) if self._features is None else self._features[rows]

    def _made(self, rows: NDArray[np.intp]) -> Tensor:
        pixels = torch.from_numpy(np.stack([self._split.patches[row] for row in rows]))
        with torch.no_grad():
            made: Tensor = self._front(pixels.permute(0, 3, 1, 2).float() / 255)
            return made

    def _all(self, cache: Path | None) -> Tensor:
        if cache is not None and cache.exists():
            kept: Tensor = torch.load(cache, weights_only=True)
            if len(kept) == len(self.z_um):
                return kept
        made = torch.cat([self._made(rows.numpy()) for rows in parts(torch.arange(len(self.z_um)), 64)])
        if cache is not None:
            torch.save(made, cache)
        return made


def parts(rows: Tensor, size: int) -> list[Tensor]:
    """Return rows in batches."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def loss(dz_um: Tensor, sigma_um: Tensor, z_um: Tensor) -> Tensor:
    """Return the mean negative logarithm of a Laplace likelihood."""
    scale = sigma_um / 2.0**0.5
    mean: Tensor = (torch.log(2 * scale) + (dz_um - z_um).abs() / scale).mean()
    return mean


def train(seen: Split, unseen: Split, recipe: Recipe, folder: Path, show: Show) -> Regressor:
    """Train, or go on from `folder/last.pt`, and return the best epoch's network, also kept in `folder/best.pt`.

    Slides of `unseen` decide the learning rate and the best epoch, nothing else.
    """
    torch.manual_seed(recipe.seed)
    folder.mkdir(parents=True, exist_ok=True)
    net = BACKBONES[recipe.backbone]()
    course = _Course(net, recipe, folder)
    inputs, others = Inputs(net, seen, folder / "features.pt"), Inputs(net, unseen)
    for number in range(len(course.epochs), recipe.epochs):
        if course.settled:
            break
        trained = course.step(inputs)
        epoch = course.close(trained, *score(course.mean, others))
        show((number + 1) / recipe.epochs, f"{epoch.mae_um:.3f} um on unseen slides")
        draw(folder / "learning_curve.png", [(e.trained, e.unseen) for e in course.epochs])
    net.load_state_dict(torch.load(folder / "best.pt", weights_only=True))
    return net.eval()


def score(net: Regressor, inputs: Inputs) -> tuple[float, float]:
    """Return loss and mean absolute error, reference micrometres."""
    net.eval()
    with torch.no_grad():
        judged = [net.judge(inputs.batch(rows)) for rows in parts(torch.arange(len(inputs.z_um)), 256)]
        dz_um, sigma_um = (torch.cat(column) for column in zip(*judged, strict=True))
        return float(loss(dz_um, sigma_um, inputs.z_um)), float((dz_um - inputs.z_um).abs().mean())


class _Course:
    """Network, optimiser and scheduler of one run, and its checkpoints."""

    def __init__(self, net: Regressor, recipe: Recipe, folder: Path) -> None:
        self._net, self._recipe, self._folder = net, recipe, folder
        average = get_ema_multi_avg_fn(MEMORY)  # type: ignore[no-untyped-call]
        self._averaged = AveragedModel(net, multi_avg_fn=average, use_buffers=True)
        self._optimiser = torch.optim.AdamW(net.head.parameters(), recipe.rate, weight_decay=0.02)
        self._scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(self._optimiser, factor=0.4, patience=6)
        self.epochs: list[Epoch] = []
        if (folder / "last.pt").exists():
            self._resume(torch.load(folder / "last.pt", weights_only=True))

    def _resume(self, kept: dict[str, Any]) -> None:
        self._net.load_state_dict(kept["net"])
        self._averaged.load_state_dict(kept["averaged"])
        self._optimiser.load_state_dict(kept["optimiser"])
        self._scheduler.load_state_dict(kept["scheduler"])
        torch.set_rng_state(kept["random"])
        self.epochs = [Epoch(*numbers) for numbers in kept["epochs"]]

    @property
    def mean(self) -> Regressor:
        """The network with its weights averaged over the last steps, which is what is judged and kept."""
        return cast(Regressor, self._averaged.module)

    @property
    def settled(self) -> bool:
        """Whether the rate has fallen so far that nothing more is to be learnt."""
        return bool(self.epochs) and self.epochs[-1].rate < self._recipe.rate / SETTLED

    def step(self, inputs: Inputs) -> float:
        """Train one epoch and return its mean loss."""
        self._net.train()
        total = 0.0
        batches = parts(torch.randperm(len(inputs.z_um)), self._recipe.batch)
        for rows in batches:
            found = loss(*self._net.judge(inputs.batch(rows)), inputs.z_um[rows])
            self._optimiser.zero_grad()
            found.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self._net.parameters(), 1.0)
            self._optimiser.step()
            self._averaged.update_parameters(self._net)
            total += float(found.detach())
        return total / len(batches)

    def close(self, trained: float, unseen: float, mae_um: float) -> Epoch:
        """Take down an epoch, let the rate fall on a plateau, and write the checkpoints."""
        self._scheduler.step(unseen)
        epoch = Epoch(trained, unseen, mae_um, self._optimiser.param_groups[0]["lr"])
        best = unseen <= min((e.unseen for e in self.epochs), default=float("inf"))
        self.epochs.append(epoch)
        if best:
            torch.save(self.mean.state_dict(), self._folder / "best.pt")
        kept = {
            "net": self._net.state_dict(),
            "averaged": self._averaged.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "scheduler": self._scheduler.state_dict(),
            "random": torch.get_rng_state(),
            "epochs": [astuple(e) for e in self.epochs],
        }
        torch.save(kept, self._folder / "last.partial")
        (self._folder / "last.partial").replace(self._folder / "last.pt")
        return epoch

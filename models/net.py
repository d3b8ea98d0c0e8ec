"""Regressors from a patch to signed defocus and its uncertainty; every backbone is a front and a head.

The front has no weights, so training computes it once for all patches; the head learns. `Regressor` joins them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from models.spectrum import Spectrum

RANGE_UM = 20.0
"""The output is bounded by this, reference micrometres."""

LEAST_SIGMA_UM = 0.02


class Regressor(nn.Module):
    """A patch in, `dz_um` and `sigma_um` out.

    Parameters
    ----------
    front : Module
        (n, 3, 256, 256) intensities to features; no weights.
    head : Module
        Features to (n, 2): defocus before it is bounded, and the logarithm of a Laplace scale.
    """

    def __init__(self, front: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.front, self.head = front, head

    def forward(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Return `dz_um` and `sigma_um`, each (n,), reference micrometres."""
        return self.judge(self.front(patches))

    def judge(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the same from the front's features."""
        raw = self.head(features)
        dz_um = RANGE_UM * torch.tanh(raw[:, 0] / RANGE_UM)
        scale = LEAST_SIGMA_UM + torch.exp(torch.clamp(raw[:, 1], -5.0, 3.0))
        return dz_um, 2.0**0.5 * scale


class _Jitter(nn.Module):
    """Adds noise in training, so that no spectrum is learnt by heart."""

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.sigma = sigma

    def forward(self, x: Tensor) -> Tensor:
        """Return the input, noisy in training."""
        return x + self.sigma * torch.randn_like(x) if self.training else x


class _Residual(nn.Module):
    """A residual step of a fully connected net."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.step = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Dropout(dropout), nn.Linear(width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the input and what was learnt of it."""
        learnt: Tensor = self.step(x)
        return x + learnt


class _Block(nn.Module):
    """A residual step of a convolutional net; halves the picture."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.step = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs),
        )  # fmt: skip
        self.skip = nn.Conv2d(inputs, outputs, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return the shortcut and what was learnt of it."""
        return torch.relu(self.skip(x) + self.step(x))


class _Relative(nn.Module):
    """Intensities in units of the patch's mean: exposure does not count."""

    def forward(self, patches: Tensor) -> Tensor:
        """Return the relative deviation from each channel's mean."""
        return patches / patches.mean((2, 3), keepdim=True).clamp_min(1e-3) - 1.0


def spectral(width: int = 448, depth: int = 4, dropout: float = 0.05, jitter: float = 0.1) -> Regressor:
    """Return a residual net on the power and cross spectra of the colours."""
    front = Spectrum()
    begin = nn.BatchNorm1d(front.features, affine=False), _Jitter(jitter), nn.Linear(front.features, width)
    steps = [_Residual(width, dropout) for _ in range(depth)]
    return Regressor(front, nn.Sequential(*begin, *steps, nn.SiLU(), nn.Linear(width, 2)))


def resnet(width: int = 24) -> Regressor:
    """Return a small residual convolutional net on the pixels."""
    stem = nn.Conv2d(12, width, 3, 2, 1)
    blocks = [_Block(width * n, width * m) for n, m in ((1, 2), (2, 3), (3, 4))]
    last = nn.Linear(width * 4, 2)
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Regressor(_Relative(), nn.Sequential(nn.PixelUnshuffle(2), stem, nn.ReLU(), *blocks, pool, last))


BACKBONES: dict[str, Callable[[], Regressor]] = {"spectral": spectral, "resnet": resnet}

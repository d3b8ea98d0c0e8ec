"""The front of the spectral backbone: what defocus does to the power and cross spectra of the three colours.

Defocus multiplies the spectrum of each colour by that colour's transfer function, which is real and rotationally
symmetric (Goodman, Introduction to Fourier Optics, 6.4); which colour is blurred more, and whose contrast is
reversed at which frequency, tells how far and on which side. Everything is a matrix product, so that any provider
runs it and the exported graph has no transform of its own.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

WINDOW_PX = 64
SCALES = (1, 2, 4)
"""The patch is looked at in its own pixels and reduced two and four times: fine bins at low frequencies."""

FLOOR = 1e-6


class Spectrum(nn.Module):
    """Radial power and coherence of a patch's colours at three scales.

    `features` is the length of the vector: for each radial bin the logarithm of the power of R, G and B, and the real
    part of the coherence of RG, GB and BR.
    """

    rows: Tensor
    cols: Tensor
    window: Tensor

    def __init__(self) -> None:
        super().__init__()
        n = WINDOW_PX
        at = torch.arange(n, dtype=torch.float64)
        turn = 2 * math.pi / n * torch.outer(at, at)
        hann = 0.5 - 0.5 * torch.cos(2 * math.pi * (at + 0.5) / n)
        half = n // 2 + 1
        self.register_buffer("rows", torch.cat([turn.cos(), turn.sin()]).float() / 8)
        self.register_buffer("cols", torch.cat([turn[:, :half].cos(), turn[:, :half].sin()], 1).float() / 8)
        self.register_buffer("window", torch.outer(hann, hann).float())
        bins = [_bins(scale) for scale in SCALES]
        for scale, weights in zip(SCALES, bins, strict=True):
            self.register_buffer(f"bins{scale}", weights)
        self.features = 6 * sum(weights.shape[1] for weights in bins)

    def forward(self, patches: Tensor) -> Tensor:
        """Return the features, (n, features), of (n, 3, 256, 256) intensities."""
        x = patches / patches.mean((2, 3), keepdim=True).clamp_min(1e-3)
        found = []
        for scale in SCALES:
            found.append(self._judge(x, getattr(self, f"bins{scale}")))
            x = nn.functional.avg_pool2d(x, 2)
        return torch.cat(found, 1)

    def _judge(self, x: Tensor, bins: Tensor) -> Tensor:
        n = WINDOW_PX
        count = x.shape[2] // n
        tiles = x.reshape(-1, 3, count, n, count, n).transpose(3, 4).reshape(-1, 3, count * count, n, n)
        tiles = (tiles - tiles.mean((3, 4), keepdim=True)) * self.window
        both = self.rows @ tiles @ self.cols
        half = n // 2 + 1
        re = both[..., :n, :half] - both[..., n:, half:]
        im = both[..., :n, half:] + both[..., n:, :half]
        turned_re, turned_im = re[:, [1, 2, 0]], im[:, [1, 2, 0]]
        power = (re * re + im * im).mean(2).flatten(2) @ bins
        cross = (re * turned_re + im * turned_im).mean(2).flatten(2) @ bins
        strength = torch.sqrt(power + FLOOR)
        coherence = cross / strength / strength[:, [1, 2, 0]]
        return torch.cat([torch.log(power + FLOOR), 2 * coherence], 1).flatten(1)


def _bins(scale: int) -> Tensor:
    """Return the weights, (64 * 33, bins), that average a half spectrum over rings.

    The coarsest scale sees every low frequency, a bin each; finer ones what the next coarser cannot see well.
    """
    n = WINDOW_PX
    low = list(range(1, 10)) if scale == SCALES[-1] else []
    centres = torch.tensor([*low, *range(10, 32, 2)], dtype=torch.float64)
    y = torch.fft.fftfreq(n, 1 / n, dtype=torch.float64)[:, None]
    x = torch.arange(n // 2 + 1, dtype=torch.float64)[None, :]
    radius = torch.hypot(y, x).flatten()[:, None]
    times = torch.where((x == 0) | (x == n // 2), 1.0, 2.0).expand(n, -1).flatten()[:, None]
    width = torch.where(centres < 10, 1.0, 2.0)
    weights = times * torch.clamp(1 - (radius - centres).abs() / width, min=0)
    return (weights / weights.sum(0)).float()

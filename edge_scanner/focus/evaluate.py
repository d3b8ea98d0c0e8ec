"""How good a focus model is: its answers on frames of known defocus, and what they amount to."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_scanner.focus.consensus import Consensus
from edge_scanner.focus.labelled import LabelledFrame
from edge_scanner.tile import Pixels

Judge = Callable[[Pixels], Consensus | None]

FAR_UM = 2.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model said of one frame; `dz_um` is None where it refused."""

    slide: str
    z_um: float
    blank: bool
    dz_um: float | None
    sigma_um: float | None
    took_ms: float

    @property
    def error_um(self) -> float:
        """Answer less truth; not a number where it refused."""
        return float("nan") if self.dz_um is None else self.dz_um - self.z_um


def answers(judge: Judge, frames: Iterable[LabelledFrame]) -> Iterator[Answer]:
    """Yield one answer a frame; a consensus that is not sure is a refusal."""
    for frame in frames:
        began_s = time.perf_counter()
        seen = judge(frame.pixels)
        took_ms = (time.perf_counter() - began_s) * 1000
        sure = seen if seen is not None and seen.sure else None
        dz_um, sigma_um = (sure.dz_um, sure.sigma_um) if sure else (None, None)
        yield Answer(frame.slide, frame.z_um, frame.blank, dz_um, sigma_um, took_ms)


def summary(found: Sequence[Answer], depth_um: float) -> dict[str, Any]:
    """Return the figures of a list of answers.

    Parameters
    ----------
    found : sequence of Answer
    depth_um : float
        Depth of field.

    Returns
    -------
    dict
        `n` frames with texture; `mae_um`, `p95_um`, `worst_um`, `within_dof`, `within_2um`, `wrong_direction` (among
        those more than one depth of field from focus) and `sigma_coverage_68` of those answered; `refused_share` of
        those with texture; `refusal_precision`, the share of blank ones among those refused; `p95_ms` a frame. A
        figure that nothing was measured for is None.
    """
    textured = [a for a in found if not a.blank]
    told = [a for a in textured if a.dz_um is not None]
    refused = [a for a in found if a.dz_um is None]
    error = np.array([abs(a.error_um) for a in told])
    sigma = np.array([a.sigma_um for a in told], dtype=float)
    beyond = [a for a in told if abs(a.z_um) > depth_um]
    wrong = np.array([(a.dz_um or 0.0) * a.z_um < 0 for a in beyond])
    return {
        "n": len(textured),
        "mae_um": _mean(error),
        "p95_um": float(np.percentile(error, 95)) if len(error) else None,
        "worst_um": float(error.max()) if len(error) else None,
        "within_dof": _mean(error <= depth_um),
        "within_2um": _mean(error <= FAR_UM),
        "wrong_direction": _mean(wrong),
        "refused_share": _mean(np.array([a.dz_um is None for a in textured])),
        "refusal_precision": _mean(np.array([a.blank for a in refused])),
        "blank": len(found) - len(textured),
        "sigma_coverage_68": _mean(error <= sigma),
        "p95_ms": float(np.percentile([a.took_ms for a in found], 95)) if found else None,
    }


def sigma_scale(found: Sequence[Answer]) -> float:
    """Return the factor by which the stated deviations must grow so that 68 % of the errors lie within them."""
    ratio = [abs(a.error_um) / a.sigma_um for a in found if a.sigma_um and not a.blank]
    return float(np.percentile(ratio, 68.27)) if ratio else 1.0


def _mean(values: Any) -> float | None:
    return float(np.mean(values)) if len(values) else None

"""Export: the network as ONNX with a card beside it, proved equal to PyTorch before it is kept."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from edge_scanner.errors import ScannerError
from edge_scanner.focus.model import BATCH
from edge_scanner.focus.samples import PATCH_PX
from models.net import Regressor

TOLERANCE_UM = 1e-4
OPSET = 17


def export(net: Regressor, path: Path, about: dict[str, Any]) -> float:
    """Write `path` (ONNX) and its card (`.json`: checksum, `about`); return the largest difference from PyTorch.

    The shape is static, (6, 3, 256, 256) float32: an engine is compiled for one shape only.

    Raises
    ------
    ScannerError
        When the exported network answers otherwise than PyTorch; nothing is kept then.
    """
    net.eval()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    example = _example()
    torch.onnx.export(
        net, (example,), str(partial), input_names=["patches"], output_names=["dz_um", "sigma_um"],
        opset_version=OPSET, dynamo=False,
    )  # fmt: skip
    worst = difference(net, partial, example)
    if not worst <= TOLERANCE_UM:
        partial.unlink()
        raise ScannerError(f"The exported network differs from PyTorch by {worst:.2g} um.", "Report this.")
    write_card(partial, path.with_suffix(".json"), about)
    partial.replace(path)
    return worst


def write_card(network: Path, card: Path, about: dict[str, Any]) -> None:
    """Write the card of a network: its checksum and what there is to say of it."""
    sha256 = hashlib.sha256(network.read_bytes()).hexdigest()
    card.write_text(json.dumps({"sha256": sha256, **about}, indent=2) + "\n")


def difference(net: Regressor, path: Path, patches: torch.Tensor) -> float:
    """Return the largest difference of any output between ONNX Runtime on the CPU and PyTorch."""
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        ours = [out.numpy() for out in net(patches)]
    theirs = session.run(["dz_um", "sigma_um"], {"patches": patches.numpy()})
    return max(float(np.abs(a - b).max()) for a, b in zip(ours, theirs, strict=True))


def _example() -> torch.Tensor:
    """Return patches of smooth noise, so that every layer has something to do."""
    rough = torch.rand((BATCH, 3, PATCH_PX // 4, PATCH_PX // 4), generator=torch.Generator().manual_seed(1))
    return 0.3 + 0.5 * torch.nn.functional.interpolate(rough, scale_factor=4, mode="bilinear")

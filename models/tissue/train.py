"""Train the tissue network from seeds, write it as ONNX with a card, and print its errors on slides kept apart.

    python -m models.tissue.train --slides FOLDER [--out DIR] [--steps 700] [--seed 1]

`FOLDER` has the slides that models/tissue/README.md names; without it synthetic tissue is all there is.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.export import write_card
from models.tissue.scenes import CLASSES, PIXEL_SIZE_UM, Labels, Rgb, Texture, make_scene, paint, read_slide, texture

TRAINED_ON = (("duodenum_HE_40x_region.tif", 32), ("ectopic_pancreas_HE_region.tif", 32),
              ("plant_seed_HE_whole_slide.tif", 32))  # fmt: skip
KEPT_APART = (("BS9_biopsies_HE_whole_slide_quarter_res.tif", 8), ("CMU-1-Small-Region.svs", 16),
              ("duodenum_IHC_chromogranin_40x_region.tif", 32))  # fmt: skip
SIDE_PX, TILE_PX, OVERLAP_PX = 160, 256, 64
TOLERANCE = 1e-4


class TissueNet(nn.Module):
    """Dilated convolutions, 12,195 weights; sees 24 px to each side, less than half of the overlap of 64.

    Input (n, 3, y, x), intensities as shares of full scale; output (n, 3, y, x), logits. Works in optical density, so
    that what lies beyond a tile, zeros, is glass.
    """

    def __init__(self, width: int = 16, dilations: tuple[int, ...] = (1, 1, 2, 4, 8, 8)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for number, dilation in enumerate(dilations):
            layers += [
                nn.Conv2d(width if number else 3, width, 3, padding=dilation, dilation=dilation, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
        self.body, self.head = nn.Sequential(*layers), nn.Conv2d(width, len(CLASSES), 1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return logits."""
        answer: Tensor = self.head(self.body(-torch.log(pixels * (255 / 256) + 1 / 256)))
        return answer


def train(textures: list[Texture], steps: int, seed: int, batch: int = 8) -> TissueNet:
    """Return a network trained on scenes that are made as it goes."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    rng, net = np.random.default_rng(seed), TissueNet()
    optimiser = torch.optim.AdamW(net.parameters(), 3e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, total_steps=steps)
    measure, mean = nn.CrossEntropyLoss(), 1.0
    for step in range(1, steps + 1):
        scenes = [make_scene(textures, SIDE_PX, rng) for _ in range(batch)]
        loss = measure(net(_pixels([picture for picture, _ in scenes])), _truth([labels for _, labels in scenes]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        mean += 0.02 * (float(loss.detach()) - mean)
        if step % 50 == 0:
            sys.stderr.write(f"step {step} of {steps}: loss {mean:.4f}\n")
    return net.eval()


def export(net: TissueNet, path: Path, about: dict[str, object]) -> float:
    """Write the network and its card; return the largest difference between ONNX Runtime and PyTorch."""
    import onnxruntime

    path.parent.mkdir(parents=True, exist_ok=True)
    example = _pixels([make_scene([texture("glass", np.full((64, 64, 3), 240, np.uint8))], TILE_PX,
                                  np.random.default_rng(0))[0]])  # fmt: skip
    sizes = {0: "n", 2: "y", 3: "x"}
    torch.onnx.export(
        net, (example,), str(path), input_names=["pixels"], output_names=["logits"], opset_version=17, dynamo=False,
        dynamic_axes={"pixels": sizes, "logits": sizes},
    )  # fmt: skip
    network = onnx.load(str(path))
    said = {"classes": json.dumps(CLASSES), "pixel_size_um": str(PIXEL_SIZE_UM), "overlap_px": str(OVERLAP_PX)}
    onnx.helper.set_model_props(network, said)
    onnx.save(network, str(path))
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        worst = float(np.abs(session.run(None, {"pixels": example.numpy()})[0] - net(example).numpy()).max())
    if not worst <= TOLERANCE:
        path.unlink()
        raise SystemExit(f"The exported network differs from PyTorch by {worst:.2g}.")
    write_card(path, path.with_suffix(".json"), about)
    return worst


def errors(net: TissueNet, picture: Rgb, truth: Labels) -> dict[str, float]:
    """Return the intersection over union of each class that occurs, and the share of pixels that are wrong."""
    with torch.no_grad():
        found = net(_pixels([picture])).argmax(dim=1)[0].numpy()
    out = {"wrong": float((found != truth).mean())}
    for number, name in enumerate(CLASSES):
        here, there = found == number, truth == number
        if there.any():
            out[name] = float((here & there).sum() / (here | there).sum())
    return out


def main() -> None:
    """Train, judge, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slides", type=Path)
    parser.add_argument("--out", type=Path, default=Path("tissue"))
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    textures = [texture(f"synthetic {seed}", paint(seed)) for seed in (301, 302, 303)]
    apart = [texture("synthetic 401", paint(401))]
    if options.slides:
        textures += [texture(name, read_slide(options.slides / name, reduce)) for name, reduce in TRAINED_ON] * 2
        apart += [texture(name, read_slide(options.slides / name, reduce)) for name, reduce in KEPT_APART]
    net = train(textures, options.steps, options.seed)
    table = {}
    for kept in apart:
        plain = (250 * 10.0**-kept.density).clip(0, 255).round().astype(np.uint8)
        table[kept.name] = errors(net, plain, kept.tissue.astype(np.uint8))
        rng = np.random.default_rng(7)
        scenes = [make_scene([kept], TILE_PX, rng) for _ in range(40)]
        rows, truths = (np.concatenate(parts) for parts in zip(*scenes, strict=True))
        table[f"{kept.name}, with pen and dirt"] = errors(net, rows, truths)
    about = {"classes": CLASSES, "pixel_size_um": PIXEL_SIZE_UM, "seed": options.seed, "steps": options.steps,
             "trained_on": [t.name for t in textures], "kept_apart": table}  # fmt: skip
    worst = export(net, options.out / "tissue.onnx", about)
    sys.stdout.write(json.dumps({"onnx_differs_by": worst, **table}, indent=2) + "\n")


def _pixels(pictures: list[Rgb]) -> Tensor:
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255


def _truth(labels: list[NDArray[np.uint8]]) -> Tensor:
    return torch.from_numpy(np.stack(labels)).long()


if __name__ == "__main__":
    main()

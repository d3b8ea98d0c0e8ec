"""Several processes cut a picture into tiles and push them; the collector makes an OME-Zarr and an OME-TIFF of them.

Stands for any acquisition that has its own stage and camera: replace `expose` by yours.

    python push_tiles.py PICTURE FOLDER
"""

from __future__ import annotations

import multiprocessing
import sys
from pathlib import Path

import cv2
import numpy as np

from edge_scanner import push
from edge_scanner.plan import ScanPlan, ScanRegion, Target

PIXEL_SIZE_UM = 0.5
WORKERS = 2


def expose(picture: np.ndarray, plan: ScanPlan, target: Target) -> np.ndarray:
    """Return the tile (y, x, 3) uint8 of a target; what lies beyond the picture is repeated."""
    y, x = plan.corner_px(target.row, target.col)
    rows = np.arange(y, y + plan.tile_height_px).clip(0, picture.shape[0] - 1)
    cols = np.arange(x, x + plan.tile_width_px).clip(0, picture.shape[1] - 1)
    return picture[rows][:, cols]


def produce(feed: push.Feed, path: Path, plan: ScanPlan, number: int) -> None:
    """Push every `WORKERS`-th target, by its position; waits whenever the collector's queue is full."""
    picture = cv2.imread(str(path))[:, :, ::-1]
    for target in list(plan)[number::WORKERS]:
        feed.push_at(target.x_um, target.y_um, expose(picture, plan, target))


def main() -> None:
    """Plan, start the producers, collect."""
    path, folder = Path(sys.argv[1]), Path(sys.argv[2])
    height, width = cv2.imread(str(path)).shape[:2]
    region = ScanRegion(0.0, 0.0, width * PIXEL_SIZE_UM / 1000, height * PIXEL_SIZE_UM / 1000)
    plan = ScanPlan(region, tile_height_px=1024, tile_width_px=1224, pixel_size_um=PIXEL_SIZE_UM, overlap_px=102)
    with push.collect(folder, plan, export=True) as collector:
        workers = [
            multiprocessing.Process(target=produce, args=(collector.feed(), path, plan, number))
            for number in range(WORKERS)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    report = collector.report
    print(f"{report.tiles} tiles, {len(report.holes)} holes, {report.registered_tiles} placed by their pictures")
    print(report.paths["store"], report.paths["tiff"], sep="\n")


if __name__ == "__main__":
    main()

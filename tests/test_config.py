"""Configuration: strict, helpful, frozen; the shipped examples are complete."""

import tomllib
from pathlib import Path

import pydantic
import pytest

from edge_scanner import config as configs
from edge_scanner.errors import ConfigError

EXAMPLES = sorted((Path(__file__).parents[1] / "deploy" / "config").glob("*.toml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_the_examples_are_valid_and_name_every_key(path):
    loaded = configs.load(path)
    raw = tomllib.loads(path.read_text())
    assert {s: set(v) for s, v in configs.dump(loaded).items()} == {s: set(v) for s, v in raw.items()}


def test_there_are_examples_for_the_simulator_and_the_jetson():
    assert [p.name for p in EXAMPLES] == ["jetson.toml", "sim.toml"]


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("scan.overlp=0.1", "scan.overlap"),
        ("scna.overlap=0.1", "scan"),
        ("sim.stage_eror_um=1", "sim.stage_error_um"),
        ("scan.overlap=1.5", "scan.overlap is 1.5"),
        ("scan.overlap=nan", "scan.overlap"),
        ("stage.x_min_mm=100", "x limits"),
        ("stage.speed_mm_s=inf", "stage.speed_mm_s"),
        ("focus.mode=magic", "focus.mode"),
        ("camera.bits=12", "camera.bits"),
        ("nonsense", "section.key=value"),
        ("a.b.c=1", "a"),
    ],
)
def test_mistakes_are_named(override, says):
    with pytest.raises(ConfigError) as wrong:
        configs.load(None, [override])
    assert says in str(wrong.value)


def test_jpeg_is_refused_where_it_cannot_hold_the_pixels():
    with pytest.raises(ConfigError, match="8-bit RGB"):
        configs.load(None, ["mosaic.codec=jpeg", "camera.bits=16"])


@pytest.mark.parametrize(
    ("camera", "codec", "fill"), [((3, 8), "jpeg", 255), ((1, 8), "gzip", 255), ((3, 16), "gzip", 65535)]
)
def test_codec_and_fill_follow_the_camera(camera, codec, fill):
    config = configs.load(None, [f"camera.channels={camera[0]}", f"camera.bits={camera[1]}"])
    assert (config.codec, config.fill_value) == (codec, fill)
    dark = configs.load(None, ["illumination.brightfield=false"])
    assert dark.fill_value == 0


def test_overrides_are_toml_or_text_and_the_value_is_frozen():
    config = configs.load(None, ["sim.slide=/a/b c.tif", 'storage.root="x"', "scan.keep_tiles=true"])
    assert (config.sim.slide, config.storage.root, config.scan.keep_tiles) == ("/a/b c.tif", "x", True)
    with pytest.raises(pydantic.ValidationError):
        config.scan.keep_tiles = False  # type: ignore[misc]


def test_the_effective_configuration_reads_back():
    config = configs.load(None, ["scan.overlap=auto", "sim.seed=7"])
    assert configs.parse(configs.dump(config)) == config

"""A lamp that is dead, dies, or is put off: never a blank scan in silence; and places that are merely dark."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from edge_scanner import config as configs
from edge_scanner.acquire import Acquirer
from edge_scanner.calibrate import bright_place
from edge_scanner.devices.illumination import Illumination
from edge_scanner.devices.rig import build_rig
from edge_scanner.errors import DeviceError
from edge_scanner.lamp import RELIGHT_S
from edge_scanner.plan import ScanPlan, ScanRegion
from edge_scanner.tile import Verdict

SMALL = (
    "camera.width_px=256", "camera.height_px=192", "optics.pixel_size_um=1.0", "sim.tissue_width_mm=0.8",
    "sim.tissue_height_mm=0.6", "focus.mode=off", "sim.surface=false",
)  # fmt: skip
PLAN = ScanPlan(ScanRegion(0.0, 0.0, 0.8, 0.6), 192, 256, 1.0, 40)


class Moody(Illumination):
    """A lamp of which the rig's own is the bulb: `dead` for good, or `off_by_itself` until it is told again."""

    def __init__(self, bulb):
        self.bulb, self.dead, self.told = bulb, False, 0

    def on(self):
        self.told += 1
        if not self.dead:
            self.bulb.on()

    def off(self):
        self.bulb.off()

    def die(self):
        self.dead = True
        self.bulb.off()


def rig_of(*more):
    config = configs.load(None, [*SMALL, *more])
    rig = build_rig(config)
    rig = replace(rig, illumination=Moody(rig.illumination))
    rig.stage.open()
    rig.stage.home()
    rig.camera.open()
    return config, rig


def picture(path, pixels):
    cv2.imwrite(str(path), pixels)
    return f'sim.slide="{path}"'


def same(tiles, others):
    return all(np.array_equal(a.pixels, b.pixels) for a, b in zip(tiles, others, strict=True))


@pytest.fixture(scope="module")
def clean():
    config, rig = rig_of()
    return list(Acquirer(rig, config).run(PLAN))


def test_a_dead_lamp_is_refused_before_the_first_tile():
    config, rig = rig_of()
    place, z_um = bright_place(config, rig, PLAN)
    assert (place.x_um, place.y_um, z_um) == (400.0, 300.0, 0.0)
    assert not rig.stage.lit
    rig.illumination.die()
    with pytest.raises(DeviceError, match=r"Every frame is dark with the light on, 0\.0 %"):
        bright_place(config, rig, PLAN)
    config, rig = rig_of("illumination.brightfield=false")
    rig.illumination.die()
    assert bright_place(config, rig, PLAN) is None


@pytest.mark.parametrize("grey", [4, 9])
def test_a_dark_slide_is_no_dead_lamp(grey, tmp_path):
    dark = picture(tmp_path / "dark.png", np.full((600, 800, 3), grey, np.uint8))
    within = ("stage.x_min_mm=0.2", "stage.y_min_mm=0.15", "stage.x_max_mm=0.6", "stage.y_max_mm=0.45")
    config, rig = rig_of(dark, *within, "stage.x_home_mm=0.2", "stage.y_home_mm=0.2")
    assert bright_place(config, rig, ScanPlan(ScanRegion(0.3, 0.2, 0.2, 0.2), 192, 256, 1.0, 40)) is None


@pytest.mark.parametrize("after", [0, 3])
def test_a_lamp_that_dies_stops_the_scan_at_that_tile_and_a_new_one_goes_on(after, clean):
    config, rig = rig_of()
    bright = bright_place(config, rig, PLAN)
    lost = []

    def repaired():
        lost.append(rig.illumination.told)
        rig.illumination.dead = len(lost) < 3

    tiles = list(Acquirer(rig, config, light_lost=repaired, bright=bright).run(killing(rig, after)))
    assert len(lost) == 3
    assert same(tiles, clean)
    config, rig = rig_of()
    with pytest.raises(DeviceError, match="The light went out"):
        list(Acquirer(rig, config, bright=bright).run(killing(rig, after)))


def killing(rig, after):
    """Yield the targets; the lamp dies before one of them."""
    for target in PLAN:
        if target.index == after:
            rig.illumination.die()
        yield target


def test_a_lamp_that_was_put_off_is_told_again(clean):
    config, rig = rig_of()

    def putting_off():
        for target in PLAN:
            if target.index in (2, 7):
                rig.illumination.off()
            yield target

    tiles = list(Acquirer(rig, config, light_lost=pytest.fail).run(putting_off()))
    assert same(tiles, clean)
    assert rig.illumination.told == 3


def test_after_a_long_pause_the_light_is_told_again_in_fluorescence_too():
    config, rig = rig_of("illumination.brightfield=false")
    waits = iter([0.0, 2 * RELIGHT_S, 0.0])

    def pause():
        rig.clock.sleep_s(next(waits, 0.0))

    list(Acquirer(rig, config, wait_if_paused=pause).run(PLAN))
    assert rig.illumination.told == 2


def test_opaque_places_are_kept(tmp_path):
    slide = np.full((600, 800, 3), 240, np.uint8)
    slide[100:500, 250:700] = 2
    config, rig = rig_of(picture(tmp_path / "label.png", slide))
    tiles = list(Acquirer(rig, config, light_lost=pytest.fail).run(PLAN))
    assert {tile.verdict for tile in tiles} <= {Verdict.BLANK, Verdict.ACCEPTED}
    assert sum(tile.pixels.mean() < 10 for tile in tiles) >= 1
    config, rig = rig_of(picture(tmp_path / "black.png", np.zeros((600, 800, 3), np.uint8)))
    assert len(list(Acquirer(rig, config, light_lost=pytest.fail).run(PLAN))) == len(PLAN), "nothing bright is known"

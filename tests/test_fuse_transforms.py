"""Fusion of known transforms: exact where it can be, close to the truth where it cannot, and never chunk-dependent."""

import dask.array as da
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from edge_scanner.errors import ScannerError, SourceError, UsageError
from edge_scanner.fuse import canvas, fuse
from edge_scanner.fuse.volume import positions, sample

BLENDS = ("linear", "max", "mean", "first", "seam")


def shift(x, y):
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], float)


def turned(degrees, x, y, scale=1.0):
    c, s = scale * np.cos(np.deg2rad(degrees)), scale * np.sin(np.deg2rad(degrees))
    return np.array([[c, -s, x], [s, c, y], [0, 0, 1]])


def smooth(shape, seed=0, sigma=2.0):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), sigma)
    return (noise - noise.min()) / np.ptp(noise) * 230 + 10


@st.composite
def cut_images(draw):
    """An image, and tiles cut out of it that cover it or parts of it."""
    height, width = draw(st.integers(1, 90)), draw(st.integers(1, 90))
    channels = draw(st.sampled_from([None, 1, 3, 5]))
    dtype = draw(st.sampled_from([np.uint8, np.uint16, np.float32]))
    shape = (height, width) if channels is None else (height, width, channels)
    image = np.random.default_rng(draw(st.integers(0, 99))).integers(1, 255, shape).astype(dtype)
    th, tw = draw(st.integers(1, height)), draw(st.integers(1, width))
    places = draw(st.lists(st.tuples(st.integers(0, height - th), st.integers(0, width - tw)), min_size=1, max_size=6))
    return image, (th, tw), places, draw(st.integers(1, 100)), draw(st.sampled_from(BLENDS))


@settings(deadline=None, max_examples=30)
@given(cut_images())
def test_whole_pixel_shifts_are_exact(case):
    image, (th, tw), places, chunk, blend = case
    origin = (1000, -50)
    tiles = [image[y : y + th, x : x + tw] for y, x in places]
    transforms = [shift(x + origin[1], y + origin[0]) for y, x in places]
    fused = fuse(tiles, transforms, chunk=chunk, blend=blend)
    y0, x0 = (min(p[k] for p in places) for k in (0, 1))
    assert canvas(tiles, transforms) == (y0 + origin[0], x0 + origin[1])
    expected = np.zeros_like(image)
    for y, x in places:
        expected[y : y + th, x : x + tw] = image[y : y + th, x : x + tw]
    expected = expected[y0 : max(y for y, _ in places) + th, x0 : max(x for _, x in places) + tw]
    assert fused.dtype == image.dtype
    assert fused.chunksize[:2] == tuple(min(chunk, n) for n in fused.shape[:2])
    assert fused.shape == expected.shape
    got = fused.compute(scheduler="synchronous")
    if image.dtype == np.float32:
        np.testing.assert_allclose(got, expected, rtol=1e-6)
    else:
        np.testing.assert_array_equal(got, expected)


@settings(deadline=None, max_examples=30)
@given(
    st.floats(0, 360), st.floats(0.5, 2), st.integers(1, 60), st.sampled_from(BLENDS),
    st.sampled_from([np.uint8, np.uint16, np.float32]), st.sampled_from([None, 3]), st.integers(7, 200),
)  # fmt: skip
def test_a_constant_image_stays_constant(degrees, scale, step, blend, dtype, channels, chunk):
    value = {np.uint8: 255, np.uint16: 54321, np.float32: np.float32(0.7)}[dtype]
    tiles = [np.full((40, 50) if channels is None else (40, 50, channels), value, dtype)] * 4
    transforms = [turned(degrees, step * k, 0.3 * step * (k % 2), scale) for k in range(4)]
    got = fuse(tiles, transforms, chunk=chunk, blend=blend, fill=3).compute(scheduler="synchronous")
    assert set(np.unique(got)) <= {dtype(3), dtype(value)}
    assert (got == value).mean() > 0.1


@pytest.mark.parametrize("blend", BLENDS)
def test_chunks_do_not_show(blend):
    rng = np.random.default_rng(1)
    tiles = [rng.integers(0, 256, (90, 100, 3), dtype=np.uint8) for _ in range(6)]
    transforms = [turned(3 + k, 50.3 * k, 40 * (k % 2) + 0.7) for k in range(5)] + [shift(20.4, 30.6)]
    whole = fuse(tiles, transforms, chunk=10_000, blend=blend).compute()
    for chunk in (31, 64, (17, 90)):
        assert np.array_equal(whole, fuse(tiles, transforms, chunk=chunk, blend=blend).compute())


@pytest.mark.parametrize("degrees", [3.0, 47.0, 90.0, 180.0])
def test_turned_tiles_show_the_truth(degrees):
    truth = smooth((260, 260))
    tiles, transforms = [], []
    for x, y in ((90, 60), (150, 70), (100, 110), (150, 120)):
        m = turned(degrees, x, y) @ shift(-40, -40)
        v, u = np.mgrid[:80, :80].astype(float)
        at = m @ np.stack([u, v, np.ones_like(u)]).reshape(3, -1)
        tiles.append(np.rint(ndimage.map_coordinates(truth, [at[1], at[0]], order=5)).reshape(80, 80).astype(np.uint8))
        transforms.append(m)
    y0, x0 = canvas(tiles, transforms)
    got = fuse(tiles, transforms, chunk=64).compute().astype(float)
    expected = truth[y0 : y0 + got.shape[0], x0 : x0 + got.shape[1]]
    inside = ndimage.binary_erosion(got > 0, iterations=4)
    error = (got - expected)[inside]
    assert inside.sum() > 8000
    assert 10 * np.log10(255**2 / np.mean(error**2)) > 50
    assert (got[~ndimage.binary_dilation(got > 0, iterations=2)] == 0).all()


def test_perspective_is_followed():
    truth = smooth((200, 200), 3)
    m = np.array([[1.1, 0.05, 30.5], [0.02, 0.95, 25.25], [4e-4, -2e-4, 1.0]])
    v, u = np.mgrid[:100, :120].astype(float)
    x, y, w = m @ np.stack([u, v, np.ones_like(u)]).reshape(3, -1)
    tile = np.rint(ndimage.map_coordinates(truth, [y / w, x / w], order=5)).reshape(100, 120).astype(np.uint8)
    y0, x0 = canvas([tile], [m])
    got = fuse([tile], [5 * m], chunk=50).compute().astype(float)
    inside = ndimage.binary_erosion(got > 0, iterations=4)
    error = (got - truth[y0 : y0 + got.shape[0], x0 : x0 + got.shape[1]])[inside]
    assert inside.sum() > 5000
    assert np.abs(error).max() < 3


def test_blends_do_what_they_say():
    low, high = np.full((40, 40), 100, np.uint8), np.full((40, 40), 200, np.uint8)
    transforms = [shift(0, 0), shift(20, 0)]
    row = {b: fuse([low, high], transforms, chunk=64, blend=b).compute()[20].astype(int) for b in BLENDS}
    assert set(row["max"][20:40]) == {200}
    assert set(row["mean"][20:40]) == {150}
    assert set(row["first"][20:40]) == {100}
    steps = np.diff(row["linear"][19:41])
    assert steps.min() > 0
    assert steps.max() <= 6
    assert 2 <= np.unique(row["seam"][20:40]).size <= 12
    assert row["seam"][21] == 100
    assert row["seam"][38] == 200


def test_dtype_is_rounded_and_clipped():
    tile = np.array([[-3.0, 1.4, 1.6, 300.0]], np.float32)
    assert fuse([tile], [np.eye(3)], chunk=8, dtype=np.uint8).compute().tolist() == [[0, 1, 2, 255]]


def test_floats_of_integer_tiles_are_not_rounded():
    tiles = [np.full((40, 40), 100, np.uint8), np.full((40, 40), 103, np.uint8)]
    row = fuse(tiles, [shift(0, 0), shift(20, 0)], chunk=64, dtype=np.float32).compute()[20, 20:40]
    assert np.unique(row).size == 20
    assert (np.diff(row) > 0).all()


def test_labels_take_the_nearest_pixel():
    tile = np.random.default_rng(0).choice([0, 7, 200], (60, 60)).astype(np.uint8)
    got = fuse([tile], [turned(20, 30, 5)], chunk=32, order=0).compute()
    assert set(np.unique(got)) <= {0, 7, 200}


def test_volumes_fuse_exactly_at_whole_voxels_and_closely_between():
    truth = smooth((12, 40, 60), 5, 1.5)
    image = truth.astype(np.uint16)
    whole = [np.eye(4), np.eye(4)]
    whole[1][:3, 3] = (20, 8, 3)
    tiles = [image[:9, :32, :40], image[3:, 8:, 20:]]
    got = fuse(tiles, whole, chunk=(5, 16, 32)).compute()
    expected = image.copy()
    expected[9:, :8], expected[9:, 8:, :20], expected[:3, 32:], expected[:3, :, 40:] = 0, 0, 0, 0
    expected[3:9, 32:, :20], expected[3:9, :8, 40:] = 0, 0
    assert got.shape == image.shape
    covered = got > 0
    assert covered.mean() > 0.5
    assert np.array_equal(got[covered], image[covered])
    assert covered[:9, :32, :40].all()
    assert covered[3:, 8:, 20:].all()
    between = np.eye(4)
    between[:3, 3] = (0.5, 0.25, 0)
    moved = fuse([truth.astype(np.float32)], [between], chunk=20).compute()
    spline = ndimage.shift(truth, (0, 0.25, 0.5), order=5)
    inner = (slice(2, -2), slice(3, 36), slice(3, 56))
    assert np.abs(moved[inner] - spline[inner]).max() < 2


BAD = {
    "nan": lambda m: np.where(np.eye(3) > 0, np.nan, m),
    "singular": lambda m: np.zeros((3, 3)),
    "flat": lambda m: np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1.0]]),
    "folding": lambda m: np.array([[1, 0, 0], [0, 1, 0], [-0.1, 0, 1.0]]),
    "2 x 3": lambda m: m[:2],
    "words": lambda m: [["a"] * 3] * 3,
    "far": lambda m: m + np.array([[0, 0, 1e7], [0, 0, 0], [0, 0, 0]]),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_transforms_are_named(kind):
    tiles = [np.zeros((20, 20), np.uint8)] * 2
    with pytest.raises(ScannerError, match=r"tile 1|canvas"):
        fuse(tiles, [np.eye(3), BAD[kind](np.eye(3))], chunk=8)


def test_bad_tiles_are_named(tmp_path):
    good = np.zeros((20, 20), np.uint8)
    for other in (np.zeros((20, 21), np.uint8), np.zeros((20, 20), np.uint16), np.zeros((20, 20, 3), np.uint8)):
        with pytest.raises(SourceError, match="others are"):
            fuse([good, other], [np.eye(3)] * 2, chunk=8)
    with pytest.raises(SourceError, match="is missing"):
        fuse([tmp_path / "none.tif"], [np.eye(3)], chunk=8)
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(SourceError, match="cannot be read"):
        fuse([tmp_path / "cut.png"], [np.eye(3)], chunk=8)
    with pytest.raises(SourceError, match="int64"):
        fuse([np.zeros((20, 20), np.int64)], [np.eye(3)], chunk=8)
    with pytest.raises(SourceError, match="no tiles"):
        fuse([], [], chunk=8)
    with pytest.raises(SourceError, match="2 transforms for 1"):
        fuse([good], [np.eye(3)] * 2, chunk=8)
    with pytest.raises(UsageError):
        fuse([good], [np.eye(3)], chunk=0)
    with pytest.raises(UsageError):
        fuse([good], [np.eye(3)], blend="none")


def affine_transform(image, matrix, offset, output_shape, output_chunks, order):
    """Adapt the plain gather to dask-image's function of that name, in constant mode."""
    axes = image.ndim
    inverse = np.eye(axes + 1)
    inverse[:axes, :axes], inverse[:axes, axes] = matrix, offset

    def block(block_info=None):
        start, shape = zip(*((a, b - a) for a, b in block_info[None]["array-location"]), strict=True)
        return sample(image[..., None], positions(inverse, start, shape), order, margin=0.0)[0][..., 0]

    chunks = da.core.normalize_chunks(output_chunks, output_shape)
    return da.map_blocks(block, chunks=chunks, dtype=float, meta=np.empty((0,) * axes))


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("axes", [1, 2, 3])
@given(
    seed=st.integers(0, 10_000),
    sides=st.sampled_from([(16, 16), (25, 25), (20, 30), (25, 10)]),
    chunk=st.sampled_from([6, 7, 10, 16]),
)
@settings(deadline=None, max_examples=10)
def test_the_plain_gather_is_scipys_affine_transform(axes, order, seed, sides, chunk):
    """The cases of dask-image's own tests of its affine transform: random matrices far from unity, constant mode."""
    rng = np.random.default_rng(seed)
    image = rng.random((sides[0],) * axes)
    matrix = np.eye(axes) + (rng.random((axes, axes)) - 0.5) * 5
    offset = (rng.random(axes) - 0.5) / 5 * sides[0]
    shape = (sides[1],) * axes
    expected = ndimage.affine_transform(image, matrix, offset, output_shape=shape, order=order, prefilter=False)
    got = affine_transform(image, matrix, offset, shape, (chunk,) * axes, order)
    assert np.allclose(got.compute(scheduler="synchronous"), expected)

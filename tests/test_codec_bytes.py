"""The bytes of a chunk: lossless where they must be, read by independent decoders, and never silently wrong."""

import gzip
import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge_scanner.config import parse
from edge_scanner.errors import StoreError
from edge_scanner.store.codec import Codec, Gzip, Jpeg, Uncompressed, Zstd, from_zarr, gzip_to_zlib, make_codec

LOSSLESS = [Gzip(0), Gzip(1), Gzip(12), Zstd(1), Zstd(9), Uncompressed()]
shapes = st.one_of(
    st.tuples(st.integers(1, 24), st.integers(1, 24)),
    st.tuples(st.integers(1, 24), st.integers(1, 24), st.just(3)),
)
pixels = st.sampled_from([np.uint8, np.uint16]).flatmap(lambda dtype: hnp.arrays(dtype, shapes))


def smooth(height: int = 64, width: int = 64) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([128 + 100 * np.sin(y / 17), 128 + 100 * np.cos(x / 23), 60 + x + y], -1).clip(0, 255).astype("u1")


@pytest.mark.parametrize("codec", LOSSLESS, ids=repr)
@settings(deadline=None)
@given(pixels=pixels)
def test_lossless_codecs_give_back_the_pixels(codec: Codec, pixels: np.ndarray) -> None:
    decoded = codec.decode(codec.encode(pixels), pixels.shape, pixels.dtype)
    assert decoded.dtype == pixels.dtype
    np.testing.assert_array_equal(decoded, pixels)


@settings(deadline=None)
@given(pixels=pixels, level=st.integers(0, 12))
def test_python_reads_our_gzip_and_the_swapped_zlib(pixels: np.ndarray, level: int) -> None:
    plain = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    data = Gzip(level).encode(pixels)
    swapped = gzip_to_zlib(data)
    assert gzip.decompress(data) == plain
    assert zlib.decompress(swapped) == plain
    assert int.from_bytes(swapped[-4:], "big") == zlib.adler32(plain)
    assert int.from_bytes(swapped[:2], "big") % 31 == 0, "the zlib header's own check"
    assert swapped[2:-4] == data[20:-8], "the deflate stream is copied, not made anew"


@settings(deadline=None)
@given(cut=st.integers(0, 40))
def test_a_foreign_or_cut_gzip_is_not_swapped(cut: int) -> None:
    foreign = gzip.compress(bytes(1000))
    with pytest.raises(StoreError):
        gzip_to_zlib(foreign)
    short = Gzip().encode(np.zeros((8, 8), np.uint8))[:cut]
    if len(short) < 28:
        with pytest.raises(StoreError):
            gzip_to_zlib(short)


@pytest.mark.parametrize("codec", [*LOSSLESS, Jpeg()], ids=repr)
def test_a_truncated_chunk_is_an_error(codec: Codec) -> None:
    data = codec.encode(smooth())
    for length in (0, 1, 10, 25, len(data) // 4, len(data) - 100, len(data) - 3, len(data) - 1):
        with pytest.raises(StoreError):
            codec.decode(data[:length], (64, 64, 3), np.uint8)


@pytest.mark.parametrize("codec", [*LOSSLESS, Jpeg()], ids=repr)
@pytest.mark.parametrize("shape", [(64, 65, 3), (63, 64, 3), (64, 64)])
def test_a_chunk_of_another_size_is_an_error(codec: Codec, shape: tuple[int, ...]) -> None:
    with pytest.raises(StoreError):
        codec.decode(codec.encode(smooth()), shape, np.uint8)


@settings(deadline=None)
@given(data=st.data())
def test_a_flipped_bit_in_the_deflate_stream_never_gives_wrong_pixels(data: st.DataObject) -> None:
    original = smooth()
    encoded = bytearray(Gzip().encode(original))
    at = data.draw(st.integers(20, len(encoded) - 1))
    encoded[at] ^= 1 << data.draw(st.integers(0, 7))
    try:
        decoded = Gzip().decode(bytes(encoded), original.shape, np.uint8)
    except StoreError:
        return
    np.testing.assert_array_equal(decoded, original)


@pytest.mark.parametrize(
    ("subsampling", "factors"), [("444", (0x11, 0x11, 0x11)), ("422", (0x21, 0x11, 0x11)), ("420", (0x22, 0x11, 0x11))]
)
def test_jpeg_is_baseline_jfif_ycbcr_and_read_by_opencv(subsampling: str, factors: tuple[int, ...]) -> None:
    original = smooth()
    data = Jpeg(95, subsampling).encode(original)
    assert data[6:11] == b"JFIF\0"
    frame = data.index(b"\xff\xc0")
    precision, height, width, components = struct.unpack(">BHHB", data[frame + 4 : frame + 10])
    assert (precision, height, width, components) == (8, 64, 64, 3)
    assert tuple(data[frame + 11 + 3 * k] for k in range(3)) == factors
    peer = cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    ours = Jpeg(95, subsampling).decode(data, original.shape, np.uint8)
    np.testing.assert_allclose(ours.astype(int), peer.astype(int), atol=3)
    np.testing.assert_allclose(ours.astype(int), original.astype(int), atol=12)


def test_jpeg_quality_counts() -> None:
    sizes = [len(Jpeg(quality, "444").encode(smooth())) for quality in (30, 60, 90, 100)]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) == 4


@pytest.mark.parametrize("bad", [np.zeros((8, 8, 3), np.uint16), np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), "u1")])
def test_jpeg_refuses_what_is_not_8_bit_rgb(bad: np.ndarray) -> None:
    with pytest.raises(StoreError, match="JPEG cannot store"):
        Jpeg().encode(bad)


@pytest.mark.parametrize(("quality", "subsampling"), [(0, "444"), (101, "444"), (90, "411")])
def test_jpeg_refuses_impossible_settings(quality: int, subsampling: str) -> None:
    with pytest.raises(StoreError):
        Jpeg(quality, subsampling)


@pytest.mark.parametrize("codec", [Jpeg(77, "420"), Gzip(5), Zstd(3), Uncompressed()], ids=repr)
def test_the_zarr_metadata_gives_back_the_codec(codec: Codec) -> None:
    assert from_zarr(codec.zarr_codecs()) == codec


@pytest.mark.parametrize("codecs", [[], [{}], [{"name": "blosc"}], [{"name": "jpeg"}], [3]])
def test_unknown_codecs_are_an_error(codecs: list) -> None:
    with pytest.raises(StoreError):
        from_zarr(codecs)


@pytest.mark.parametrize(
    ("settings", "codec"),
    [
        ({}, Jpeg(90, "422")),
        ({"mosaic": {"quality": 70, "subsampling": "444"}}, Jpeg(70, "444")),
        ({"camera": {"bits": 16}}, Gzip(1)),
        ({"mosaic": {"codec": "gzip", "gzip_level": 6}}, Gzip(6)),
        ({"mosaic": {"codec": "zstd", "zstd_level": 4}}, Zstd(4)),
        ({"mosaic": {"codec": "none"}}, Uncompressed()),
    ],
)
def test_the_configuration_chooses_the_codec(settings: dict, codec: Codec) -> None:
    assert make_codec(parse(settings)) == codec

"""Tiles with known transforms in, a lazy Dask array out."""

from __future__ import annotations

from collections.abc import Sequence

import dask
import dask.array as da
import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from edge_scanner.errors import UsageError
from edge_scanner.fuse.fusion import FEATHER_PX, Fusion, Look
from edge_scanner.fuse.tiles import DTYPES, AnyTile, TileReader, common_shape
from edge_scanner.fuse.transforms import canvas_of, checked
from edge_scanner.fuse.volume import Order
from edge_scanner.mosaic.kernel import Blend
from edge_scanner.tile import Pixels

CACHE_MB = 128.0
BLENDS = ("linear", "max", "mean", "first", "seam")


def fuse(
    tiles: Sequence[AnyTile],
    transforms: Sequence[ArrayLike],
    *,
    chunk: int | Sequence[int] = 512,
    blend: Blend = "linear",
    dtype: DTypeLike | None = None,
    fill: float = 0,
    feather_px: int = FEATHER_PX,
    order: Order = 3,
    cache_mb: float = CACHE_MB,
) -> da.Array:
    """Fuse tiles whose places are known into one lazy image.

    A tile that is only shifted is copied (whole pixels) or moved by a separable cubic filter; others are interpolated
    by Lanczos' kernel, volumes by a cubic one. Overlaps are blended by weights that depend on geometry only.

    Parameters
    ----------
    tiles : sequence
        Paths, or arrays (y, x[, c]); with 4 x 4 transforms (z, y, x[, c]). All of one shape; uint8, uint16 or float32.
    transforms : sequence of array_like
        3 x 3 on (x, y, 1), or 4 x 4 on (x, y, z, 1): tile to mosaic, pixel centres at integers.
    chunk : int or sequence of int
        Pixels along y and x (and z), or one for all axes.
    blend : str
        `linear`, `max`, `mean`, `first` or `seam`.
    dtype : dtype, optional
        Of the result; rounded and clipped. The tiles' own by default.
    fill : float
        Value of pixels that no tile covers.
    feather_px : int
        Longest ramp of `linear`.
    order : int
        0 takes the nearest pixel (labels), 1 interpolates linearly, 3 is the best there is.
    cache_mb : float
        Tiles that each process keeps in memory. Dask computes chunks row by row: with room for two rows of tiles, each
        is read at most 1.5 times; with less, small chunks read it as many times as rows of them cross it. The command
        `edge-scanner fuse` orders its work so that less is enough.

    Returns
    -------
    dask.array.Array
        (y, x[, c]) or (z, y, x[, c]). It runs from the floor of the smallest to the ceiling of the largest transformed
        pixel centre; `canvas` tells where that is.

    Raises
    ------
    SourceError
        Tiles that are missing or not alike, transforms that are not usable, positions in another unit.
    UsageError
        A chunk, a blend or a type that does not exist.
    """
    made = prepare(tiles, transforms, blend=blend, dtype=dtype, fill=fill, feather_px=feather_px, order=order,
                   cache_mb=cache_mb)  # fmt: skip
    return as_dask(made, chunk)


def prepare(
    tiles: Sequence[AnyTile],
    transforms: Sequence[ArrayLike],
    *,
    blend: Blend = "linear",
    dtype: DTypeLike | None = None,
    fill: float = 0,
    feather_px: int = FEATHER_PX,
    order: Order = 3,
    cache_mb: float = CACHE_MB,
    gains: Sequence[float] | None = None,
) -> Fusion:
    """Check tiles and transforms and return what makes blocks of them; see `fuse` and `Fusion`."""
    if blend not in BLENDS or order not in (0, 1, 3) or feather_px < 1:
        raise UsageError(
            f"There is no blend {blend!r} of order {order}.", f"Blends: {', '.join(BLENDS)}; orders 0 1 3."
        )
    kind = None if dtype is None else np.dtype(dtype)
    if kind is not None and kind.name not in DTYPES:
        raise UsageError(f"Mosaics of type {kind} are not made.", f"Use one of {', '.join(DTYPES)}.")
    shape = common_shape(tiles)
    axes = 3 if len(transforms) and np.shape(transforms[0]) == (4, 4) else 2
    if not axes <= len(shape.shape) <= axes + 1:
        raise UsageError(f"Tiles of {shape} do not go with transforms of {axes} axes.", "Use 3 x 3 for images.")
    extent = shape.shape[:axes][::-1]
    matrices = checked(transforms, len(tiles), axes, extent)
    look = Look(blend, kind or shape.dtype, fill, feather_px, order)
    reader = TileReader(tiles, shape, int(cache_mb * 1e6))
    return Fusion(reader, shape, matrices, canvas_of(matrices, extent), look, gains=gains)


def canvas(tiles: Sequence[AnyTile], transforms: Sequence[ArrayLike]) -> tuple[int, ...]:
    """Return the mosaic coordinates of the first pixel of what `fuse` returns, in array order (y, x) or (z, y, x)."""
    return prepare(tiles, transforms).start


def as_dask(fusion: Fusion, chunk: int | Sequence[int]) -> da.Array:
    """Return the whole canvas as a dask array in chunks of exactly `chunk`."""
    sides = (int(chunk),) * fusion.axes if isinstance(chunk, int | np.integer) else tuple(int(side) for side in chunk)
    if len(sides) != fusion.axes or min(sides) < 1:
        raise UsageError(f"A chunk of {chunk} does not fit {fusion.axes} axes.", "Give whole numbers of pixels.")
    chunks = tuple(
        (side,) * (extent // side) + ((extent % side,) if extent % side else ())
        for side, extent in zip(sides, fusion.extent, strict=True)
    )
    if fusion.channels is not None:
        chunks = (*chunks, (fusion.channels,))
    shared = dask.delayed(fusion, pure=False)
    meta = np.empty((0,) * len(chunks), fusion.look.dtype)
    return da.map_blocks(_block, shared, sides, chunks=chunks, dtype=fusion.look.dtype, meta=meta)


def _block(fusion: Fusion, sides: tuple[int, ...], block_id: tuple[int, ...] | None = None) -> Pixels:
    assert block_id is not None
    start = [number * side for number, side in zip(block_id, sides, strict=False)]
    shape = [min(side, extent - s) for s, side, extent in zip(start, sides, fusion.extent, strict=True)]
    return fusion.filled(start, shape)

"""The draft Zarr v3 codec `jpeg`, found by zarr-python through the entry-point group `zarr.codecs`."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from zarr.abc.codec import ArrayBytesCodec
from zarr.core.buffer import Buffer, NDBuffer

from edge_scanner.store.codec import Jpeg


@dataclass(frozen=True)
class JpegCodec(ArrayBytesCodec):  # type: ignore[misc]
    """One (y, x, 3) uint8 array as one JPEG stream.

    Parameters
    ----------
    quality : int
        1 to 100; for writing.
    subsampling : str
        Chroma, `444`, `422` or `420`; for writing.
    """

    is_fixed_size = False

    quality: int = 90
    subsampling: str = "422"

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Read the codec's metadata."""
        return cls(**data.get("configuration", {}))

    def to_dict(self) -> dict[str, Any]:
        """Return the codec's metadata."""
        return Jpeg(self.quality, self.subsampling).zarr_codecs()[0]

    def validate(self, *, shape: tuple[int, ...], dtype: Any, chunk_grid: Any) -> None:  # noqa: ARG002
        """Refuse arrays that a JPEG cannot hold."""
        if len(shape) != 3 or shape[2] != 3 or dtype.to_native_dtype() != np.uint8:
            raise ValueError(f"jpeg stores uint8 arrays of shape (y, x, 3), not {dtype} of shape {shape}")

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: Any) -> NDBuffer:
        return await asyncio.to_thread(self._decode_sync, chunk_bytes, chunk_spec)

    async def _encode_single(self, chunk_array: NDBuffer, chunk_spec: Any) -> Buffer | None:
        return await asyncio.to_thread(self._encode_sync, chunk_array, chunk_spec)

    def _decode_sync(self, chunk_bytes: Buffer, chunk_spec: Any) -> NDBuffer:
        codec = Jpeg(self.quality, self.subsampling)
        pixels = codec.decode(chunk_bytes.to_bytes(), chunk_spec.shape, np.uint8)
        return chunk_spec.prototype.nd_buffer.from_ndarray_like(pixels)

    def _encode_sync(self, chunk_array: NDBuffer, chunk_spec: Any) -> Buffer | None:
        codec = Jpeg(self.quality, self.subsampling)
        return chunk_spec.prototype.buffer.from_bytes(codec.encode(np.ascontiguousarray(chunk_array.as_numpy_array())))

    def compute_encoded_size(self, _input_byte_length: int, _chunk_spec: Any) -> int:
        """Refuse: a JPEG's size is not known beforehand."""
        raise NotImplementedError

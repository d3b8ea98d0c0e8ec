"""The sRGB colour profile, built from the numbers of IEC 61966-2-1 instead of shipped as a file."""

from __future__ import annotations

import struct
from collections.abc import Sequence

_D50 = (0.9642, 1.0, 0.82491)
_RED, _GREEN, _BLUE = (0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.7141)
_BRADFORD_D65_TO_D50 = (1.04788, 0.02292, -0.05022, 0.02959, 0.99048, -0.01707, -0.00925, 0.01508, 0.75168)
_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
_NO_DATE = (2000, 1, 1, 0, 0, 0)


def srgb_profile() -> bytes:
    """Return an ICC version 4 display profile of sRGB (about 500 bytes, the same every time)."""
    curve = b"para" + bytes(4) + struct.pack(">HH", 3, 0) + _fixed(_CURVE)
    elements = {
        b"desc": _text("sRGB"),
        b"cprt": _text("No copyright, use freely"),
        b"wtpt": _xyz(_D50),
        b"chad": b"sf32" + bytes(4) + _fixed(_BRADFORD_D65_TO_D50),
        b"rXYZ": _xyz(_RED),
        b"gXYZ": _xyz(_GREEN),
        b"bXYZ": _xyz(_BLUE),
        b"rTRC": curve,
        b"gTRC": curve,
        b"bTRC": curve,
    }
    start = 128 + 4 + 12 * len(elements)
    data, table, places = b"", struct.pack(">I", len(elements)), dict[bytes, int]()
    for signature, element in elements.items():
        if element not in places:
            places[element] = start + len(data)
            data += element + bytes(-len(element) % 4)
        table += struct.pack(">4sII", signature, places[element], len(element))
    return _header(start + len(data)) + table + data


def _header(size: int) -> bytes:
    kind = struct.pack(">I4sI4s4s4s", size, bytes(4), 0x04300000, b"mntr", b"RGB ", b"XYZ ")
    return (kind + struct.pack(">6H4s", *_NO_DATE, b"acsp") + bytes(28) + _fixed(_D50)).ljust(128, b"\0")


def _fixed(values: Sequence[float]) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(v * 65536) for v in values))


def _xyz(values: Sequence[float]) -> bytes:
    return b"XYZ " + bytes(4) + _fixed(values)


def _text(text: str) -> bytes:
    data = text.encode("utf-16-be")
    return b"mluc" + bytes(4) + struct.pack(">II4sII", 1, 12, b"enUS", len(data), 28) + data

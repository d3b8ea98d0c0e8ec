"""Small files of measured numbers: JSON with a checksum, written whole or not at all, refused when damaged."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_scanner.errors import SourceError, StoreError

FORMAT = 1


def write_sealed(path: Path, what: str, told: Mapping[str, Any]) -> None:
    """Write a file whole or not at all.

    Parameters
    ----------
    path : Path
    what : str
        What it is, for the error.
    told : mapping
        Plain JSON values.

    Raises
    ------
    StoreError
    """
    whole = {"format": FORMAT, **told}
    text = json.dumps({**whole, "sha256": _checksum(whole)}, indent=2) + "\n"
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise StoreError(f"The {what} {path} cannot be written ({error.strerror}).") from error


def read_sealed(path: Path, what: str, advice: str) -> dict[str, Any]:
    """Return what `write_sealed` was told.

    Raises
    ------
    SourceError
        When the file is missing, unreadable or damaged.
    """
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SourceError(f"There is no {what} {path}.", advice) from error
    except (OSError, ValueError) as error:
        raise SourceError(f"The {what} {path} cannot be read ({error}).", advice) from error
    if not isinstance(told, dict) or told.pop("sha256", None) != _checksum(told) or told.pop("format", None) != FORMAT:
        raise SourceError(f"The {what} {path} is damaged: its checksum does not fit.", advice)
    return told


def _checksum(told: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

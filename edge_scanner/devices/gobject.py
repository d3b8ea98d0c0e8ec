"""Libraries that speak through GObject introspection (Aravis, GStreamer), which distributions ship."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

DEBIAN = Path("/usr/lib/python3/dist-packages")
"""Where Debian and Ubuntu put PyGObject; a virtual environment does not look there."""


def library(name: str, version: str, packages: str) -> Any:
    """Return a library as a module of `gi.repository`.

    Parameters
    ----------
    name, version : str
        Of the namespace.
    packages : str
        Names of the Debian packages that bring it.

    Raises
    ------
    ImportError
        When it is not installed, or not for this version of Python.
    """
    try:
        gi = _gi()
        gi.require_version(name, version)
        return importlib.import_module(f"gi.repository.{name}")
    except (ImportError, ValueError) as error:
        raise ImportError(f"{name} {version} is not here: {error}; on Debian: apt install {packages}") from error


def _gi() -> Any:
    """Import PyGObject from where it is, the distribution's last."""
    sys.path.append(str(DEBIAN))
    try:
        return importlib.import_module("gi")
    finally:
        sys.path.remove(str(DEBIAN))

"""Fixtures that several files share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of real slides; tests that need it are skipped, and say so, without it."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("EDGE_SCANNER_DATA", beside))
    if not folder.is_dir():
        pytest.skip("the real slides (../shared/data or EDGE_SCANNER_DATA) are not here")
    return folder


settings.register_profile("project", deadline=None, max_examples=50)
settings.load_profile("project")

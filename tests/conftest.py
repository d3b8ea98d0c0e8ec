"""Fixtures that several files share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of real slides; tests that need it are skipped, and say so, without it."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("EDGE_SCANNER_DATA", beside))
    if not folder.is_dir():
        pytest.skip("the real slides (../shared/data or EDGE_SCANNER_DATA) are not here")
    return folder


@pytest.fixture
def resident_memory() -> None:
    """Skip where the kernel tells an emulator's memory, not the program's."""
    if Path("/proc/self/stat").read_text(encoding="ascii").split()[23] == "0":
        pytest.skip("an emulator of processors tells no resident memory")


NO_CLOCK = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}  # a busy machine is no fault
# A change is judged on the same examples each time: what it breaks, not what chance finds in it. Chance has its own
# run: pytest --hypothesis-profile=explore.
settings.register_profile("project", max_examples=50, derandomize=True, **NO_CLOCK)
settings.register_profile("explore", max_examples=50, derandomize=False, **NO_CLOCK)
settings.load_profile("project")

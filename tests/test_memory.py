"""The start-up check of memory: what bounds it, what is refused, what is only doubted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edge_scanner import config as configs
from edge_scanner.errors import ConfigError
from edge_scanner.focus.model import engine_bytes
from edge_scanner.memory import SERVICE, memory_limit
from edge_scanner.scanner.budget import Budget

MIB = 1 << 20
TOTAL = 8192 * MIB
NO_LIMIT = 9223372036854771712


def machine(root: Path, group: str, *, available: int = TOTAL, **limits: object) -> Path:
    files = {
        "proc/meminfo": f"MemTotal: {TOTAL >> 10} kB\nMemFree: 1 kB\nMemAvailable: {available >> 10} kB\n",
        "proc/self/cgroup": group,
        **{f"sys/fs/cgroup/{name}": f"{text}\n" for name, text in limits.items()},
    }
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


V1 = "12:cpu,cpuacct:/x\n7:memory:/a/b\n1:name=systemd:/s\n0::/u\n"


@pytest.mark.parametrize(
    ("group", "limits", "bound", "by"),
    [
        ("0::/\n", {}, TOTAL, "machine"),
        ("0::/a/b\n", {"a/memory.max": 3 * MIB, "a/b/memory.max": "max"}, 3 * MIB, "group a"),
        ("0::/a/b\n", {"a/memory.max": 3 * MIB, "a/b/memory.max": 2 * MIB}, 2 * MIB, "group b"),
        ("0::/\n", {"memory.max": 5 * MIB}, 5 * MIB, "group /"),  # a container's own root
        (V1, {"memory/a/memory.limit_in_bytes": 4 * MIB, "memory/a/b/memory.limit_in_bytes": NO_LIMIT}, 4 * MIB, "a"),
        (V1, {"memory/a/b/memory.limit_in_bytes": NO_LIMIT, "x/memory.max": 1}, TOTAL, "machine"),
        ("0::/user.slice\n", {f"{SERVICE}/memory.max": 6 * MIB}, 6 * MIB, "edge-scanner.service"),
        ("0::/user.slice\n", {f"{SERVICE}/memory.max": 16 * TOTAL}, TOTAL, "machine"),
    ],
)
def test_the_tightest_limit_counts(tmp_path: Path, group: str, limits: dict[str, object], bound: int, by: str) -> None:
    root = machine(tmp_path, group, **limits)
    limit, said = memory_limit(root, SERVICE)
    assert limit == bound
    assert by in said
    if SERVICE not in group and any(SERVICE in name for name in limits):
        assert memory_limit(root)[0] == TOTAL, "a daemon that somebody runs by hand is not in the service's group"


def test_here_the_limit_is_known() -> None:
    limit, said = memory_limit()
    assert limit > 64 * MIB
    assert said


def test_buffers_beyond_the_limit_are_refused_and_the_engine_is_doubted(tmp_path: Path) -> None:
    config = configs.load(None, ["focus.mode=off"])
    needed = Budget.of(config, machine(tmp_path, "0::/\n")).buffers
    assert 256e6 < needed < 700e6

    def budget(limit: int, engine: int, available: int = TOTAL) -> Budget:
        return Budget(needed, engine, limit, "something", available)

    assert budget(needed, 0).doubt() is None
    assert "of 8192 MiB, the machine's memory" in Budget.of(config, tmp_path).check()
    with pytest.raises(ConfigError, match="something is") as refused:
        budget(needed - 1, 0).check()
    assert "scan.buffer_mb" in refused.value.advice
    assert "MemoryMax" in refused.value.advice
    tight = budget(needed + 99, 100)
    assert "for the focus network" in tight.check()
    assert "focus network need about" in str(tight.doubt())
    assert budget(needed + 100, 100).doubt() is None
    assert "available" in str(budget(needed, 0, needed - 1).doubt())


def test_the_network_counts_only_where_it_is_used(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="learned focus needs the extra [cpu]")
    root = machine(tmp_path, "0::/\n")
    assert Budget.of(configs.load(None, ["focus.mode=classical"]), root).engine == 0
    model = Budget.of(configs.load(None, ["focus.mode=model", 'focus.providers=["cpu"]']), root)
    assert model.engine == engine_bytes(["cpu"]) > 0
    assert engine_bytes(["tensorrt", "cuda", "cpu"]) >= engine_bytes(["cpu"])


GROWTH = """
from mmap import PAGESIZE
from pathlib import Path
from edge_scanner import config
from edge_scanner.focus.model import OnnxFocusModel, engine_bytes
from edge_scanner.scanner import Scanner

def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGESIZE

before = resident()
model = OnnxFocusModel(config.load(None, ['focus.mode=model', 'focus.providers=["cpu"]']))
print((resident() - before) / engine_bytes(["cpu"]))
"""


@pytest.mark.usefixtures("resident_memory")
def test_what_is_set_aside_for_the_network_is_what_it_takes() -> None:
    pytest.importorskip("onnxruntime", reason="learned focus needs the extra [cpu]")
    done = subprocess.run([sys.executable, "-c", GROWTH], capture_output=True, text=True, check=True)
    assert 0.4 < float(done.stdout) < 1.0


@pytest.mark.parametrize("command", ["check", "run"])
def test_a_daemon_that_cannot_hold_its_buffers_does_not_start(tmp_path: Path, command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "edge_scanner", command, "--set", f"storage.root={tmp_path}", "--set",
         "storage.reserve_mb=0", "--set", "scan.buffer_mb=1e9"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == (2 if command == "run" else 1), done
    said = " ".join((done.stdout + done.stderr).split())
    assert "The buffers need" in said
    assert "Lower scan.buffer_mb" in said
    assert "Traceback" not in said


FRAMES = """
import sys
import numpy as np
from edge_scanner.memory import return_large_blocks, rss_mib

if sys.argv[1] == "as the daemon":
    return_large_blocks()
np.ones(16 << 20, np.uint8)  # glibc keeps such blocks from the first one on that was freed
frames = [np.ones(16 << 20, np.uint8) for _ in range(6)]
later = np.ones(1 << 20, np.uint8)
before = rss_mib()
del frames
print(before - rss_mib())
"""


@pytest.mark.parametrize(("way", "low", "high"), [("as the daemon", 90, 100), ("as it comes", -1, 20)])
def test_the_memory_of_frames_is_given_back(way: str, low: float, high: float) -> None:
    command = [sys.executable, "-c", FRAMES, way]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert low < float(done.stdout) < high

"""Whether the daemon's buffers and its focus network fit into the memory that it may use, asked before it starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edge_scanner.config import Config
from edge_scanner.errors import ConfigError
from edge_scanner.focus.model import engine_bytes
from edge_scanner.memory import meminfo, memory_limit

FRAMES = 12
"""Frames in hand beyond the buffers: exposed, focused, corrected, placed, blended."""
REST_BYTES = 340 << 20
"""Program, overlap strips, unfinished chunks and pyramid; with 300 the kernel ended a scan in 512 MiB."""
ADVICE = "Lower scan.buffer_mb and scan.cache_mb, or raise MemoryMax (systemctl edit edge-scanner)."


@dataclass(frozen=True, slots=True)
class Budget:
    """What is needed and what there is, in bytes.

    Parameters
    ----------
    buffers : int
        Bounded by the configuration.
    engine : int
        An estimate for the focus network's provider; 0 without the network.
    limit : int
        Never to be exceeded: the kernel ends the process.
    bound_by : str
        What sets the limit.
    available : int
        What the machine has to spare now.
    """

    buffers: int
    engine: int
    limit: int
    bound_by: str
    available: int

    @classmethod
    def of(cls, config: Config, root: Path = Path("/"), service: str = "") -> Budget:
        """Add up for a configuration, run by this process or a service; `root` is where `proc` and `sys` lie."""
        camera = config.camera
        frame = camera.width_px * camera.height_px * camera.channels * camera.bits // 8
        buffers = int((config.scan.buffer_mb + config.scan.cache_mb) * 1e6) + FRAMES * frame + REST_BYTES
        engine = engine_bytes(config.focus.providers) if config.focus.mode == "model" else 0
        return cls(buffers, engine, *memory_limit(root, service), meminfo("MemAvailable", root))

    def check(self) -> str:
        """Say what is planned.

        Raises
        ------
        ConfigError
            When the buffers alone, whose need is certain, exceed the limit.
        """
        if self.buffers > self.limit:
            raise ConfigError(
                f"The buffers need {self.buffers >> 20} MiB; {self.bound_by} is {self.limit >> 20} MiB.", ADVICE
            )
        engine = f" and {self.engine >> 20} MiB for the focus network" if self.engine else ""
        return f"{self.buffers >> 20} MiB for buffers{engine} of {self.limit >> 20} MiB, {self.bound_by}"

    def doubt(self) -> ConfigError | None:
        """Return why it may not fit: the network's need is an estimate, and what others use changes."""
        needed = self.buffers + self.engine
        if needed > self.limit:
            return ConfigError(
                f"Buffers and focus network need about {needed >> 20} MiB; {self.bound_by} is {self.limit >> 20} MiB.",
                ADVICE,
            )
        if needed > self.available:
            return ConfigError(
                f"About {needed >> 20} MiB are needed and {self.available >> 20} MiB are available.",
                "End other programs, or lower scan.buffer_mb and scan.cache_mb.",
            )
        return None

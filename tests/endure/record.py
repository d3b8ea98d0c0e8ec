"""What the cases showed, as a page."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HEAD = """# Memory

The daemon scans large slides in a memory control group, on a slow disk too. Written by `make endure`;
`tests/endure/endure.py` says how. Tiles of 2448 x 2048 px, JPEG, simulator (which lives in the
daemon, specimen and all: about 80 MiB) on the virtual clock; {cpus} cores, shared with other work, so that times say
little.

| | {names} |
|---|{rules}
"""
TAIL = """
Children: the export, in a process of its own within the same group. Charged to the group: page cache too, which the
kernel takes back when it must. Late: a thread that overran what the watchdog allows it. The plots are the reports' own:
{plots}.
"""

Told = dict[str, Any]


def write_record(path: Path, name: str, told: Told, plot: str) -> None:
    """Add a case to the record; the figures of the others are kept."""
    figures = path.with_suffix(".json")
    known: dict[str, Told] = json.loads(figures.read_text()) if figures.exists() else {}
    known[name] = {"date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M"), **told}
    figures.write_text(json.dumps(known, indent=1) + "\n")
    if plot:
        svg = plot.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" ', 1)
        (path.parent / f"{path.stem}-{name}.svg").write_text(svg + "\n")
    path.write_text(page(path, known))


def page(path: Path, known: dict[str, Told]) -> str:
    """Return the record as Markdown."""
    lines = [HEAD.format(cpus=os.cpu_count(), names=" | ".join(known), rules="---|" * len(known)).rstrip("\n")]
    for label, shown in ROWS:
        lines.append(f"| {label} | {' | '.join(_cell(shown, told) for told in known.values())} |")
    plots = [f"[{p.stem.split('-', 1)[1]}]({p.name})" for p in sorted(path.parent.glob(f"{path.stem}-*.svg"))]
    return "\n".join(lines) + "\n" + TAIL.format(plots=", ".join(plots))


def _cell(shown: Callable[[Told], str], told: Told) -> str:
    try:
        return shown(told)
    except KeyError:  # a case of an earlier version of this lane
        return "not noted"


def _own(told: Told) -> str:
    return " ".join(told["settings"]) or "-"


def _disk(told: Told) -> str:
    return "not held" if told["disk_mb_s"] is None else f"{told['disk_mb_s']:g} MB/s"


ROWS = (
    ("run of", lambda t: t["date"]),
    ("mosaic, px", lambda t: f"{t['width_px']} x {t['height_px']}"),
    ("limit of the group, MiB", lambda t: str(t["limit_mib"])),
    ("disk, as measured before", _disk),
    ("settings", _own),
    ("outcome", lambda t: f"{t['outcome']}, {t['kills']} killed"),
    ("tiles, accepted", lambda t: f"{t['tiles']}, {t['accepted']}"),
    ("**peak RSS of the daemon, MiB**", lambda t: f"**{t['peak_rss_mib']}**"),
    ("median RSS by quarters of the time, MiB", lambda t: " ".join(map(str, t["quarters_mib"]))),
    ("children, most, MiB", lambda t: str(t["children_mib"])),
    ("charged to the group, most, MiB", lambda t: str(t["group_peak_mib"])),
    ("buffer, most, MiB", lambda t: str(t["buffer_high_mib"])),
    ("stage waited for the mosaic, s", lambda t: f"{t['stall_s']:.0f}"),
    ("limit told", lambda t: t["limit"]),
    ("time, s; CPU, s", lambda t: f"{t['wall_s']:.0f}; {t['cpu_s']}"),
    ("slowest answer to `status`, s", lambda t: str(t["answer_s"])),
    ("times a thread was late for the watchdog", lambda t: str(t["hungry"])),
    ("note", lambda t: t.get("note", "-")),
    ("place against the truth p95, px; PSNR, dB", lambda t: f"{t['truth_px_p95']}; {t['psnr_db']}"),
)  # fmt: skip

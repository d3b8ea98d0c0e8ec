"""The export as a process of its own: its memory and its crashes are its own, and it can be ended at any time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from edge_scanner.config import ExportConfig
from edge_scanner.errors import AbortedError, DiskLowError, StoreError
from edge_scanner.export.whole_file import FULL
from edge_scanner.scanner.wishes import Wishes


class ExportChild:
    """Runs one export at a time.

    Parameters
    ----------
    config : ExportConfig
    wishes : Wishes
    """

    def __init__(self, config: ExportConfig, wishes: Wishes) -> None:
        self._config, self._wishes = config, wishes
        self._child: subprocess.Popen[str] | None = None

    def end(self) -> None:
        """End the export under way, from any thread."""
        if (child := self._child) is not None:
            child.terminate()

    def run(self, folder: Path) -> bool:
        """Export a scan's folder; blocks. False: it was cancelled.

        Raises
        ------
        AbortedError
            The daemon ends.
        DiskLowError, StoreError
            The export failed; its own sentence is told.
        """
        with subprocess.Popen(
            self._command(folder),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as child:
            self._child = child
            if self._wishes.cancelled or self._wishes.ending:
                child.terminate()
            _, complaint = child.communicate()
            self._child = None
        if child.returncode == 0:
            return True
        if self._wishes.cancelled:
            return False
        if self._wishes.ending:
            raise AbortedError("The export was ended.")
        cause = complaint.strip().rpartition("\n")[2].removeprefix("edge-scanner: ") or "it was killed."
        raise (DiskLowError if cause.startswith(FULL) else StoreError)(f"The export failed: {cause}")

    def _command(self, folder: Path) -> list[str]:
        command = [sys.executable, "-m", "edge_scanner", "export", str(folder / "slide.ome.zarr")]
        command += [str(folder / "slide.ome.tif"), "--compression", self._config.compression, "--overwrite", "--json"]
        command += ["--parent", str(os.getpid())]  # a daemon that was killed leaves no export that locks its file
        if self._config.compression != "keep":
            command += ["--quality", str(self._config.quality)]
        return command

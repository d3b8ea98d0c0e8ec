"""The daemon, whose scans can be held: `python held_daemon.py FILE run …`.

While FILE is there, a scan waits before the target whose index stands in it, so that a test that does something in
mid-scan does it there, however long it was held off the processor. Nothing else is changed.
"""

import sys
import time
from pathlib import Path

from edge_scanner.__main__ import main
from edge_scanner.acquire import Acquirer


def hold(file: Path) -> None:
    """Have every scan of this process look at the file."""
    acquire = Acquirer._acquire

    def held(self, target):
        while file.exists() and target.index >= int(file.read_text()):
            time.sleep(0.005)
        return acquire(self, target)

    Acquirer._acquire = held


if __name__ == "__main__":
    hold(Path(sys.argv.pop(1)))
    sys.exit(main())

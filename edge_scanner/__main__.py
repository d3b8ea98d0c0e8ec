"""`python -m edge_scanner` and the command `edge-scanner`."""

from __future__ import annotations

import sys

from edge_scanner.cli.app import main

if __name__ == "__main__":
    sys.exit(main())

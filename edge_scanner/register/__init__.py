"""Registration in flight: pair shifts on overlap strips, a small solve per scan line, places that never change."""

from __future__ import annotations

from edge_scanner.register.pairwise import Match, match
from edge_scanner.register.registrar import Pair, Registrar, RegistrationSummary

__all__ = ["Match", "Pair", "Registrar", "RegistrationSummary", "match"]

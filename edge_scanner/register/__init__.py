"""Registration in flight: pair shifts on overlap strips, a small solve per scan line, places that never change."""

from __future__ import annotations

from edge_scanner.register.pairwise import Match, match
from edge_scanner.register.registrar import Registrar
from edge_scanner.register.summary import LostSteps, Pair, RegistrationSummary

__all__ = ["LostSteps", "Match", "Pair", "Registrar", "RegistrationSummary", "match"]

"""Inference over huge images by overlapping tiles, without tiling artefacts and with only narrow strips held."""

from edge_scanner.seamless.plan import Plan, Step, plan
from edge_scanner.seamless.run import run

__all__ = ["Plan", "Step", "plan", "run"]

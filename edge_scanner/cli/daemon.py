"""`run`: the daemon in the foreground."""

from __future__ import annotations

import logging
from pathlib import Path

import typer

from edge_scanner import config as configs
from edge_scanner import service


def run(
    config: Path | None = typer.Option(None, "--config", "-c", help="TOML file; deploy/config has examples."),
    overrides: list[str] = typer.Option([], "--set", metavar="SECTION.KEY=VALUE", help="Override a key."),
) -> None:
    """Run the daemon in the foreground until `shutdown` or SIGTERM."""
    settings = configs.load(config, overrides)
    logging.getLogger().setLevel(settings.log.level.upper())
    service.run(settings)

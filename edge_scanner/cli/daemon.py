"""`run`: the daemon in the foreground."""

from __future__ import annotations

from pathlib import Path

import typer

from edge_scanner import config as configs
from edge_scanner import logs, service


def run(
    config: Path | None = typer.Option(None, "--config", "-c", help="TOML file; deploy/config has examples."),
    overrides: list[str] = typer.Option([], "--set", metavar="SECTION.KEY=VALUE", help="Override a key."),
) -> None:
    """Run the daemon in the foreground until `shutdown` or SIGTERM."""
    settings = configs.load(config, overrides)
    logs.configure(settings.log.level)
    service.run(settings)

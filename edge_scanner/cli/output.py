"""What the commands print: JSON for programs, tables for people, a progress bar on a terminal only."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_CANCELLED = 3


def complain(sentence: str) -> None:
    """Print one sentence to stderr."""
    sys.stderr.write(f"edge-scanner: {sentence}\n")


def print_json(value: Any) -> None:
    """Print a value as JSON to stdout."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def print_rows(title: str, rows: list[tuple[str, str]]) -> None:
    """Print name and value a line."""
    table = Table(title=title or None, title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    Console(highlight=False).print(table)


@contextmanager
def progress(title: str, *, wanted: bool = True) -> Iterator[Callable[[float, str], None]]:
    """Yield `show(share, text)`; draws a bar on stderr where that is a terminal, else nothing."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not (wanted and console.is_terminal)) as bar:
        task = bar.add_task(title, total=1.0)
        yield lambda share, text: bar.update(task, completed=share, description=text or title)

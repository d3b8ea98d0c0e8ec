"""`python -m hil_sim run SCENARIO.toml…|all | list`: hardware-in-the-loop scenarios; exit 1 if a budget is missed."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from hil_sim import scenario as scenarios
from hil_sim.runner import Result, run

SHIPPED = Path(__file__).parent / "scenarios"


def main(arguments: list[str] | None = None) -> int:
    """Run or list scenarios; return 0, 1 (a budget missed) or 2 (wrong usage)."""
    parser = argparse.ArgumentParser(prog="python -m hil_sim", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    runs = verbs.add_parser("run", help="run scenarios, by path or by the name of a shipped one, or `all`")
    runs.add_argument("scenario", nargs="+")
    runs.add_argument("--out", type=Path, help="keep scans and reports in this folder")
    runs.add_argument("--json", action="store_true", help="print JSON")
    verbs.add_parser("list", help="list the shipped scenarios")
    asked = parser.parse_args(arguments)
    if asked.verb == "list":
        _print("\n".join(f"{path.stem:24} {scenarios.load(path).name}" for path in sorted(SHIPPED.glob("*.toml"))))
        return 0
    try:
        names = asked.scenario if asked.scenario != ["all"] else sorted(path.stem for path in SHIPPED.glob("*.toml"))
        chosen = {path.stem: scenarios.load(path) for path in map(_find, names)}
    except (OSError, ValueError) as error:
        sys.stderr.write(f"hil_sim: the scenario cannot be used: {error}\n")
        return 2
    with tempfile.TemporaryDirectory(prefix="hil-out-") as temporary:
        out = asked.out or Path(temporary)
        try:
            results = [run(scenario, out / name) for name, scenario in chosen.items()]
        except ValueError as error:
            sys.stderr.write(f"hil_sim: the scenario cannot be run here: {error}\n")
            return 2
    if asked.json:
        _print(json.dumps([{"ok": result.ok, **asdict(result)} for result in results], indent=1))
    else:
        _print("\n\n".join(map(_table, results)))
    return 0 if all(result.ok for result in results) else 1


def _find(name: str) -> Path:
    path = Path(name)
    return path if path.suffix == ".toml" else SHIPPED / f"{name}.toml"


def _table(result: Result) -> str:
    head = f"{result.name}: {'held' if result.ok else 'MISSED'}"
    rows = (f"  {'ok    ' if r.ok else 'MISSED'} {r.what:20} {r.measured!s:24} {r.wanted}" for r in result.rows)
    return "\n".join((head, *rows))


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())

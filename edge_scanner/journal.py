"""`journal.sqlite`: what is known of every target and every stored chunk; the truth after a crash.

One connection behind a lock; WAL with `synchronous=FULL`, so a commit that returned survives a power cut. Rows are
collected and committed in groups.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from edge_scanner.errors import DiskLowError, StoreError
from edge_scanner.tile import PlacedTile, Tile

_SCHEMA = """
CREATE TABLE IF NOT EXISTS scan (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS tile (
    idx INTEGER PRIMARY KEY, row INTEGER NOT NULL, col INTEGER NOT NULL,
    target_x_um REAL NOT NULL, target_y_um REAL NOT NULL,
    reached_x_um REAL, reached_y_um REAL, reached_z_um REAL,
    verdict TEXT NOT NULL, reason TEXT NOT NULL, attempts INTEGER NOT NULL,
    focus_score REAL, focus_z_um REAL, focus_frames INTEGER, in_focus INTEGER, focus_measured INTEGER,
    dz_um REAL, sigma_um REAL, timings_ms TEXT NOT NULL,
    truth_x_um REAL, truth_y_um REAL,
    place_y_px REAL, place_x_px REAL, registered INTEGER, residual_px REAL);
CREATE TABLE IF NOT EXISTS chunk (
    level INTEGER, row INTEGER, col INTEGER, channel INTEGER,
    shard TEXT NOT NULL, offset INTEGER NOT NULL, length INTEGER NOT NULL, crc32c INTEGER,
    PRIMARY KEY (level, row, col, channel));
"""


class Part(Protocol):
    """Where an encoded chunk lies in the store; see `edge_scanner.store.StoredPart`."""

    # fmt: off
    @property
    def level(self) -> int: ...  # noqa: D102
    @property
    def row(self) -> int: ...  # noqa: D102
    @property
    def col(self) -> int: ...  # noqa: D102
    @property
    def channel(self) -> int: ...  # noqa: D102
    @property
    def shard(self) -> str: ...  # noqa: D102
    @property
    def offset(self) -> int: ...  # noqa: D102
    @property
    def length(self) -> int: ...  # noqa: D102
    @property
    def crc32c(self) -> int | None: ...  # noqa: D102
    # fmt: on


class Journal:
    """The journal of one scan; thread-safe.

    Parameters
    ----------
    path : Path
        Made if missing.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        try:
            self._db = sqlite3.connect(path, check_same_thread=False, isolation_level="DEFERRED")
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_SCHEMA)
        except sqlite3.Error as error:
            raise _failure(error) from error

    def note(self, key: str, value: Any) -> None:
        """Set a JSON value of the scan (plan, state, outcome, ...) and commit at once."""
        self._execute("INSERT OR REPLACE INTO scan VALUES (?, ?)", [(key, json.dumps(value))])
        self.commit()

    def noted(self, key: str) -> Any:
        """Return a value set by `note`; None when there is none."""
        with self._lock:
            row = self._db.execute("SELECT value FROM scan WHERE key = ?", (key,)).fetchone()
        return None if row is None else json.loads(row[0])

    def tile(self, tile: Tile) -> None:
        """Record what acquisition says of a target; durable with the next `commit`."""
        r, f, t = tile.reached, tile.focus, tile.truth
        values = (
            tile.index, tile.row, tile.col, tile.position.x_um, tile.position.y_um,
            *((r.x_um, r.y_um, r.z_um) if r else (None,) * 3),
            tile.verdict, tile.reason, tile.attempts,
            *((f.score, f.z_um, f.frames, f.in_focus, f.measured, f.dz_um, f.sigma_um) if f else (None,) * 7),
            json.dumps(dict(tile.timings_ms)), *((t.x_um, t.y_um) if t else (None,) * 2),
            None, None, None, None,
        )  # fmt: skip
        self._execute(f"INSERT OR REPLACE INTO tile VALUES ({','.join('?' * len(values))})", [values])

    def place(self, placed: PlacedTile) -> None:
        """Record a target's final place; durable with the next `commit`."""
        self._execute(
            "UPDATE tile SET place_y_px = ?, place_x_px = ?, registered = ?, residual_px = ? WHERE idx = ?",
            [(placed.y_px, placed.x_px, placed.registered, placed.residual_px, placed.index)],
        )

    def parts(self, parts: Iterable[Part]) -> None:
        """Record where encoded chunks lie, and commit: from now on they count as stored."""
        rows = [(p.level, p.row, p.col, p.channel, p.shard, p.offset, p.length, p.crc32c) for p in parts]
        self._execute("INSERT OR REPLACE INTO chunk VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
        self.commit()

    def commit(self) -> None:
        """Make everything recorded so far durable."""
        try:
            with self._lock:
                self._db.commit()
        except sqlite3.Error as error:
            raise _failure(error) from error

    def tiles(self) -> list[dict[str, Any]]:
        """Return every recorded target, in index order, as plain dictionaries."""
        with self._lock:
            cursor = self._db.execute("SELECT * FROM tile ORDER BY idx")
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor]

    def close(self) -> None:
        """Commit and close; safe to call twice."""
        with self._lock:
            try:
                self._db.commit()
            except sqlite3.ProgrammingError:
                return  # closed before
            except sqlite3.Error as error:
                raise _failure(error) from error
            finally:
                self._db.close()

    def _execute(self, sql: str, rows: list[tuple[Any, ...]]) -> None:
        try:
            with self._lock:
                self._db.executemany(sql, rows)
        except sqlite3.Error as error:
            raise _failure(error) from error


def _failure(error: sqlite3.Error) -> StoreError | DiskLowError:
    if "full" in str(error):
        return DiskLowError("The disk is full: the journal cannot be written.", "Free some space.")
    return StoreError(f"The journal cannot be used ({error}).", "Check the disk and the folder's permissions.")

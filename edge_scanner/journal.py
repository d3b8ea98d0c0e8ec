"""`journal.sqlite`: what is known of every target and every stored chunk; the truth after a crash.

One connection behind a lock; WAL with `synchronous=FULL`, so a commit that returned survives a power cut. Rows are
collected and committed in groups.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from edge_scanner.errors import DiskLowError, StoreError
from edge_scanner.geometry import Position
from edge_scanner.tile import FocusResult, Pixels, PlacedTile, Tile, Verdict

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
    place_y_px REAL, place_x_px REAL, registered INTEGER, residual_px REAL, crc32 INTEGER, gain REAL);
CREATE TABLE IF NOT EXISTS glass (idx INTEGER PRIMARY KEY, light TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS pair (
    first INTEGER, second INTEGER, at INTEGER NOT NULL,
    dy_px REAL, dx_px REAL, sigma_px REAL, ncc REAL, margin REAL,
    log_ratio REAL, log_sigma REAL, PRIMARY KEY (first, second));
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

    def tile(self, tile: Tile, crc32: int | None) -> None:
        """Record what acquisition says of a target; durable with the next `commit`.

        A target that is recorded is not captured again, so its pixels must be durable before.
        """
        r, f, t = tile.reached, tile.focus, tile.truth
        values = (
            tile.index, tile.row, tile.col, tile.position.x_um, tile.position.y_um,
            *((r.x_um, r.y_um, r.z_um) if r else (None,) * 3),
            tile.verdict, tile.reason, tile.attempts,
            *((f.score, f.z_um, f.frames, f.in_focus, f.measured, f.dz_um, f.sigma_um) if f else (None,) * 7),
            json.dumps(dict(tile.timings_ms)), *((t.x_um, t.y_um) if t else (None,) * 2),
            None, None, None, None, crc32, None,
        )  # fmt: skip
        self._execute(f"INSERT OR REPLACE INTO tile VALUES ({','.join('?' * len(values))})", [values])
        if tile.glass:
            self._execute("INSERT OR REPLACE INTO glass VALUES (?, ?)", [(tile.index, json.dumps(tile.glass))])

    def place(self, placed: PlacedTile) -> None:
        """Record a target's final place; durable with the next `commit`."""
        self._execute(
            "UPDATE tile SET place_y_px = ?, place_x_px = ?, registered = ?, residual_px = ?, gain = ? WHERE idx = ?",
            [(placed.y_px, placed.x_px, placed.registered, placed.residual_px, placed.gain, placed.index)],
        )

    def pair(self, at: int, first: int, second: int, measured: tuple[float, ...]) -> None:
        """Record what the tile `at` showed of a pair: dy_px, dx_px, sigma_px, ncc, margin, log_ratio, log_sigma."""
        self._execute(
            "INSERT OR REPLACE INTO pair VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", [(first, second, at, *measured)]
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
        return self._rows("SELECT * FROM tile LEFT JOIN glass USING (idx) ORDER BY idx")

    def pairs(self) -> list[dict[str, Any]]:
        """Return every recorded pair as plain dictionaries."""
        return self._rows("SELECT * FROM pair ORDER BY first, second")

    def chunks(self) -> list[dict[str, Any]]:
        """Return every recorded part of a chunk as plain dictionaries: the fields of `Part`."""
        return self._rows("SELECT * FROM chunk ORDER BY level, row, col, channel")

    def forget_chunks(self, keys: Iterable[tuple[int, int, int]]) -> None:
        """Take back (level, row, col) that turned out damaged, and commit."""
        self._execute("DELETE FROM chunk WHERE level = ? AND row = ? AND col = ?", list(keys))
        self.commit()

    def close(self) -> None:
        """Commit and close; safe to call twice."""
        with self._lock:
            try:
                self._db.commit()
            except sqlite3.ProgrammingError:
                return  # closed before
            except sqlite3.Error as error:
                raise _failure(error) from error
            else:
                with contextlib.suppress(sqlite3.Error):  # a full disk: what was committed is durable all the same
                    self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # else whoever closes last
            finally:
                self._db.close()

    def _rows(self, sql: str) -> list[dict[str, Any]]:
        try:
            with self._lock:
                cursor = self._db.execute(sql)
                names = [column[0] for column in cursor.description]
                return [dict(zip(names, row, strict=True)) for row in cursor]
        except sqlite3.Error as error:
            raise _failure(error) from error

    def _execute(self, sql: str, rows: list[tuple[Any, ...]]) -> None:
        try:
            with self._lock:
                self._db.executemany(sql, rows)
        except sqlite3.Error as error:
            raise _failure(error) from error


def tile_of(row: Mapping[str, Any], pixels: Pixels | None) -> Tile:
    """Return a recorded target as a tile again."""
    reached = focus = truth = None
    if row["reached_x_um"] is not None:
        reached = Position(row["reached_x_um"], row["reached_y_um"], row["reached_z_um"])
    if row["focus_z_um"] is not None:
        focus = FocusResult(
            row["focus_score"], row["focus_z_um"], row["focus_frames"], bool(row["in_focus"]),
            bool(row["focus_measured"]), row["dz_um"], row["sigma_um"],
        )  # fmt: skip
    if row["truth_x_um"] is not None:
        truth = Position(row["truth_x_um"], row["truth_y_um"], 0.0)
    z_um = focus.z_um if focus else 0.0
    position = Position(row["target_x_um"], row["target_y_um"], z_um)
    return Tile(
        row["idx"], row["row"], row["col"], position, reached, pixels, focus, Verdict(row["verdict"]), row["attempts"],
        row["reason"], json.loads(row["timings_ms"]), truth, tuple(json.loads(row["light"])) if row["light"] else None,
    )  # fmt: skip


def read_only(path: Path) -> sqlite3.Connection:
    """Return a connection that changes nothing: even reading leaves `-wal` and `-shm` beside a journal that was closed.

    Raises
    ------
    sqlite3.Error
    """
    closed = not path.with_name(path.name + "-wal").exists()  # nobody has it open, so it is whole by itself
    return sqlite3.connect(f"{path.absolute().as_uri()}?{'immutable=1' if closed else 'mode=ro'}", uri=True)


def _failure(error: sqlite3.Error) -> StoreError | DiskLowError:
    if "full" in str(error):
        return DiskLowError("The disk is full: the journal cannot be written.", "Free some space.")
    return StoreError(f"The journal cannot be used ({error}).", "Check the disk and the folder's permissions.")

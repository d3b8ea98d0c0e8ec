"""What every message looks like, as models and as one JSON Schema (`schema.json` beside this file, generated).

`python -m edge_scanner.control.schema > edge_scanner/control/schema.json` writes it; a test holds both together.
Requests are exact; results and events may carry more keys than are named here.
"""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, create_model
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from edge_scanner.control.messages import ARGUMENTS, ERROR_CODES, PROTOCOL_VERSION, Request
from edge_scanner.state import Outcome, State

Version = Literal[1]
ErrorCode = Annotated[str, Field(json_schema_extra={"enum": list(ERROR_CODES)})]


class Told(BaseModel):
    """A part of what the daemon says; more keys are welcome."""

    model_config = ConfigDict(extra="allow")


class Fault(Told):
    """Why the daemon is in FAULT, or why a request was refused."""

    code: ErrorCode
    message: str
    advice: str


class Pause(Told):
    """Why the scan has paused by itself."""

    message: str
    advice: str


class Refusal(Told):
    """The reply to a request that changed nothing; `id` is null where none could be read."""

    v: Version
    id: str | None
    ok: Literal[False]
    error: Fault


class Providers(Told):
    """Execution providers of ONNX Runtime: asked for, and really in use."""

    requested: list[str]
    actual: list[str]
    state: Literal["off", "building", "ready", "failed"]
    seconds: float | None
    error: str | None


class HelloResult(Told):
    """Who answers, and what it can do."""

    name: str
    version: str
    protocol: dict[Literal["min", "max"], int]
    commands: list[str]
    state: State
    session: str
    events: str
    lease_s: float
    heartbeat_s: float
    capabilities: dict[str, Any]
    devices: dict[str, str]
    providers: Providers


class LeaseResult(Told):
    """Who controls the scanner."""

    holder: str | None
    expires_s: float | None


class Percentiles(Told):
    """Of one stage of a tile's life."""

    p50_ms: float
    p95_ms: float


class StatusResult(Told):
    """The snapshot; `seq` is the number of the last event that it includes."""

    state: State
    outcome: Outcome | None
    scan_id: str | None
    fault: Fault | None
    progress: float = Field(ge=0, le=1)
    tiles: int
    done: int
    eta_s: float | None
    pause: Pause | None
    homed: bool
    providers: Providers
    buffer: dict[str, float]
    disk: dict[str, int]
    thermal: dict[str, Any]
    stages: dict[str, Percentiles]
    report: dict[str, Any] | None
    seq: int
    session: str
    lease: LeaseResult


class ScanEntry(Told):
    """One scan on the disk; an unfinished one has outcome null."""

    scan_id: str
    state: str
    outcome: Outcome | None
    tiles: int
    done: int
    started: str | None


class PreviewResult(Told):
    """The latest frame, base64."""

    jpeg: str


class ScanResult(Told):
    """The scan that was started."""

    scan_id: str


class ReleaseResult(Told):
    """Whether the lease was this client's."""

    released: bool


class StateResult(Told):
    """The state once the command was taken."""

    state: State


class AnyEvent(Told):
    """What every event says: its number, its wall time in seconds, and which run of the daemon it belongs to."""

    v: Version
    seq: int
    t: float
    session: str


class StateEvent(AnyEvent):
    """The state or the outcome has changed."""

    state: State
    outcome: Outcome | None
    scan_id: str | None


class ProgressEvent(AnyEvent):
    """How far the scan is."""

    scan_id: str
    done: int
    tiles: int
    share: float


class TileEvent(AnyEvent):
    """One target is done."""

    scan_id: str
    index: int
    row: int
    col: int
    verdict: Literal["accepted", "blank", "rejected"]
    attempts: int


class ChunkEvent(AnyEvent):
    """These chunks can be read in the store from now on, as (level, row, col)."""

    scan_id: str
    chunks: list[tuple[int, int, int]]


class FaultEvent(AnyEvent, Fault):
    """A fault has been latched."""

    scan_id: str | None


class LogEvent(AnyEvent):
    """A warning or an error of the daemon."""

    level: str
    message: str


class HeartbeatEvent(AnyEvent):
    """The daemon lives."""

    state: State


RESULTS: dict[str, Any] = {
    **dict.fromkeys(ARGUMENTS, StateResult),
    "hello": HelloResult,
    "status": StatusResult,
    "scans": list[ScanEntry],
    "preview": PreviewResult,
    "scan": ScanResult,
    "lease.release": ReleaseResult,
}
"""Command -> the type of its result."""

EVENTS: dict[str, type[AnyEvent]] = {
    "state": StateEvent,
    "progress": ProgressEvent,
    "tile": TileEvent,
    "chunk": ChunkEvent,
    "fault": FaultEvent,
    "log": LogEvent,
    "heartbeat": HeartbeatEvent,
}
"""Topic -> the model of its body."""


def requests() -> dict[str, type[BaseModel]]:
    """Return command -> the model of the whole request."""
    return {cmd: _request(cmd) for cmd in ARGUMENTS}


def replies() -> dict[str, type[BaseModel]]:
    """Return command -> the model of the whole reply when it was carried out or accepted."""
    return {
        cmd: cast(
            "type[BaseModel]",
            create_model(
                f"{_title(cmd)}Reply", __base__=Told, v=(Version, ...), id=(str, ...), ok=(Literal[True], ...),
                result=(result, ...),
            ),
        )
        for cmd, result in RESULTS.items()
    }  # fmt: skip


def document() -> dict[str, Any]:
    """Return the JSON Schema: `requests` and `replies` by command, `events` by topic, and `refusal`, all in `$defs`."""
    parts: dict[str, dict[str, type[BaseModel]]] = {"requests": requests(), "replies": replies(), "events": {**EVENTS}}
    models: list[type[BaseModel]] = [model for part in parts.values() for model in part.values()]
    mode: JsonSchemaMode = "validation"
    models.append(Refusal)
    places, definitions = models_json_schema([(model, mode) for model in models])
    named = {part: {name: places[model, mode] for name, model in members.items()} for part, members in parts.items()}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"Edge Scanner control protocol, version {PROTOCOL_VERSION}",
        **named,
        "refusal": places[Refusal, mode],
        **definitions,
    }


def _request(cmd: str) -> type[BaseModel]:
    model = ARGUMENTS[cmd]
    needed = any(field.is_required() for field in model.model_fields.values())
    args: Any = (model, ...) if needed else (model, Field(default_factory=model))
    return create_model(f"{_title(cmd)}Request", __base__=Request, v=(Version, ...), cmd=(Literal[cmd], ...), args=args)


def _title(cmd: str) -> str:
    return "".join(part.capitalize() for part in cmd.split("."))


if __name__ == "__main__":
    sys.stdout.write(json.dumps(document(), indent=1, sort_keys=True) + "\n")

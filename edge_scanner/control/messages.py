"""The protocol's messages: what a request may say, what a reply looks like, and the table of error codes."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edge_scanner.errors import ScannerError
from edge_scanner.plan import ScanPlan, ScanRegion, ScanRequest

PROTOCOL_VERSION = 1

ERROR_CODES: dict[str, str] = {
    "bad_request": "The message is not one frame with one JSON object that has a readable id and cmd.",
    "version": "The request speaks another version of the protocol.",
    "unknown_command": "There is no such command.",
    "unknown_field": "The request or its args hold a field that the command does not know.",
    "bad_argument": "An argument is missing, of the wrong type, not finite or out of range.",
    "state.illegal": "The command is not legal in the daemon's present state.",
    "lease.held": "Another client holds the controller's lease.",
    "position.unknown": "The stage has not been homed since the start or the last fault.",
    "limits.exceeded": "A target lies outside the stage's limits.",
    "emergency_stop": "The emergency stop is latched until reset and home.",
    "not_found": "What the request names does not exist.",
    "disk.low": "There is not enough room on the disk.",
    "plan.differs": "The scan to resume was made with another plan, slide or configuration.",
    "device": "A device failed, went silent or answered with an error.",
    "internal": "The daemon itself failed; its log says more.",
}
"""Code -> meaning: the one table of error codes."""

LEASED = frozenset({"home", "scan", "resume", "reset", "export", "shutdown"})
"""Commands that need the controller's lease."""

ACTIONS = LEASED | {"pause", "cancel", "stop", "lease.release"}
"""Commands that change something; the others only read."""

ID_LENGTH = 128
MAX_MM = 1e6
"""Beyond it a length is refused before the stage's limits are asked, so that no sum of lengths can overflow."""
DEPTH = 32
"""Nested deeper, a request is refused: whoever reads, shows or logs it must not run out of stack."""
_SHOWN = 60

Name = Annotated[str, Field(min_length=1, max_length=64)]
Millimetres = Annotated[float, Field(ge=-MAX_MM, le=MAX_MM, allow_inf_nan=False)]
ScanId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]


class Message(BaseModel):
    """A part of a request: strict types, unknown fields refused."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Request(Message):
    """The envelope of every request."""

    v: int
    id: Annotated[str, Field(min_length=1, max_length=ID_LENGTH)]
    cmd: str
    args: dict[str, Any] = Field(default_factory=dict)
    client: Name | None = None


class NoArguments(Message):
    """The args of a command that takes none."""


class ScanArguments(Message):
    """The args of `scan`: a region in stage millimetres, or a plan, or the id of an unfinished scan."""

    x_mm: Millimetres | None = None
    y_mm: Millimetres | None = None
    width_mm: Millimetres | None = None
    height_mm: Millimetres | None = None
    plan: dict[str, Any] | None = None
    resume: ScanId | None = None

    def request(self) -> ScanRequest:
        """Return what to scan.

        Raises
        ------
        ScannerError
            With code `bad_argument`, unless exactly one of region, plan and resume is there and makes sense.
        """
        sides = {name: getattr(self, name) for name in ("x_mm", "y_mm", "width_mm", "height_mm")}
        missing = [name for name, value in sides.items() if value is None]
        ways = (len(missing) < len(sides)) + (self.plan is not None) + (self.resume is not None)
        if ways != 1:
            raise ScannerError(
                f"scan got {'none' if ways == 0 else 'more than one'} of region, plan and resume.",
                "Give x_mm, y_mm, width_mm and height_mm, or plan, or resume.",
                code="bad_argument",
            )
        if self.resume is not None:
            return ScanRequest(resume=self.resume)
        if self.plan is not None:
            return ScanRequest(plan=_plan(self.plan))
        if missing:
            raise ScannerError(f"scan lacks the argument {missing[0]!r}.", code="bad_argument")
        return ScanRequest(region=ScanRegion(**sides))


class ExportArguments(Message):
    """The args of `export`."""

    scan_id: ScanId


ARGUMENTS: dict[str, type[Message]] = {
    **dict.fromkeys(
        ("hello", "status", "scans", "preview", "home", "pause", "resume", "cancel", "stop", "reset"), NoArguments
    ),
    "scan": ScanArguments,
    "export": ExportArguments,
    "lease.release": NoArguments,
    "shutdown": NoArguments,
}
"""Command -> the model of its args; its keys are all the commands."""


@dataclass(frozen=True, slots=True)
class Command:
    """A request that has been understood: `scan` is set for the command `scan`, `scan_id` for `export`."""

    id: str
    name: str
    client: str | None
    scan: ScanRequest | None = None
    scan_id: str = ""


def read(body: bytes) -> dict[str, Any]:
    """Read the JSON object of a request, without looking at what it says.

    Raises
    ------
    ScannerError
        With code `bad_request`: not UTF-8, not JSON, half a surrogate pair, a key twice, NaN or Infinity, nested too
        deep, or not an object.
    """
    try:
        raw = json.loads(body.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
        if b"\\u" in body:
            json.dumps(raw, ensure_ascii=False).encode("utf-8")  # half a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise ScannerError(f"The request is not valid JSON ({_short(str(error))}).", code="bad_request") from error
    if not isinstance(raw, dict):
        raise ScannerError("The request is not a JSON object.", code="bad_request")
    if _is_deep(raw):
        raise ScannerError(f"The request is nested more than {DEPTH} deep.", code="bad_request")
    return raw


def readable_id(raw: dict[str, Any]) -> str | None:
    """Return the id of a request's JSON object, None where there is no usable one."""
    value = raw.get("id")
    return value if isinstance(value, str) and 0 < len(value) <= ID_LENGTH else None


def understand(raw: dict[str, Any]) -> Command:
    """Validate a request's JSON object.

    Raises
    ------
    ScannerError
        With code `version`, `unknown_field`, `bad_request` (id or cmd unusable), `unknown_command` or
        `bad_argument`, in this order of precedence.
    """
    if type(raw.get("v")) is not int or raw["v"] != PROTOCOL_VERSION:
        raise ScannerError(
            f"The request has v = {_short(repr(raw.get('v')))}; this daemon speaks version {PROTOCOL_VERSION}.",
            "Update the client or the daemon.",
            code="version",
        )
    try:
        request = Request.model_validate(raw)
    except ValidationError as error:
        _refuse(error, Request.model_fields, "request")
    if request.cmd not in ARGUMENTS:
        raise ScannerError(
            f"There is no command {_short(request.cmd)!r}; the nearest is {_nearest(request.cmd, ARGUMENTS)!r}.",
            f"Commands: {' '.join(ARGUMENTS)}.",
            code="unknown_command",
        )
    model = ARGUMENTS[request.cmd]
    try:
        args = model.model_validate(request.args)
    except ValidationError as error:
        _refuse(error, model.model_fields, request.cmd)
    return Command(
        request.id,
        request.cmd,
        request.client,
        args.request() if isinstance(args, ScanArguments) else None,
        args.scan_id if isinstance(args, ExportArguments) else "",
    )


def ok_reply(request_id: str, result: object) -> bytes:
    """Return the reply of a command that was carried out or accepted."""
    return _encode({"v": PROTOCOL_VERSION, "id": request_id, "ok": True, "result": result})


def error_reply(request_id: str | None, error: ScannerError) -> bytes:
    """Return the reply of a request that changed nothing; a code that the table lacks becomes `internal`."""
    code = error.code if error.code in ERROR_CODES else "internal"
    shown = {"code": code, "message": error.message, "advice": error.advice}
    return _encode({"v": PROTOCOL_VERSION, "id": request_id, "ok": False, "error": shown})


def _encode(message: dict[str, Any]) -> bytes:
    return json.dumps(message, allow_nan=False, separators=(",", ":")).encode("ascii")


def _plan(raw: dict[str, Any]) -> ScanPlan:
    try:
        plan = ScanPlan.from_dict(raw)
        corners = [plan.target(0), plan.target(len(plan) - 1)]
        if not all(abs(um) <= MAX_MM * 1000 for target in corners for um in (target.x_um, target.y_um)):
            raise ValueError("a target is further away than 1 km")
        return plan
    except (TypeError, ValueError, OverflowError) as error:
        raise ScannerError(f"The plan holds what it must not ({_short(str(error))}).", code="bad_argument") from error


def _is_deep(value: object) -> bool:
    level = [value]
    for _ in range(DEPTH):
        inner = (v.values() if isinstance(v, dict) else v for v in level if isinstance(v, dict | list))
        level = [child for children in inner for child in children]
    return bool(level)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    known = dict(pairs)
    if len(known) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise ValueError(f"the key {_short(twice)!r} is there twice")
    return known


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _refuse(error: ValidationError, known: Iterable[str], what: str) -> NoReturn:
    faults = error.errors(include_url=False)
    fault = next((f for f in faults if f["type"] == "extra_forbidden"), faults[0])
    name = str(fault["loc"][0])
    if fault["type"] == "extra_forbidden":
        near = _nearest(name, known)
        hint = f"the nearest known one is {near!r}" if near else "it takes none"
        raise ScannerError(f"{what} has an unknown field {_short(name)!r}; {hint}.", code="unknown_field") from error
    code = "bad_request" if what == "request" and name in ("id", "cmd") else "bad_argument"
    if fault["type"] == "missing":
        raise ScannerError(f"{what} lacks {name!r}.", code=code) from error
    raise ScannerError(f"{what} has {name} = {_short(repr(fault['input']))}: {fault['msg']}.", code=code) from error


def _nearest(name: str, known: Iterable[str]) -> str:
    return next(iter(difflib.get_close_matches(name[:_SHOWN], known, 1, 0.0)), "")


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"

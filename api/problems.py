"""Errors as RFC 9457 problem documents: one table from our errors to status codes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from service.errors import (
    AttemptLost,
    CheckpointNotFound,
    DiskFull,
    EditConflict,
    EventGap,
    FieldError,
    FilesNotHere,
    Forbidden,
    IdempotencyConflict,
    InvalidSpec,
    KeyNotFound,
    LogGap,
    MillionwayError,
    QueueFull,
    RateLimited,
    RunIdTaken,
    RunNotFound,
    StoreUnavailable,
    TransitionRefused,
    Unauthenticated,
    WorkerNameTaken,
    WorkerNotFound,
    WorkerReplaced,
)
from service.sections import describe

log = structlog.get_logger()

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_SECONDS = 1


class Kind(NamedTuple):
    status: int
    code: str
    title: str


KINDS: dict[type[MillionwayError], Kind] = {
    AttemptLost: Kind(409, "attempt_lost", "The attempt is over"),
    EventGap: Kind(409, "event_gap", "Events are missing before these"),
    IdempotencyConflict: Kind(422, "idempotency_conflict", "The Idempotency-Key was used with another body"),
    InvalidSpec: Kind(422, "invalid_spec", "The specification is wrong"),
    LogGap: Kind(409, "log_gap", "Bytes are missing before these"),
    RunNotFound: Kind(404, "run_not_found", "No run has this id"),
    CheckpointNotFound: Kind(404, "checkpoint_not_found", "The run has no such checkpoint"),
    DiskFull: Kind(507, "disk_full", "The API's disk takes no more"),
    EditConflict: Kind(412, "edit_conflict", "The run was changed since it was read"),
    QueueFull: Kind(429, "queue_full", "The owner's queue is full"),
    KeyNotFound: Kind(404, "key_not_found", "No API key has this id"),
    Unauthenticated: Kind(401, "unauthenticated", "The request carries no valid key"),
    Forbidden: Kind(403, "forbidden", "The key's role does not allow this"),
    RateLimited: Kind(429, "rate_limited", "Too many requests"),
    FilesNotHere: Kind(404, "files_not_here", "The API does not see this file"),
    WorkerNotFound: Kind(404, "worker_not_found", "No worker has this name"),
    WorkerNameTaken: Kind(409, "worker_name_taken", "Another machine has this worker's name"),
    WorkerReplaced: Kind(409, "worker_replaced", "A newer process has this worker's name"),
    RunIdTaken: Kind(500, "run_id_taken", "A random id came twice"),
    StoreUnavailable: Kind(503, "store_unavailable", "The store does not answer"),
    TransitionRefused: Kind(409, "transition_refused", "The run's status does not allow this"),
}


INVALID_REQUEST = Kind(422, "invalid_request", "The request is wrong")
NOT_FOUND = Kind(404, "not_found", "Nothing is here")
METHOD_NOT_ALLOWED = Kind(405, "method_not_allowed", "The route does not take this method")
BODY_TOO_SLOW = Kind(408, "body_too_slow", "The body takes too long")
BODY_TOO_LARGE = Kind(413, "body_too_large", "The body is too large")
URI_TOO_LONG = Kind(414, "uri_too_long", "The path is too long")
RANGE_NOT_SATISFIABLE = Kind(416, "range_not_satisfiable", "The file has no byte in this range")
UNSUPPORTED_MEDIA_TYPE = Kind(415, "unsupported_media_type", "The body is of another type")
HEADERS_TOO_LARGE = Kind(431, "headers_too_large", "The headers are too large")
INTERNAL_ERROR = Kind(500, "internal_error", "The API failed")


_OTHERS = (
    INVALID_REQUEST,
    NOT_FOUND,
    METHOD_NOT_ALLOWED,
    BODY_TOO_SLOW,
    BODY_TOO_LARGE,
    URI_TOO_LONG,
    UNSUPPORTED_MEDIA_TYPE,
    RANGE_NOT_SATISFIABLE,
    HEADERS_TOO_LARGE,
    INTERNAL_ERROR,
)
KIND_OF_CODE = {kind.code: kind for kind in (*KINDS.values(), *_OTHERS)}


class FieldProblem(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    field: str
    """Dotted, e.g. data.path; empty for the whole document."""
    pointer: str
    """RFC 6901 JSON pointer of the field."""
    value: Any = None
    """What was given; shortened where it is long."""
    message: str
    """What is wrong, with the remedy."""


class Problem(BaseModel):
    """RFC 9457. Members beside these belong to the code: service/protocol.py names them."""

    model_config = ConfigDict(use_attribute_docstrings=True, extra="allow")

    type: str
    title: str
    status: int
    detail: str
    code: str
    """Stable, for programs."""
    errors: list[FieldProblem] = Field(default_factory=list)


def problem_response(
    kind: Kind,
    detail: str,
    *,
    errors: list[FieldError] | None = None,
    headers: Mapping[str, str] | None = None,
    **members: Any,
) -> Response:
    fields = [FieldProblem(field=e.field, pointer=e.pointer, value=_shown(e.value), message=str(e)) for e in errors or []]
    problem = Problem(
        type=f"urn:millionway:problem:{kind.code}",
        title=kind.title,
        status=kind.status,
        detail=detail,
        code=kind.code,
        errors=fields,
        **members,
    )
    # What is wrong may be half a surrogate pair, which UTF-8 cannot hold: the value then shows "?", the message its escape.
    text = json.dumps(problem.model_dump(), ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")
    return Response(text, status_code=kind.status, media_type=MEDIA_TYPE, headers=dict(headers or {}))


def _shown(value: Any) -> Any:
    if isinstance(value, str):
        return value[:200]
    is_number = (isinstance(value, int) and abs(value) < 2**63) or (isinstance(value, float) and math.isfinite(value))
    return value if value is None or is_number else describe(value)


def error_response(error: MillionwayError, path: str) -> Response:
    kind = KINDS[type(error)]
    match error:
        case InvalidSpec():
            return problem_response(kind, str(error), errors=error.errors)
        case StoreUnavailable():
            log.warning("store_unavailable", path=path, why=str(error))
            return problem_response(kind, str(error), headers={"Retry-After": str(RETRY_AFTER_SECONDS)})
        case Unauthenticated():
            return problem_response(kind, str(error), headers={"WWW-Authenticate": 'Bearer realm="millionway"'})
        case RateLimited():
            return problem_response(kind, str(error), headers={"Retry-After": str(math.ceil(error.retry_after_seconds))})
        case AttemptLost():
            return problem_response(kind, str(error), current_attempt=error.current, run_status=error.status)
        case LogGap():
            return problem_response(kind, str(error), size=error.size)
        case EventGap():
            return problem_response(kind, str(error), last_seq=error.last_seq)
    return problem_response(kind, str(error))


async def _millionway_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, MillionwayError)  # noqa: S101 - registered for nothing else
    return error_response(error, request.url.path)


async def _invalid_request(request: Request, error: Exception) -> Response:
    """A path, query, header or body other than a specification that does not fit its declaration."""
    assert isinstance(error, RequestValidationError)  # noqa: S101
    errors = []
    for found in error.errors():
        _, *path = found["loc"]
        field = ".".join(str(part) for part in path)
        if found["type"] == "json_invalid":
            message = f"the body is not JSON at byte {field}: {found.get('ctx', {}).get('error', found['msg'])}"
            errors.append(FieldError("", None, message))
        else:
            given = "" if found["type"] == "missing" else f"{describe(found.get('input'))}: "
            errors.append(FieldError(field, found.get("input"), f"{given}{found['msg']}"))
    return problem_response(INVALID_REQUEST, "\n".join(map(str, errors)), errors=errors)


async def _http_error(request: Request, error: Exception) -> Response:
    """What the framework refuses: an unknown path, a wrong method, a body that is too large."""
    assert isinstance(error, HTTPException)  # noqa: S101
    path, status, detail = request.url.path, error.status_code, str(error.detail)
    if status == 404:
        kind, detail = NOT_FOUND, f"nothing at {path}: the routes are listed at /docs"
    elif status == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        kind, detail = METHOD_NOT_ALLOWED, f"{path} does not take {request.method}: use {allowed}"
    elif status == 400:  # a body that is no text at all, or nested without end
        kind, detail = INVALID_REQUEST, "the body cannot be read: send JSON, in UTF-8, nested less deeply"
    elif status == 408:
        kind = BODY_TOO_SLOW
    elif status == 413:
        kind = BODY_TOO_LARGE
    elif status == 416:
        kind = RANGE_NOT_SATISFIABLE
    elif status == 415:
        kind = UNSUPPORTED_MEDIA_TYPE
    else:
        kind = Kind(status, "http_error", "The request is refused")
    return problem_response(kind, detail, headers=error.headers)


async def _internal_error(request: Request, error: Exception) -> Response:
    log.error("internal_error", method=request.method, path=request.url.path, exc_info=error)
    return problem_response(INTERNAL_ERROR, "an error of ours: its traceback is in the API's log")


def add_problem_handlers(app: FastAPI) -> None:
    app.add_exception_handler(MillionwayError, _millionway_error)
    app.add_exception_handler(RequestValidationError, _invalid_request)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _internal_error)

"""What a worker reports of the attempt it holds. A report of a lost attempt gets 409; only its logs are still taken."""

from __future__ import annotations

import asyncio
from typing import Annotated

import structlog
from fastapi import APIRouter, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from api.auth import WorkerDep
from api.problem_docs import documents
from api.state import LogsDep, StoreDep
from service.errors import AttemptLost, DiskFull, EventGap, Forbidden, LogGap, RunNotFound, Unauthenticated
from service.event_effects import read_event
from service.protocol import LOG_NAME, EventAck, EventBatch, ExitReport, LogAck
from service.runs import Run

log = structlog.get_logger()
router = APIRouter(prefix="/runs/{run_id}/attempts/{attempt}", tags=["attempts"])

PIECE = {"requestBody": {"required": True, "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}}
Attempt = Annotated[int, Path(ge=1, le=1_000_000)]


@router.post("/events", responses=documents(Unauthenticated, Forbidden, RunNotFound, AttemptLost, EventGap))
async def events(run_id: str, attempt: Attempt, batch: EventBatch, store: StoreDep, key: WorkerDep) -> EventAck:
    """Lines of the spool. What was applied already is skipped; after a gap nothing is applied."""
    try:
        known = [read_event(event) for event in batch.events]
    except ValidationError as error:
        raise RequestValidationError([{**e, "loc": ("body", "events", *e["loc"])} for e in error.errors()]) from None
    return await store.apply_events(run_id, attempt, known)


@router.put(
    "/logs/{name}", openapi_extra=PIECE, responses=documents(Unauthenticated, Forbidden, RunNotFound, AttemptLost, LogGap, DiskFull)
)
async def put_log(
    run_id: str,
    attempt: Attempt,
    name: Annotated[str, Path(pattern=LOG_NAME)],
    offset: Annotated[int, Query(ge=0, le=1 << 62, description="Byte of the log at which the body starts")],
    request: Request,
    store: StoreDep,
    logs: LogsDep,
    key: WorkerDep,
) -> LogAck:
    """A piece of log. The logs of a lost attempt are still worth having."""
    await store.newest_attempt(run_id, at_least=attempt)
    piece = await request.body()
    return LogAck(size=await asyncio.to_thread(logs.append, run_id, attempt, name, offset, piece))


@router.post("/exit", responses=documents(Unauthenticated, Forbidden, RunNotFound, AttemptLost))
async def exit_(run_id: str, attempt: Attempt, report: ExitReport, store: StoreDep, key: WorkerDep) -> Run:
    """A node's last word on an attempt; send its events first. Once or more often, also after the attempt's end."""
    run = await store.exit(run_id, attempt, report)
    about = {"worker": report.worker, "outcome": report.outcome, "exit_code": report.exit_code, "status": run.status}
    log.info("node_ended", run_id=run_id, attempt=attempt, **about)
    return run

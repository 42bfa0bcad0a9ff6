"""Runs, for people and their programs: submit, look, cancel."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import structlog
from fastapi import APIRouter, Depends, Header, Query, Request, Response

from api.bodies import read_body
from api.problems import BODY_TOO_LARGE, UNSUPPORTED_MEDIA_TYPE, documents
from api.queries import refuse_unknown_query
from api.state import SettingsDep, StoreDep
from service.admission import admit
from service.errors import IdempotencyConflict, InvalidSpec, RunNotFound, TransitionRefused
from service.lifecycle import Status
from service.protocol import MetricPage, RunPage
from service.runs import Checkpoint, Run, Transition
from service.spec import RunSpec

log = structlog.get_logger()
router = APIRouter(tags=["runs"], dependencies=[Depends(refuse_unknown_query)])

SPEC_SCHEMA = {"schema": {"$ref": "#/components/schemas/RunSpec"}}
SPEC_BODY = {"requestBody": {"required": True, "content": {"application/json": SPEC_SCHEMA, "application/yaml": SPEC_SCHEMA}}}
LOCATION = {"Location": {"description": "The run's path", "schema": {"type": "string"}}}
SUBMITTED: dict[int | str, dict[str, Any]] = {
    201: {"headers": LOCATION},
    **documents(InvalidSpec, IdempotencyConflict, BODY_TOO_LARGE, UNSUPPORTED_MEDIA_TYPE),
}


@router.post("/runs", status_code=201, responses=SUBMITTED, openapi_extra=SPEC_BODY)
async def submit(
    request: Request,
    response: Response,
    store: StoreDep,
    settings: SettingsDep,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=255)] = None,
) -> Run:
    """Put a run into the queue. With an Idempotency-Key, a repeated submission within 24 h answers with the same run."""
    body, content_type = await request.body(), request.headers.get("content-type", "")
    spec = await asyncio.to_thread(_admitted, body, content_type, settings.shared_files)
    run = await store.submit(spec, idempotency_key)
    response.headers["Location"] = f"/runs/{run.id}"
    log.info("submitted", run_id=run.id, attempt=run.attempt, name=run.name)
    return run


def _admitted(body: bytes, content_type: str, shared_files: bool) -> RunSpec:
    spec = read_body(body, content_type)
    admit(spec, shared_files=shared_files)
    return spec


@router.get("/runs", responses=documents())
async def list_runs(
    store: StoreDep,
    status: Status | None = None,
    cursor: Annotated[str | None, Query(pattern=r"^[0-9]{1,15}$", description="next_cursor of the page before")] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> RunPage:
    """Newest first."""
    return await store.list_runs(status=status, cursor=int(cursor) if cursor else None, limit=limit)


@router.get("/runs/{run_id}", responses=documents(RunNotFound))
async def get_run(run_id: str, store: StoreDep) -> Run:
    return await store.get(run_id)


@router.post("/runs/{run_id}/cancel", status_code=202, responses=documents(RunNotFound, TransitionRefused))
async def cancel(run_id: str, store: StoreDep) -> Run:
    """Once or more often; the run is `cancelling` until its worker has stopped it."""
    run = await store.cancel(run_id)
    log.info("cancel_requested", run_id=run_id, attempt=run.attempt, status=run.status)
    return run


@router.get("/runs/{run_id}/history", responses=documents(RunNotFound))
async def history(run_id: str, store: StoreDep) -> list[Transition]:
    """Every change of status with its reason, oldest first."""
    return await store.history(run_id)


@router.get("/runs/{run_id}/metrics", responses=documents(RunNotFound))
async def metrics(
    run_id: str,
    store: StoreDep,
    after: Annotated[str | None, Query(pattern=r"^[0-9]{1,9}-[0-9]{1,15}$", description="next_cursor of the page before")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 1000,
) -> MetricPage:
    """Progress and evaluations, oldest first."""
    return await store.metrics(run_id, after=after, limit=limit)


@router.get("/runs/{run_id}/checkpoints", responses=documents(RunNotFound))
async def checkpoints(run_id: str, store: StoreDep) -> list[Checkpoint]:
    """Those that are still on the worker's disk, oldest first."""
    return await store.checkpoints(run_id)

"""Runs, for people and their programs: submit, look, change, stop, go on."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any, Literal

import structlog
from fastapi import APIRouter, Depends, Header, Query, Request, Response
from pydantic import Field

from api.auth import OwnRun, UserDep
from api.bodies import read_body
from api.problem_docs import documents
from api.problems import BODY_TOO_LARGE, UNSUPPORTED_MEDIA_TYPE
from api.queries import refuse_unknown_query
from api.state import ChangesDep, SchedulerDep, SettingsDep, StoreDep
from api.waits import with_wait
from service.admission import admit
from service.changes import wait_for
from service.errors import (
    CheckpointNotFound,
    EditConflict,
    Forbidden,
    IdempotencyConflict,
    InvalidSpec,
    QueueFull,
    RunNotFound,
    TransitionRefused,
    Unauthenticated,
)
from service.fork import forked_spec
from service.lifecycle import Status
from service.protocol import MAX_WAIT_SECONDS, Fork, RunPage, RunPatch
from service.runs import Parent, Role, Run
from service.settings import Settings
from service.spec import RunSpec

log = structlog.get_logger()
router = APIRouter(tags=["runs"], dependencies=[Depends(refuse_unknown_query)])

SPEC_SCHEMA = {"schema": {"$ref": "#/components/schemas/RunSpec"}}
SPEC_BODY = {"requestBody": {"required": True, "content": {"application/json": SPEC_SCHEMA, "application/yaml": SPEC_SCHEMA}}}
LOCATION = {"Location": {"description": "The run's path", "schema": {"type": "string"}}}
ETAG = {"ETag": {"description": "Number of changes by PATCH", "schema": {"type": "string"}}}
KNOWN = (Unauthenticated, Forbidden)
SUBMITTED: dict[int | str, dict[str, Any]] = {
    201: {"headers": LOCATION},
    **documents(*KNOWN, InvalidSpec, IdempotencyConflict, QueueFull, BODY_TOO_LARGE, UNSUPPORTED_MEDIA_TYPE),
}
LabelFilter = Annotated[str, Field(pattern=r"^[^=]{1,63}=", max_length=400)]
SMALL_BYTES = 16 << 10
IdempotencyKey = Annotated[str | None, Header(min_length=1, max_length=255)]


@router.post("/runs", status_code=201, responses=SUBMITTED, openapi_extra=SPEC_BODY)
async def submit(
    request: Request,
    response: Response,
    store: StoreDep,
    settings: SettingsDep,
    key: UserDep,
    idempotency_key: IdempotencyKey = None,
) -> Run:
    """Put a run into the queue. With an Idempotency-Key, a repeated submission within 24 h answers with the same run."""
    spec = await admitted(request, settings)
    run = await store.submit(spec, key.name, idempotency_key)
    response.headers["Location"] = f"/runs/{run.id}"
    log.info("submitted", run_id=run.id, attempt=run.attempt, name=run.name, owner=run.owner)
    return run


async def admitted(request: Request, settings: Settings) -> RunSpec:
    """The specification in the body. Raises InvalidSpec."""
    body, content_type = await request.body(), request.headers.get("content-type", "")
    if settings.shared_files or len(body) > SMALL_BYTES or "json" not in content_type:
        return await asyncio.to_thread(_admitted, body, content_type, settings)
    return _admitted(body, content_type, settings)  # microseconds: a thread would cost more


def _admitted(body: bytes, content_type: str, settings: Settings) -> RunSpec:
    spec = read_body(body, content_type)
    admit(spec, shared_files=settings.shared_files, roots=settings.data_roots)
    return spec


@router.get("/runs", responses=documents(*KNOWN))
async def list_runs(
    store: StoreDep,
    scheduler: SchedulerDep,
    key: UserDep,
    status: Status | None = None,
    owner: Annotated[str | None, Query(max_length=200, description="Only this key's name's; for an admin")] = None,
    label: Annotated[list[LabelFilter] | None, Query(description="NAME=VALUE; several must all hold", max_length=32)] = None,
    cursor: Annotated[str | None, Query(pattern=r"^[0-9]{1,15}$", description="next_cursor of the page before")] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> RunPage:
    """Newest first: a user's own; an admin's are everybody's."""
    if key.role != Role.ADMIN:
        if owner not in (None, key.name):
            raise Forbidden(f"owner is {owner!r}, and the key {key.name!r} has the role {key.role}: an admin's key sees others' runs")
        owner = key.name
    labels = dict(pair.partition("=")[::2] for pair in label or ())
    page = await store.list_runs(status=status, owner=owner, labels=labels, cursor=int(cursor) if cursor else None, limit=limit)
    return page.model_copy(update={"runs": [await with_wait(run, scheduler) for run in page.runs]})


@router.get("/runs/{run_id}", responses={200: {"headers": ETAG}, **documents(*KNOWN, RunNotFound)})
async def get_run(
    run: OwnRun,
    response: Response,
    store: StoreDep,
    changes: ChangesDep,
    scheduler: SchedulerDep,
    wait_for_version: Annotated[int | None, Query(ge=0, description="Wait until the run's version is at least this")] = None,
    timeout: Annotated[float, Query(ge=0, le=MAX_WAIT_SECONDS, description="Seconds to wait at most")] = 30.0,
) -> Run:
    """A run; with wait_for_version, as soon as it has changed."""
    if wait_for_version is not None:
        deadline = time.monotonic() + timeout
        with changes.watch(run.id) as changed:
            run = await store.get(run.id)
            while run.version < wait_for_version and (left := deadline - time.monotonic()) > 0:
                await wait_for(changed, min(left, 5.0))
                run = await store.get(run.id)
    response.headers["ETag"] = f'"{run.edits}"'
    return await with_wait(run, scheduler)


@router.patch("/runs/{run_id}", responses={200: {"headers": ETAG}, **documents(*KNOWN, RunNotFound, EditConflict)})
async def edit(
    run: OwnRun,
    patch: RunPatch,
    response: Response,
    store: StoreDep,
    if_match: Annotated[str | None, Header(pattern=r'^(\*|(W/)?"?[0-9]{1,15}"?)$', description="The ETag that was read")] = None,
) -> Run:
    """Change priority or labels, whatever the run does."""
    expected = None if if_match in (None, "*") else int(if_match.removeprefix("W/").strip('"'))
    edited = await store.edit(run.id, patch, expected)
    response.headers["ETag"] = f'"{edited.edits}"'
    return edited


def _add_request(name: Literal["pause", "resume", "cancel", "kill"], description: str) -> None:
    @router.post(
        f"/runs/{{run_id}}/{name}",
        status_code=202,
        name=name,
        description=description,
        responses=documents(*KNOWN, RunNotFound, TransitionRefused),
    )
    async def request(run: OwnRun, store: StoreDep, key: UserDep) -> Run:
        changed = await store.request(run.id, name)
        log.info("requested", request=name, run_id=run.id, attempt=run.attempt, status=changed.status, by=key.name)
        return changed


_add_request("cancel", "Stop a run for good, with a checkpoint. Once or more often; it is `cancelling` until its workers have stopped it.")
_add_request("kill", "Stop a run for good, at once, without a checkpoint.")
_add_request("pause", "Stop a run with a checkpoint; it keeps its place until `resume`.")
_add_request("resume", "Put a paused run back into the queue; it goes on from its last checkpoint.")


@router.post(
    "/runs/{run_id}/fork",
    status_code=201,
    responses={
        201: {"headers": LOCATION},
        **documents(*KNOWN, RunNotFound, CheckpointNotFound, InvalidSpec, IdempotencyConflict, QueueFull),
    },
)
async def fork(
    run: OwnRun,
    fork: Fork,
    response: Response,
    store: StoreDep,
    settings: SettingsDep,
    key: UserDep,
    idempotency_key: IdempotencyKey = None,
) -> Run:
    """A new run that starts from a checkpoint of this one with a changed specification, e.g. a longer schedule."""
    step = run.checkpoint_step if fork.step is None else fork.step
    if step is None:
        raise CheckpointNotFound(run.id, 0)
    spec = await asyncio.to_thread(_forked, run.spec, fork, step, settings)
    child = await store.submit(spec, key.name, idempotency_key, parent=Parent(run_id=run.id, step=step))
    response.headers["Location"] = f"/runs/{child.id}"
    log.info("forked", run_id=child.id, attempt=child.attempt, parent=run.id, step=step)
    return child


def _forked(parent: RunSpec, fork: Fork, step: int, settings: Settings) -> RunSpec:
    spec = forked_spec(parent, fork.spec, step)
    admit(spec, shared_files=settings.shared_files, roots=settings.data_roots)
    return spec

"""What happened to a run: history, attempts, events, checkpoints."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event
from pydantic import Field

from api.auth import OwnRun
from api.problem_docs import documents
from api.queries import refuse_unknown_query
from api.state import ChangesDep, StoreDep
from service.changes import Changes, wait_for
from service.errors import CheckpointNotFound, Forbidden, RunNotFound, StoreUnavailable, Unauthenticated
from service.lifecycle import TERMINAL
from service.protocol import MAX_STREAM_SECONDS, EventPage
from service.runs import Attempt, Checkpoint, Run, RunEvent, Transition
from service.store import Store

router = APIRouter(prefix="/runs/{run_id}", tags=["events"], dependencies=[Depends(refuse_unknown_query)])

KNOWN = (Unauthenticated, Forbidden, RunNotFound)
HEARTBEAT_SECONDS = 15.0
PAUSE_SECONDS = 1.0
"""Before Redis is asked again when it did not answer."""
EventKind = Annotated[str, Field(pattern=r"^[a-z_]{1,32}$")]
CURSOR = r"^[0-9]{1,15}$"
AS_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A page of events; with Accept: text/event-stream all of them, until the run has ended. There `id` is the cursor, "
        "`event` the kind, `data` a RunEvent. `event: truncated` says that events before the next one are not kept any more, "
        "`event: end` that the run has ended and nothing follows",
        "content": {EventSourceResponse.media_type: {"schema": {"type": "string"}}},
    },
    204: {"description": "To an event stream that is opened anew after it has seen the end"},
}

Step = Annotated[int, Path(ge=0, le=10**12)]


@router.get("/history", responses=documents(*KNOWN))
async def history(run: OwnRun, store: StoreDep) -> list[Transition]:
    """Every status that the run was in, oldest first."""
    return await store.history(run.id)


@router.get("/attempts", responses=documents(*KNOWN))
async def attempts(run: OwnRun, store: StoreDep) -> list[Attempt]:
    """Where each attempt was placed and how it ended on each node, oldest first; the last hundred."""
    return await store.attempts(run.id)


@router.get("/events", response_model=EventPage, responses={**AS_STREAM, **documents(*KNOWN)})
async def events(
    run: OwnRun,
    request: Request,
    store: StoreDep,
    changes: ChangesDep,
    after: Annotated[str | None, Query(pattern=CURSOR, description="The cursor of the last event seen")] = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="Most events in a page")] = 500,
    kinds: Annotated[
        list[EventKind] | None, Query(max_length=32, description="Only these: transition, progress, ...; several by repetition")
    ] = None,
    last_event_id: Annotated[str | None, Header(pattern=CURSOR, description="As `after`, and before it, for event streams")] = None,
) -> EventPage | Response:
    """Transitions and what the job reported, oldest first. The newest thousand are kept, of a run that has ended the last two hundred."""
    if EventSourceResponse.media_type not in request.headers.get("accept", ""):
        return await store.events(run.id, after=after, kinds=kinds, limit=limit)
    if last_event_id and run.status in TERMINAL:
        left = await store.events(run.id, after=last_event_id, kinds=kinds, limit=1)
        if not left.events:
            return Response(status_code=204)  # a browser opens a stream that has ended again and again, but for this
    chunks = _stream(run, store, changes, last_event_id or after, kinds)
    return EventSourceResponse(chunks, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})


async def _stream(run: Run, store: Store, changes: Changes, after: str | None, kinds: Sequence[str] | None) -> AsyncIterator[bytes]:
    """Pages of events as server-sent events, as they come."""
    until = time.monotonic() + MAX_STREAM_SECONDS
    with changes.watch(run.id) as changed:
        while time.monotonic() < until:
            try:
                page = await store.events(run.id, after=after, kinds=kinds)
            except StoreUnavailable:
                yield KEEPALIVE_COMMENT
                await wait_for(changed, PAUSE_SECONDS)
                continue
            if page.truncated:
                data = {"message": f"events after {after or 0} are not kept any more: go on with the next one"}
                gap = RunEvent(cursor=after or "0", time=time.time(), kind="truncated", attempt=run.attempt, data=data)
                yield format_sse_event(event=gap.kind, data_str=gap.model_dump_json())
            if page.events:
                yield b"".join(format_sse_event(id=e.cursor, event=e.kind, data_str=e.model_dump_json()) for e in page.events)
            after = page.next_cursor
            if page.has_more:
                continue
            if page.status in TERMINAL:
                yield format_sse_event(event="end", data_str=json.dumps({"status": page.status}))
                return
            if not await wait_for(changed, HEARTBEAT_SECONDS):
                yield KEEPALIVE_COMMENT


@router.get("/checkpoints", responses=documents(*KNOWN))
async def checkpoints(run: OwnRun, store: StoreDep) -> list[Checkpoint]:
    """Those that are still on disk, with loss and kNN accuracy, oldest first."""
    return await store.checkpoints(run.id)


@router.put("/checkpoints/{step}/pin", responses=documents(*KNOWN, CheckpointNotFound))
async def pin(run: OwnRun, step: Step, store: StoreDep) -> Checkpoint:
    """Keep this checkpoint whatever comes after it. Once or more often."""
    return await store.pin(run.id, step, pinned=True)


@router.delete("/checkpoints/{step}/pin", responses=documents(*KNOWN, CheckpointNotFound))
async def unpin(run: OwnRun, step: Step, store: StoreDep) -> Checkpoint:
    """The checkpoint may be removed when newer and better ones come. Once or more often."""
    return await store.pin(run.id, step, pinned=False)

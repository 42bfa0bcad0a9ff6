"""A run's logs, in pieces by byte offset, or followed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Response
from fastapi.responses import StreamingResponse

from api.auth import OwnRun
from api.problem_docs import documents
from api.queries import refuse_unknown_query
from api.state import LogsDep, StoreDep
from service.errors import Forbidden, RunNotFound, StoreUnavailable, Unauthenticated
from service.log_files import LogFiles
from service.protocol import LOG_NAME, MAX_STREAM_SECONDS, LogFile
from service.runs import has_ended
from service.store import Store

router = APIRouter(prefix="/runs/{run_id}", tags=["logs"], dependencies=[Depends(refuse_unknown_query)])

KNOWN = (Unauthenticated, Forbidden, RunNotFound)
MAX_ANSWER_BYTES = 1 << 20
PIECE_BYTES = 64 << 10
LOOK_SECONDS = 0.5
"""Between two looks for more of a log that is followed."""
LINGER_SECONDS = 3.0
"""How long the end of an attempt is followed after the last piece: its nodes send what they have left one after another."""
MEDIA_TYPE = "text/plain; charset=utf-8"
TEXT: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/plain": {}}, "headers": {"Millionway-Next-Offset": {"schema": {"type": "integer"}}}}
}


@router.get("/logs", response_class=Response, responses={**TEXT, **documents(*KNOWN)})
async def read_log(
    run: OwnRun,
    store: StoreDep,
    logs: LogsDep,
    attempt: Annotated[int | None, Query(ge=1, le=1_000_000, description="Default: the newest")] = None,
    name: Annotated[str, Query(pattern=LOG_NAME)] = "rank-0.log",
    offset: Annotated[int, Query(ge=0, le=1 << 62, description="Byte to start at")] = 0,
    limit: Annotated[int, Query(ge=1, le=MAX_ANSWER_BYTES, description="Most bytes in the answer; not with `follow`")] = PIECE_BYTES,
    follow: Annotated[bool, Query(description="Go on until the attempt ends; a later attempt is not followed")] = False,
) -> Response:
    """Empty where the log ends, and before it begins: ask again with the header Millionway-Next-Offset as `offset`.

    Of a very long log the middle is not kept: one line stands for it, and Millionway-Next-Offset is behind it. A log that is followed ends
    there; ask for the next piece, and follow on from its next offset.
    """
    number = attempt or max(1, run.attempt)
    if follow:
        return StreamingResponse(_follow(run.id, number, name, offset, store, logs), media_type=MEDIA_TYPE)
    piece, end = await asyncio.to_thread(logs.read, run.id, number, name, offset, limit)
    if not piece and end > offset:
        piece = b"[%d bytes of this log are not kept]\n" % (end - offset)
    return Response(piece, media_type=MEDIA_TYPE, headers={"Millionway-Next-Offset": str(end)})


async def _follow(run_id: str, attempt: int, name: str, offset: int, store: Store, logs: LogFiles) -> AsyncIterator[bytes]:
    """The log from byte `offset` as it grows, until LINGER_SECONDS after the attempt's end nothing comes any more."""
    now = time.monotonic()
    until, quiet_since, look_at = now + MAX_STREAM_SECONDS, now, now + LINGER_SECONDS
    is_over = await _is_over(run_id, attempt, store)
    linger = 0.0 if is_over else LINGER_SECONDS
    while (now := time.monotonic()) < until:
        piece, end = await asyncio.to_thread(logs.read, run_id, attempt, name, offset, PIECE_BYTES)
        if piece:
            yield piece
            offset, quiet_since = end, time.monotonic()
            continue
        if end > offset:  # the middle is not kept
            return
        if is_over and now - quiet_since >= linger:
            return
        if now >= look_at and not is_over:
            is_over, look_at, quiet_since = await _is_over(run_id, attempt, store), now + LINGER_SECONDS, now
        await asyncio.sleep(LOOK_SECONDS)


async def _is_over(run_id: str, attempt: int, store: Store) -> bool:
    """Not known while Redis is away, so no."""
    try:
        return has_ended(await store.get(run_id), attempt)
    except StoreUnavailable:
        return False


@router.get("/logs/index", responses=documents(*KNOWN))
async def log_index(run: OwnRun, logs: LogsDep) -> list[LogFile]:
    """Which logs there are, of all attempts."""
    return await asyncio.to_thread(logs.index, run.id)

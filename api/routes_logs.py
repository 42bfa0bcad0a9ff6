"""A run's logs, in pieces by byte offset."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Response

from api.problems import documents
from api.queries import refuse_unknown_query
from api.state import LogsDep, StoreDep
from service.errors import RunNotFound
from service.protocol import LOG_NAME, LogFile

router = APIRouter(tags=["logs"], dependencies=[Depends(refuse_unknown_query)])

MAX_ANSWER_BYTES = 1 << 20
TEXT: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/plain": {}}, "headers": {"Millionway-Next-Offset": {"schema": {"type": "integer"}}}}
}


@router.get("/runs/{run_id}/logs", response_class=Response, responses={**TEXT, **documents(RunNotFound)})
async def read_log(
    run_id: str,
    store: StoreDep,
    logs: LogsDep,
    attempt: Annotated[int | None, Query(ge=1, le=1_000_000, description="Default: the newest")] = None,
    name: Annotated[str, Query(pattern=LOG_NAME)] = "rank-0.log",
    offset: Annotated[int, Query(ge=0, le=1 << 62, description="Byte to start at")] = 0,
    limit: Annotated[int, Query(ge=1, le=MAX_ANSWER_BYTES, description="Most bytes in the answer")] = 65_536,
) -> Response:
    """Empty where the log ends, and before it begins: ask again with the header Millionway-Next-Offset as `offset`."""
    newest = await store.newest_attempt(run_id)
    piece, end = await asyncio.to_thread(logs.read, run_id, attempt or max(1, newest), name, offset, limit)
    return Response(piece, media_type="text/plain; charset=utf-8", headers={"Millionway-Next-Offset": str(end)})


@router.get("/runs/{run_id}/logs/index", responses=documents(RunNotFound))
async def log_index(run_id: str, store: StoreDep, logs: LogsDep) -> list[LogFile]:
    """Which logs there are, of all attempts."""
    await store.newest_attempt(run_id)
    return await asyncio.to_thread(logs.index, run_id)

"""Workers: who is there, and how one asks for work."""

from __future__ import annotations

from typing import Annotated

import structlog
from fastapi import APIRouter, Path, Response

from api.problems import documents
from api.state import StoreDep
from service.protocol import Claim, ClaimRequest
from service.runs import Worker

log = structlog.get_logger()
router = APIRouter(tags=["workers"])


@router.get("/workers", responses=documents())
async def workers(store: StoreDep) -> list[Worker]:
    """Those heard of within a day, the last heard of first."""
    return await store.workers()


@router.post(
    "/workers/{worker}/claim",
    response_model=Claim,
    responses={204: {"description": "Nothing to do: ask again in a second"}, **documents()},
)
async def claim(
    worker: Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")], request: ClaimRequest, store: StoreDep
) -> Claim | Response:
    """The oldest queued run that fits the worker, as a new attempt with a lease."""
    claimed = await store.claim(worker, request)
    if claimed is None:
        return Response(status_code=204)
    log.info("claimed", run_id=claimed.run_id, attempt=claimed.attempt, worker=worker)
    return claimed

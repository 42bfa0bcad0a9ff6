"""Workers: who is there, what one is to do, and taking one out of service."""

from __future__ import annotations

import time
from typing import Annotated

import structlog
from fastapi import APIRouter, Path

from api.auth import AdminDep, UserDep, WorkerDep
from api.problem_docs import documents
from api.state import ChangesDep, StoreDep
from service.changes import wait_for
from service.errors import Forbidden, Unauthenticated, WorkerNameTaken, WorkerNotFound, WorkerReplaced
from service.protocol import WORKER_NAME, Drain, Poll, PollReply
from service.runs import Worker

log = structlog.get_logger()
router = APIRouter(tags=["workers"])

WorkerName = Annotated[str, Path(pattern=WORKER_NAME)]


@router.get("/workers", responses=documents(Unauthenticated, Forbidden))
async def workers(store: StoreDep, key: UserDep) -> list[Worker]:
    """Those heard of within a day, the last heard of first."""
    return await store.workers()


@router.post("/workers/{worker}/poll", responses=documents(Unauthenticated, Forbidden, WorkerNameTaken, WorkerReplaced))
async def poll(worker: WorkerName, poll: Poll, store: StoreDep, changes: ChangesDep, key: WorkerDep) -> PollReply:
    """Renews the worker's lease and says what it is to do; waits up to wait_seconds until that is something new."""
    known = {(held.run_id, held.attempt): (held.command, sorted(held.pins)) for held in poll.held}
    deadline = time.monotonic() + min(poll.wait_seconds, store.lease_seconds / 2)
    with changes.watch(f"worker:{worker}") as changed:
        while True:
            reply = await store.poll(worker, poll)
            is_news = reply.offers or any(
                known[told.run_id, told.attempt] != (told.command, sorted(told.pins)) for told in reply.instructions
            )
            left = deadline - time.monotonic()
            if is_news or left <= 0 or not await wait_for(changed, left):
                return reply


@router.post("/workers/{worker}/drain", status_code=202, responses=documents(Unauthenticated, Forbidden, WorkerNotFound))
async def drain(worker: WorkerName, drain: Drain, store: StoreDep, key: AdminDep) -> Worker:
    """Nothing more is placed there; with mode checkpoint, what runs there goes elsewhere."""
    log.info("drained", worker=worker, mode=drain.mode, by=key.name)
    return await store.drain(worker, drain.mode)


@router.delete("/workers/{worker}/drain", responses=documents(Unauthenticated, Forbidden, WorkerNotFound))
async def undrain(worker: WorkerName, store: StoreDep, key: AdminDep) -> Worker:
    """It takes work again."""
    log.info("undrained", worker=worker, by=key.name)
    return await store.drain(worker, "")

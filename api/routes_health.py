"""Whether the process lives, whether it can serve, and what Prometheus wants to know."""

from __future__ import annotations

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from api.problem_docs import documents
from api.state import MetricsDep, SchedulerDep, StoreDep

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process lives."""
    return {"status": "ok"}


@router.get("/readyz", responses=documents())
async def readyz(store: StoreDep) -> dict[str, str]:
    """Redis answers, too."""
    await store.ping()
    return {"status": "ready"}


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(metrics: MetricsDep, store: StoreDep, scheduler: SchedulerDep) -> Response:
    """For Prometheus. It takes no key, and says no more than counts: serve it inside the network only."""
    return Response(await metrics.text(store, scheduler), headers={"Content-Type": CONTENT_TYPE_LATEST})

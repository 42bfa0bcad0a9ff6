"""Whether the process lives, and whether it can serve."""

from __future__ import annotations

from fastapi import APIRouter

from api.problems import documents
from api.state import StoreDep

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

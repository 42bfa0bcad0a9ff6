"""A run's curves, small however long the run."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query

from api.auth import OwnRun
from api.problem_docs import documents
from api.queries import refuse_unknown_query
from api.state import StoreDep
from service.errors import Forbidden, RunNotFound, Unauthenticated
from service.protocol import MetricSeries
from service.series import SeriesName

router = APIRouter(tags=["metrics"], dependencies=[Depends(refuse_unknown_query)])


@router.get("/runs/{run_id}/metrics", responses=documents(Unauthenticated, Forbidden, RunNotFound))
async def metrics(
    run: OwnRun,
    store: StoreDep,
    points: Annotated[int, Query(ge=1, le=1000, description="Most points of each series")] = 500,
    series: Annotated[list[SeriesName] | None, Query(max_length=8, description="Only these; several by repetition")] = None,
) -> MetricSeries:
    """The curves, each point over a bucket of steps. No report is left out of its minimum, maximum and mean."""
    return await store.series(run.id, series, points)

"""What would become of a run, before it is submitted."""

from __future__ import annotations

import asyncio
from pathlib import Path

from fastapi import APIRouter, Depends, Request

from api.auth import UserDep
from api.problem_docs import documents
from api.problems import BODY_TOO_LARGE, UNSUPPORTED_MEDIA_TYPE
from api.queries import refuse_unknown_query
from api.routes_runs import SPEC_BODY, admitted
from api.state import SchedulerDep, SettingsDep, StoreDep
from service.admission import count_images
from service.errors import Forbidden, InvalidSpec, Unauthenticated
from service.protocol import Plan
from service.runs import WaitReason
from service.scheduling.explain import plan
from service.scheduling.model import Queued
from service.sizing import memory_per_rank, training_seconds
from service.spec import RunSpec
from service.store_records import throughput_key

router = APIRouter(tags=["runs"], dependencies=[Depends(refuse_unknown_query)])

MAX_COUNTED = 100_000_000
NO_RUN = "planned"
"""Stands for the run in the scheduler's snapshot; no run has this id."""


@router.post(
    "/runs:plan",
    responses=documents(Unauthenticated, Forbidden, InvalidSpec, BODY_TOO_LARGE, UNSUPPORTED_MEDIA_TYPE),
    openapi_extra=SPEC_BODY,
)
async def plan_run(request: Request, store: StoreDep, settings: SettingsDep, scheduler: SchedulerDep, key: UserDep) -> Plan:
    """Whether the run could run, where and when it would start if it were submitted now, its memory and its duration. Nothing is stored."""
    spec = await admitted(request, settings)
    num_images = await asyncio.to_thread(_num_images, spec, settings.shared_files)
    cluster = (await scheduler.board()).cluster
    resources = spec.resources
    queued = Queued(
        run_id=NO_RUN,
        owner=key.name,
        priority=spec.priority,
        sequence=max((waiting.sequence for waiting in cluster.queued), default=0) + 1,
        queued_at=cluster.now,
        shapes=tuple(resources.shapes(spec.optimizer.images_at_a_time)),
        device=spec.device,
        max_seconds=resources.max_hours * 3600 if resources.max_hours else None,
    )
    answer = await asyncio.to_thread(plan, queued, cluster, scheduler.policy)
    nodes, ranks_per_node = answer.place.shape if answer.place else queued.shapes[0]
    ranks = nodes * ranks_per_node
    speed = await store.throughput(throughput_key(spec))
    found = answer.explanation
    return Plan(
        feasible=answer.feasible,
        starts_now=answer.starts_now,
        reasons=[] if answer.starts_now else [WaitReason(token=reason.token, message=reason.message) for reason in found.reasons],
        starts_if=list(found.starts_if),
        placement=list(answer.place.slots) if answer.place else None,
        ranks=ranks,
        position=answer.position,
        starts_at=found.starts_at,
        memory=None if num_images is None else memory_per_rank(spec, num_images, ranks),
        num_images=num_images,
        eta_seconds=None if num_images is None or speed is None else training_seconds(spec, num_images, ranks, speed),
    )


def _num_images(spec: RunSpec, shared_files: bool) -> int | None:
    """As many as the run would see; None where it takes too long to count them, or they are not to be seen from here.

    Blocks: call it from a thread.
    """
    limit = spec.data.limit
    if not shared_files:
        return limit
    found, is_all = count_images(Path(spec.data.path), limit or MAX_COUNTED)
    return found if is_all else limit

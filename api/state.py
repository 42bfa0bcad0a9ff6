"""What lives as long as the application, and how a route gets at it."""

from __future__ import annotations

from typing import Annotated, TypedDict, cast

from fastapi import Depends, Request

from api.control_loop import Scheduler
from api.known_keys import KnownKeys
from api.limits import Limits
from api.metrics import Metrics
from service.changes import Changes
from service.log_files import LogFiles
from service.settings import Settings
from service.store import Store


class State(TypedDict):
    settings: Settings
    store: Store
    logs: LogFiles
    changes: Changes
    scheduler: Scheduler
    metrics: Metrics
    keys: KnownKeys
    limits: Limits


async def _settings(request: Request) -> Settings:
    return cast(Settings, request.state.settings)


async def _store(request: Request) -> Store:
    return cast(Store, request.state.store)


async def _logs(request: Request) -> LogFiles:
    return cast(LogFiles, request.state.logs)


async def _changes(request: Request) -> Changes:
    return cast(Changes, request.state.changes)


async def _scheduler(request: Request) -> Scheduler:
    return cast(Scheduler, request.state.scheduler)


async def _metrics(request: Request) -> Metrics:
    return cast(Metrics, request.state.metrics)


SettingsDep = Annotated[Settings, Depends(_settings)]
StoreDep = Annotated[Store, Depends(_store)]
LogsDep = Annotated[LogFiles, Depends(_logs)]
ChangesDep = Annotated[Changes, Depends(_changes)]
SchedulerDep = Annotated[Scheduler, Depends(_scheduler)]
MetricsDep = Annotated[Metrics, Depends(_metrics)]

"""What lives as long as the application, and how a route gets at it."""

from __future__ import annotations

from typing import Annotated, TypedDict, cast

from fastapi import Depends, Request

from service.log_files import LogFiles
from service.settings import Settings
from service.store import Store


class State(TypedDict):
    settings: Settings
    store: Store
    logs: LogFiles


async def _settings(request: Request) -> Settings:
    return cast(Settings, request.state.settings)


async def _store(request: Request) -> Store:
    return cast(Store, request.state.store)


async def _logs(request: Request) -> LogFiles:
    return cast(LogFiles, request.state.logs)


SettingsDep = Annotated[Settings, Depends(_settings)]
StoreDep = Annotated[Store, Depends(_store)]
LogsDep = Annotated[LogFiles, Depends(_logs)]

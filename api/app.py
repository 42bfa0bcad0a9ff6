"""The application: its routes, its lifespan, its OpenAPI document."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from api import (
    routes_attempts,
    routes_events,
    routes_files,
    routes_health,
    routes_logs,
    routes_metrics,
    routes_page,
    routes_plan,
    routes_runs,
    routes_workers,
)
from api.auth import OPEN, Guard
from api.bodies import LimitBodies
from api.control_loop import Scheduler
from api.first_keys import first_keys
from api.known_keys import KnownKeys
from api.limits import Limits
from api.metrics import MeasureRequests, Metrics
from api.problem_docs import document_everywhere
from api.problems import Problem, add_problem_handlers
from api.state import State
from service.changes import Changes
from service.keys import Keys
from service.log_files import LogFiles
from service.settings import Settings
from service.store import Store

FIRST_KEYS_SECONDS = 1.0
"""Whoever finds the API ready finds its keys, unless Redis was away for so long."""


def create_app(settings: Settings) -> FastAPI:
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[State]:
        connected = Store.connect(settings.redis_url, settings.lease_seconds, settings.gang_start_seconds, settings.max_queued)
        async with connected as store:
            changes = Changes(store.redis)
            scheduler = Scheduler(store, changes)
            keys = Keys(store.redis)
            tasks = [asyncio.create_task(work) for work in (first_keys(keys, settings), changes.listen(), scheduler.run())]
            await asyncio.wait(tasks[:1], timeout=FIRST_KEYS_SECONDS)
            yield State(
                settings=settings,
                store=store,
                logs=LogFiles(settings.logs_dir, settings.max_log_bytes),
                changes=changes,
                scheduler=scheduler,
                metrics=metrics,
                keys=KnownKeys(keys),
                limits=Limits(settings.rate_limit),
            )
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    app = FastAPI(
        title="millionway",
        summary="Pretrain a vision backbone on your own unlabelled images",
        lifespan=lifespan,
        separate_input_output_schemas=False,
        redirect_slashes=False,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
    )
    for routes in (
        routes_runs,
        routes_plan,
        routes_events,
        routes_metrics,
        routes_logs,
        routes_files,
        routes_workers,
        routes_attempts,
        routes_health,
        routes_page,
    ):
        app.include_router(routes.router)
    app.add_middleware(LimitBodies)
    app.add_middleware(Guard)  # outside: a body is read only for a valid key
    app.add_middleware(MeasureRequests, metrics=metrics)
    add_problem_handlers(app)

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = get_openapi(title=app.title, version="1", summary=app.summary, routes=app.routes)
            document_everywhere(app.openapi_schema["paths"], OPEN)
            schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
            app.openapi_schema["components"]["schemas"] |= {**schema.pop("$defs"), "Problem": schema}
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign] # FastAPI's way of adding to the document
    return app

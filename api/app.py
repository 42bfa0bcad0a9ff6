"""The application: its routes, its lifespan, its OpenAPI document."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from api import routes_attempts, routes_health, routes_logs, routes_runs, routes_workers
from api.bodies import LimitBodies
from api.leases import watch_leases
from api.problems import Problem, add_problem_handlers
from api.state import State
from service.log_files import LogFiles
from service.settings import Settings
from service.store import Store


def create_app(settings: Settings) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[State]:
        async with Store.connect(settings.redis_url, settings.lease_seconds) as store:
            watch = asyncio.create_task(watch_leases(store))
            yield State(settings=settings, store=store, logs=LogFiles(settings.logs_dir))
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)

    app = FastAPI(
        title="millionway",
        summary="Pretrain a vision backbone on your own unlabelled images",
        lifespan=lifespan,
        separate_input_output_schemas=False,
    )
    for routes in (routes_runs, routes_logs, routes_workers, routes_attempts, routes_health):
        app.include_router(routes.router)
    app.add_middleware(LimitBodies)
    add_problem_handlers(app)

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = get_openapi(title=app.title, version="1", summary=app.summary, routes=app.routes)
            schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
            app.openapi_schema["components"]["schemas"] |= {**schema.pop("$defs"), "Problem": schema}
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign] # FastAPI's way of adding to the document
    return app

"""The peer of control_plane.py: the least that a control plane could do. FastAPI in front of Redis, no schema, no queue, no keys:
POST writes the body under a new id, GET reads it back. Redis fsyncs every write, as ours does."""

from __future__ import annotations

import os
import secrets

from fastapi import FastAPI, Request
from redis.asyncio import Redis

app = FastAPI()
redis = Redis.from_url(os.environ["PEER_REDIS_URL"], decode_responses=True)


@app.post("/runs", status_code=201)
async def submit(request: Request) -> dict[str, str]:
    run_id = secrets.token_hex(5)
    await redis.set(f"peer:{run_id}", (await request.body()).decode())
    return {"id": run_id}


@app.get("/runs/{run_id}")
async def get_run(run_id: str) -> dict[str, str | None]:
    return {"id": run_id, "spec": await redis.get(f"peer:{run_id}")}

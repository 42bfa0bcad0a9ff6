"""One atomic call of the script in store*.lua, and what its refusals are here."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoScriptError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from service.errors import (
    AttemptLost,
    CheckpointNotFound,
    EditConflict,
    EventGap,
    IdempotencyConflict,
    KeyNotFound,
    QueueFull,
    RunIdTaken,
    RunNotFound,
    StoreUnavailable,
    TransitionRefused,
    WorkerNameTaken,
    WorkerNotFound,
    WorkerReplaced,
)
from service.redis_script import script_text

ERRORS = {
    "attempt_lost": AttemptLost,
    "checkpoint_not_found": CheckpointNotFound,
    "edit_conflict": EditConflict,
    "event_gap": EventGap,
    "idempotency_conflict": IdempotencyConflict,
    "key_not_found": KeyNotFound,
    "queue_full": QueueFull,
    "run_id_taken": RunIdTaken,
    "run_not_found": RunNotFound,
    "transition_refused": TransitionRefused,
    "worker_name_taken": WorkerNameTaken,
    "worker_not_found": WorkerNotFound,
    "worker_replaced": WorkerReplaced,
}

MAX_CALLS = 64
"""Under way at once; Redis does them one after the other."""


@asynccontextmanager
async def connect(url: str) -> AsyncIterator[Redis]:
    """Needs no Redis yet: each call connects when it must. No call is repeated here; the API's clients know which may be."""
    pool = ConnectionPool.from_url(
        url,
        max_connections=512,
        socket_timeout=5,
        socket_connect_timeout=2,
        retry=Retry(NoBackoff(), 0),
        decode_responses=True,
    )
    redis = Redis(connection_pool=pool)
    try:
        yield redis
    finally:
        await redis.aclose()
        await pool.disconnect()


class Script:
    """The script, on a server."""

    def __init__(self, redis: Redis) -> None:
        self._redis, self._text = redis, script_text()
        self._free = asyncio.Semaphore(MAX_CALLS)
        self._sha = hashlib.sha1(self._text.encode()).hexdigest()  # noqa: S324 - Redis's own name for a script

    async def call(self, operation: str, **arguments: Any) -> dict[str, Any]:
        """The operation's answer. Raises what the script refuses with, and StoreUnavailable; an argument of None is left out."""
        arguments = {name: value for name, value in arguments.items() if value is not None}
        try:
            text = await self._evaluate(operation, json.dumps(arguments))
        except AuthenticationError as error:
            raise StoreUnavailable(f"Redis refuses the API's password ({error}): correct MILLIONWAY_REDIS_PASSWORD_FILE") from error
        except (RedisConnectionError, RedisTimeoutError, OSError) as error:
            raise StoreUnavailable(f"Redis does not answer ({error}): start it, or correct MILLIONWAY_REDIS_URL") from error
        except RedisError as error:
            if any(sign in str(error) for sign in ("MISCONF", "OOM", "LOADING", "BUSY")):
                raise StoreUnavailable(f"Redis takes no writes now: give it time, disk and memory ({error})") from error
            raise
        reply: dict[str, Any] = json.loads(text) or {}
        if problem := reply.pop("error", None):
            raise ERRORS[problem](**reply)
        return reply

    async def _evaluate(self, operation: str, arguments: str) -> str:
        # By hand: the client's Script object costs as much Python per call as the rest of it.
        async with self._free:
            try:
                return str(await self._redis.execute_command("EVALSHA", self._sha, 0, operation, arguments))  # type: ignore[no-untyped-call]
            except NoScriptError:  # a server that was started anew
                return str(await self._redis.execute_command("EVAL", self._text, 0, operation, arguments))  # type: ignore[no-untyped-call]

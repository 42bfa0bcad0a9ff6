"""Waiting for something to change, instead of asking again and again: Redis tells each API process, which wakes those who wait."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import aclosing, contextmanager

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from service.redis_script import NEWS

log = structlog.get_logger()

RETRY_SECONDS = 1.0


class Changes:
    """`watch` lists a topic: a run's id, "worker:ID", or "queue". News may be lost while Redis is away: wait with a timeout, and look."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._waiting: dict[str, set[asyncio.Event]] = {}

    @contextmanager
    def watch(self, topic: str) -> Iterator[asyncio.Event]:
        """An event that is set when something changes from now on. Look first at what is, then wait, then clear it."""
        changed = asyncio.Event()
        self._waiting.setdefault(topic, set()).add(changed)
        try:
            yield changed
        finally:
            waiting = self._waiting[topic]
            waiting.discard(changed)
            if not waiting:
                del self._waiting[topic]

    async def listen(self) -> None:
        """Until cancelled."""
        while True:
            try:
                pubsub = self._redis.pubsub(ignore_subscribe_messages=True)
                async with aclosing(pubsub):
                    await pubsub.subscribe(NEWS)
                    self._wake_all()  # what was said meanwhile is not said again
                    while True:
                        message = await pubsub.get_message(timeout=5.0)
                        if message is not None:
                            self.wake(message["data"])
            except (RedisError, OSError) as error:
                log.warning("news_unheard", why=str(error))
                await asyncio.sleep(RETRY_SECONDS)

    def wake(self, topic: str) -> None:
        for changed in self._waiting.get(topic, ()):
            changed.set()

    def _wake_all(self) -> None:
        for topic in self._waiting:
            self.wake(topic)


async def wait_for(changed: asyncio.Event, timeout_seconds: float) -> bool:
    """Whether something changed before the time was over."""
    try:
        async with asyncio.timeout(timeout_seconds):
            await changed.wait()
    except TimeoutError:
        return False
    changed.clear()
    return True

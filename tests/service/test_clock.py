"""A clock of Redis's that is set back: what was noted before lies in the future."""

from __future__ import annotations

import asyncio
import time

import pytest

from service.lifecycle import Status
from service.store import Store
from tests.service.documents import spec
from tests.service.reports import Node, place, start

pytestmark = pytest.mark.anyio

HOUR, YEARS = 3600.0, 4 * 365 * 86_400.0


async def set_back(store: Store, seconds: float) -> None:
    """As if the clock had stood so much later until now."""
    later = time.time() + seconds
    await store.redis.set("millionway:watched", later)
    for key, value in (("leases", later + store.lease_seconds), ("unheld", later)):
        names = await store.redis.zrange(f"millionway:{key}", 0, -1)
        if names:
            await store.redis.zadd(f"millionway:{key}", dict.fromkeys(names, value), xx=True)
    for key in await store.redis.keys("millionway:attempt:*"):
        await store.redis.hset(key, "placed_at", later)


async def test_a_dead_worker_is_missed_within_a_lease_though_the_clock_was_set_back(store: Store) -> None:
    """Its lease does not last until the old time comes again."""
    store.lease_seconds = 0.5
    run = await store.submit(spec(), "alice")
    await start(store, run, Node(store))
    await set_back(store, HOUR)
    deadline = time.monotonic() + 5
    while not (lost := (await store.expire())[0]) and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    assert lost == [run.id]
    assert (await store.get(run.id)).status == Status.QUEUED


async def test_a_gang_that_nobody_takes_is_given_up_though_the_clock_was_set_back(store: Store) -> None:
    """As long after the change as after any placement."""
    store.gang_start_seconds = 0.3
    run = await store.submit(spec(), "alice")
    node = Node(store)
    await node.poll()
    assert await place(store, run, node)
    await set_back(store, HOUR)
    deadline = time.monotonic() + 5
    while not (lost := (await store.expire())[0]) and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    assert lost == [run.id]


async def test_nobody_is_credited_for_a_clock_that_was_set_back(store: Store) -> None:
    """What an owner has used neither grows with the years that did not pass nor falls below nothing, and the scheduler can read it."""
    await store.redis.hset("millionway:usage", "alice", f"1000.000 {time.time() + YEARS:.3f}")
    run = await store.submit(spec(), "alice")
    await store.submit(spec(), "alice")  # only of those who wait does the scheduler ask
    node = Node(store)
    await start(store, run, node)
    before = await store.snapshot()
    assert before is not None
    assert before.usage["alice"] == pytest.approx(1000)
    await set_back(store, HOUR)
    await node.exit(run, 1, "lost")
    after = await store.snapshot()
    assert after is not None
    assert after.usage["alice"] == pytest.approx(1000, abs=60)

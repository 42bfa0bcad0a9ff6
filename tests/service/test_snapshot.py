"""What the scheduler is told of runs that have had several attempts, and of what they need."""

from __future__ import annotations

import pytest

from service.store import Store
from tests.service.documents import spec
from tests.service.reports import Node, silence, start

pytestmark = pytest.mark.anyio


async def test_a_live_run_has_the_slots_and_the_time_of_its_newest_attempt(store: Store) -> None:
    """Its owner's share is not charged anew for earlier attempts, nor for the slots of a worker that fell silent with one of them."""
    run = await store.submit(spec(), "alice")
    first, second = Node(store, "w1"), Node(store, "w2")
    await start(store, run, first)
    await store.redis.hset(f"millionway:run:{run.id}", "started_at", 1000)
    await silence(store, "w1")
    await start(store, run, second)
    cluster = await store.snapshot()
    assert cluster is not None
    [live] = cluster.live
    assert dict(live.slots) == {"w2": (0, 1)}
    assert cluster.now - live.started_at < 60


async def test_what_an_older_attempt_still_has_is_no_live_run(store: Store) -> None:
    """Its worker is back, and about to kill it: nobody waits for the run to give way."""
    run = await store.submit(spec(), "alice")
    first, second = Node(store, "w1"), Node(store, "w2")
    await start(store, run, first)
    await silence(store, "w1")
    await start(store, run, second)
    await second.exit(run, 2, "finished")
    await first.poll()
    cluster = await store.snapshot()
    assert cluster is not None
    assert (cluster.live, {node.id: node.free for node in cluster.nodes}) == ((), {"w1": (), "w2": (0, 1)})


async def test_fp16_waits_for_gpus_also_with_device_auto(store: Store) -> None:
    """On a node without, the job would refuse it and the run had failed for good."""
    await store.submit(spec(precision="fp16", zero_stage=1), "alice")
    cluster = await store.snapshot()
    assert cluster is not None
    assert [queued.device for queued in cluster.queued] == ["cuda"]


async def test_every_queued_run_is_looked_at_in_time(store: Store) -> None:
    """However many runs of its owner stand before it that cannot start."""
    for _ in range(1250):
        await store.submit(spec(), "alice")
    last = await store.submit(spec(), "alice")
    for _ in range(7):
        cluster = await store.snapshot("scheduler")
        assert cluster is not None
        assert len(cluster.queued) < 1600
        if last.id in {queued.run_id for queued in cluster.queued}:
            return
    pytest.fail("the last run is never looked at")

"""Attempts that fail, fall silent or are given back: what becomes of the run, on a real Redis."""

from __future__ import annotations

import asyncio

import pytest
import redis

from service.errors import AttemptLost
from service.lifecycle import Status
from service.store import Store
from tests.service.documents import WORKER, checkpointed, failed, report, spec, started
from tests.service.reports import end_leases, send, silence

pytestmark = pytest.mark.anyio


async def test_an_expired_lease_puts_the_run_back_and_says_from_where_it_goes_on(store: Store) -> None:
    """The reason names the worker, the lease, and the last checkpoint."""
    run = await store.submit(spec())
    await store.claim("w1", WORKER)
    await send(store, run.id, 1, started(), checkpointed(2, 240))
    await silence(store)
    run = await store.get(run.id)
    assert run.status == Status.QUEUED
    assert run.reason.startswith("worker w1 was not heard of for 60 s; attempt 2 resumes from step 240; ")


async def test_a_heartbeat_keeps_the_lease(store: Store) -> None:
    """Renewed, also at the last moment, the lease is not among the expired ones; silent, it is."""
    run = await store.submit(spec())
    await store.claim("w1", WORKER)
    await end_leases(store)
    await store.heartbeat(run.id, 1)
    assert await store.expire_leases() == []
    await end_leases(store)
    assert await store.expire_leases() == [run.id]


@pytest.mark.parametrize("fault", ["crashed", "silent"])
async def test_a_run_that_keeps_failing_ends_failed(store: Store, fault: str) -> None:
    """After max_attempts failures there is no further attempt, and the reason counts them."""
    run = await store.submit(spec(max_attempts=2))
    for attempt in (1, 2):
        await store.claim("w1", WORKER)
        if fault == "crashed":
            await store.exit(run.id, attempt, report("crashed", "rank 1 ended with signal 9"))
        else:
            await silence(store)
    run = await store.get(run.id)
    assert run.status == Status.FAILED
    assert run.reason.endswith("; 2 failed of the 2 attempts that resources.max_attempts allows")
    assert await store.claim("w1", WORKER) is None


async def test_attempts_that_a_stopping_worker_gives_back_are_not_counted(store: Store) -> None:
    """Five released attempts leave a run of max_attempts 1 its one failure."""
    run = await store.submit(spec(max_attempts=1))
    for attempt in range(1, 6):
        await store.claim("w1", WORKER)
        assert (await store.exit(run.id, attempt, report("released", "worker w1 stops"))).status == Status.QUEUED
    await store.claim("w1", WORKER)
    assert (await store.exit(run.id, 6, report("crashed"))).status == Status.FAILED


async def test_a_worker_that_asks_again_has_lost_its_run(store: Store) -> None:
    """A restarted worker gets its run back at once, as a new attempt, and the old one is fenced off."""
    run = await store.submit(spec())
    await store.claim("w1", WORKER)
    again = await store.claim("w1", WORKER)
    assert again is not None
    assert (again.run_id, again.attempt) == (run.id, 2)
    with pytest.raises(AttemptLost):
        await store.heartbeat(run.id, 1)


async def test_a_claim_whose_answer_was_lost_costs_no_failure(store: Store) -> None:
    """Neither heartbeat nor event ever came of that attempt; a worker that loses every answer is not believed for ever."""
    run = await store.submit(spec(max_attempts=1))
    for attempt in range(1, 5):
        again = await store.claim("w1", WORKER)
        assert again is not None
        assert (again.run_id, again.attempt) == (run.id, attempt)
    told = [(entry.event, entry.reason) for entry in await store.history(run.id)]
    assert told[2] == ("released", "worker w1 asks again: the answer to its claim was lost; attempt 2 starts from the beginning")
    assert await store.claim("w1", WORKER) is None
    assert (await store.get(run.id)).status == Status.FAILED


@pytest.mark.parametrize("sign", ["heartbeat", "event"])
async def test_an_attempt_that_gave_a_sign_of_life_counts(store: Store, sign: str) -> None:
    """Its worker had the run, and was restarted without finishing it; also while the run is still starting."""
    run = await store.submit(spec(max_attempts=1))
    await store.claim("w1", WORKER)
    if sign == "heartbeat":
        await store.heartbeat(run.id, 1)
    else:
        await send(store, run.id, 1, {"kind": "phase", "seq": 1, "time": 1.0, "phase": "indexing"})
    assert await store.claim("w1", WORKER) is None
    run = await store.get(run.id)
    assert run.status == Status.FAILED
    assert run.reason.startswith("worker w1 asks for work without having finished this run")


async def test_the_first_look_at_the_leases_ends_none(store: Store) -> None:
    """Nobody watched before it, so no worker could renew; from then on silence counts."""
    run = await store.submit(spec())
    store.lease_seconds = 0.01
    await store.claim("w1", WORKER)
    await asyncio.sleep(0.05)
    store.lease_seconds = 60
    assert await store.expire_leases() == []
    await end_leases(store)
    assert await store.expire_leases() == [run.id]


async def test_leases_that_nobody_watched_for_half_a_period_get_a_full_one(store: Store) -> None:
    """The control plane was away, or the machine slept: the clock is that of Redis, which goes on."""
    run = await store.submit(spec())
    store.lease_seconds = 0.2
    await store.claim("w1", WORKER)
    await store.expire_leases()
    await asyncio.sleep(0.3)
    assert await store.expire_leases() == []
    assert (await store.get(run.id)).status == Status.STARTING


async def test_a_silent_worker_is_forgotten_after_a_day_unless_it_holds_a_run(store: Store, redis_url: str) -> None:
    """And a run whose worker was forgotten all the same can still be reported and read."""
    run = await store.submit(spec())
    await store.claim("w1", WORKER)
    await store.claim("idle", WORKER)
    await store.expire_leases()
    with redis.Redis.from_url(redis_url) as client:
        client.zadd("millionway:workers", {"w1": 0, "idle": 0})
        await store.expire_leases()
        assert [worker.id for worker in await store.workers()] == ["w1"]
        client.delete("millionway:worker:w1")
        client.zrem("millionway:workers", "w1")
    await store.heartbeat(run.id, 1)
    assert await store.workers() == []
    assert (await store.exit(run.id, 1, report("finished"))).status == Status.SUCCEEDED


async def test_the_worker_says_why_an_attempt_failed(store: Store) -> None:
    """It has read the spool: a survivor's last words, which follow from the cause, do not go over its verdict."""
    run = await store.submit(spec())
    await store.claim("w1", WORKER)
    await send(store, run.id, 1, started(), failed(2, "the loss is not finite between steps 10 and 20"))
    run = await store.exit(run.id, 1, report("crashed", "rank 1 was ended by signal 9"))
    assert run.reason.startswith("rank 1 was ended by signal 9; attempt 2 starts from the beginning")
    await store.claim("w1", WORKER)
    assert (await store.exit(run.id, 2, report("faulty", "exit code 64"))).reason == "exit code 64"

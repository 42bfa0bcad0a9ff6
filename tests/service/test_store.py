"""The store on a real Redis: who gets a run, who keeps it, and how it ends."""

from __future__ import annotations

import asyncio

import pytest

from service.errors import AttemptLost, IdempotencyConflict, RunNotFound
from service.lifecycle import Status
from service.store import Store
from tests.service.documents import GPU_WORKER, WORKER, report, spec, started
from tests.service.reports import send, silence

pytestmark = pytest.mark.anyio


async def test_only_one_of_many_concurrent_claims_gets_a_run(store: Store) -> None:
    """Twenty workers ask at once for one run."""
    run = await store.submit(spec())
    claims = await asyncio.gather(*(store.claim(f"w{i}", WORKER) for i in range(20)))
    assert [claim.run_id for claim in claims if claim] == [run.id]


async def test_runs_are_claimed_in_the_order_of_submission(store: Store) -> None:
    """Each of three workers gets the oldest run that is left."""
    runs = [await store.submit(spec()) for _ in range(3)]
    claims = [await store.claim(f"w{i}", WORKER) for i in range(3)]
    assert [claim.run_id for claim in claims if claim] == [run.id for run in runs]


async def test_a_claim_passes_over_runs_that_do_not_fit_the_worker(store: Store) -> None:
    """A worker with two CPU slots gets neither the run of eight ranks nor that for a GPU, which a GPU worker gets."""
    large, gpu, small = [await store.submit(spec(**r)) for r in ({"ranks_per_node": 8}, {"device": "cuda"}, {"device": "auto"})]
    claim = await store.claim("w1", WORKER)
    assert claim is not None
    assert claim.run_id == small.id
    assert await store.claim("w2", WORKER) is None
    claims = [await store.claim(f"gpu{i}", GPU_WORKER) for i in range(2)]
    assert [claim.run_id for claim in claims if claim] == [large.id, gpu.id]


async def test_a_claim_hands_out_the_specification_as_submitted(store: Store) -> None:
    """The same object at both ends."""
    submitted = spec(device="cpu")
    run = await store.submit(submitted)
    claim = await store.claim("w1", WORKER)
    assert claim is not None
    assert claim.spec == run.spec == submitted
    assert (claim.attempt, claim.lease_seconds) == (1, 60)


async def test_a_run_that_is_queued_again_keeps_its_place(store: Store) -> None:
    """It was submitted first, so it is claimed first, also after a crash."""
    first, _ = await store.submit(spec()), await store.submit(spec())
    await store.claim("w1", WORKER)
    await store.exit(first.id, 1, report("crashed"))
    again = await store.claim("w2", WORKER)
    assert again is not None
    assert (again.run_id, again.attempt) == (first.id, 2)


async def test_a_report_from_a_lost_attempt_is_refused(store: Store) -> None:
    """Heartbeat, events and exit of attempt 1 change nothing once attempt 2 holds the run."""
    run = await store.submit(spec())
    await store.claim("w1", WORKER)
    await silence(store)
    await store.claim("w2", WORKER)
    before = await store.get(run.id)
    with pytest.raises(AttemptLost, match=r"attempt 1 of run .* is over"):
        await store.heartbeat(run.id, 1)
    with pytest.raises(AttemptLost):
        await send(store, run.id, 1, started())
    with pytest.raises(AttemptLost):
        await store.exit(run.id, 1, report("finished"))
    assert await store.get(run.id) == before


async def test_reports_after_the_end_are_refused(store: Store) -> None:
    """The newest attempt is over, too, once it has ended."""
    run = await store.submit(spec())
    await store.claim("w1", WORKER)
    await store.exit(run.id, 1, report("finished"))
    with pytest.raises(AttemptLost, match="the run is succeeded"):
        await store.exit(run.id, 1, report("crashed"))


async def test_the_same_key_and_body_give_the_same_run(store: Store) -> None:
    """Also when both are sent at once."""
    runs = await asyncio.gather(*(store.submit(spec(), "key-1") for _ in range(10)))
    assert len({run.id for run in runs}) == 1
    assert len((await store.list_runs()).runs) == 1


async def test_the_same_key_with_another_body_is_refused(store: Store) -> None:
    """No run is made."""
    await store.submit(spec(), "key-1")
    with pytest.raises(IdempotencyConflict, match="use a new key"):
        await store.submit(spec(max_attempts=7), "key-1")
    assert len((await store.list_runs()).runs) == 1


async def test_pages_visit_each_run_once_while_new_ones_arrive(store: Store) -> None:
    """Newest first; what is submitted meanwhile belongs to an earlier page."""
    runs = [(await store.submit(spec())).id for _ in range(7)]
    seen, cursor = [], None
    while True:
        page = await store.list_runs(cursor=cursor, limit=2)
        seen += [run.id for run in page.runs]
        if not page.has_more:
            break
        cursor = int(page.next_cursor or "")
        await store.submit(spec())
    assert seen == runs[::-1]


async def test_runs_are_found_by_status(store: Store) -> None:
    """The index follows each change."""
    run, other = await store.submit(spec()), await store.submit(spec())
    await store.claim("w1", WORKER)
    assert [r.id for r in (await store.list_runs(status=Status.STARTING)).runs] == [run.id]
    assert [r.id for r in (await store.list_runs(status=Status.QUEUED)).runs] == [other.id]


async def test_the_history_tells_every_change_with_its_reason(store: Store) -> None:
    """In order, with the attempt that each belongs to."""
    run = await store.submit(spec())
    await store.claim("w1", WORKER)
    await send(store, run.id, 1, started())
    await store.exit(run.id, 1, report("released", "worker w1 stops"))
    await store.cancel(run.id)
    told = [(entry.event, entry.status, entry.attempt, entry.reason) for entry in await store.history(run.id)]
    assert told == [
        ("submit", "queued", 0, "submitted"),
        ("claim", "starting", 1, "worker w1 on node-1 starts attempt 1"),
        ("started", "running", 1, "training from step 0 on 2 ranks: cpu, fp32, 1 thread per rank"),
        ("released", "queued", 1, "worker w1 stops; attempt 2 starts from the beginning"),
        ("cancel", "cancelled", 1, "cancelled on request"),
    ]


async def test_workers_show_what_they_hold_and_whether_they_live(store: Store) -> None:
    """A worker that was not heard of for longer than its lease is listed as dead."""
    run = await store.submit(spec())
    await store.claim("w1", WORKER)
    await store.claim("idle", GPU_WORKER)
    assert {w.id: (w.run, w.alive) for w in await store.workers()} == {"w1": (run.id, True), "idle": (None, True)}
    store.lease_seconds = 0.05
    await asyncio.sleep(0.1)
    assert not any(worker.alive for worker in await store.workers())


async def test_a_queued_run_says_why_it_waits(store: Store) -> None:
    """Computed when it is read: first nobody is there, then everybody is busy."""
    first, second = await store.submit(spec()), await store.submit(spec())
    assert (await store.get(first.id)).reason == "no worker is connected: start one with `millionway up`"
    await store.claim("w1", WORKER)
    assert (await store.get(second.id)).reason == "waiting for a worker: 1 worker is busy"


async def test_a_run_that_does_not_exist_is_named(store: Store) -> None:
    """By every method that takes an id."""
    for call in (store.get, store.cancel, store.history, store.metrics, store.checkpoints, store.newest_attempt):
        with pytest.raises(RunNotFound, match="no run 'nothing'"):
            await call("nothing")
